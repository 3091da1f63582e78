"""Models, servers and placements for tests: the worked examples, the paper's setting, and hypothesis strategies."""

import numpy as np
from hypothesis import strategies as st

from chainserve.planning.values import ModelSpec, Placement, ServerProfile, Workload
from chainserve.types import PeerId, Span

# The worked example of GBP-CR and GCA: five servers, three blocks; j2 has room for two blocks, but is further away.
EPSILON = 0.001
J1, J2, J3, J4, J5 = (PeerId(f"j{number}") for number in range(1, 6))
WORKED_MODEL = ModelSpec(num_blocks=3, block_bytes=1, slot_bytes=0.1)
WORKED_PROFILES = tuple(
    ServerProfile(
        peer=peer,
        memory_bytes=3 if peer == J2 else 2,
        communication_s=2 if peer == J2 else 1,
        block_s=number * EPSILON,
    )
    for number, peer in enumerate((J1, J2, J3, J4, J5), start=1)
)
WORKED_PLACEMENT = Placement({J1: Span(0, 1), J2: Span(1, 3), J3: Span(0, 1), J4: Span(1, 2), J5: Span(2, 3)})
WORKED_DISJOINT = {(J1, J2): 3 + 5 * EPSILON, (J3, J4, J5): 3 + 12 * EPSILON}  # servers: T_k, with c = 1
WORKED_ALLOCATED = {  # servers: T_k, each with capacity 5
    (J1, J2): 3 + 5 * EPSILON,
    (J1, J4, J5): 3 + 10 * EPSILON,
    (J3, J4, J5): 3 + 12 * EPSILON,
}

# A small system whose bounds (Thm. 4) and exact mean response time are known, at 0.8 of its total rate of 4.7.
CHECK_RATES = (1.0, 0.7, 0.3)
CHECK_CAPACITIES = (2, 3, 2)
CHECK_ARRIVAL_RATE = 3.76
CHECK_LOWER_S, CHECK_EXACT_S, CHECK_UPPER_S = 1.77138, 1.96293, 2.17938

# The paper's simulation: BLOOM-176B, 2000 tokens in and 20 out, GB as 1e9 bytes.
BLOOM = ModelSpec(num_blocks=70, block_bytes=1.32e9, slot_bytes=0.11e9)
PAPER_WORKLOAD = Workload(arrival_rate=0.2, target_load=0.7)


def paper_servers(num_servers: int, *, share_high: float, rng: np.random.Generator) -> tuple[ServerProfile, ...]:
    """The paper's two kinds of server (section 4): round trips of 10 to 57 ms plus 18 ms, for each of 20 tokens."""
    num_high = round(share_high * num_servers)
    return tuple(
        ServerProfile(
            peer=PeerId(f"s{number:05}"),
            memory_bytes=40e9 if number < num_high else 20e9,
            communication_s=20 * (float(rng.uniform(0.010, 0.057)) + 0.018),
            block_s=0.109 if number < num_high else 0.175,
        )
        for number in range(num_servers)
    )


# Multiples of 1/64 add up without rounding, and are often equal: an oracle may compare with ==, ties and all.
COMMUNICATION_S = st.integers(0, 128).map(lambda number: number / 64)
BLOCK_S = st.integers(1, 64).map(lambda number: number / 64)


@st.composite
def models(draw: st.DrawFn, max_blocks: int = 6, *, has_ends: bool | None = None) -> ModelSpec:
    """Models of few blocks; with an embedding and a head, without, or (None) either."""
    ends = draw(st.booleans()) if has_ends is None else has_ends
    sizes = st.floats(0, 3) if ends else st.just(0.0)
    return ModelSpec(
        num_blocks=draw(st.integers(1, max_blocks)),
        block_bytes=draw(st.floats(0.5, 2)),
        slot_bytes=draw(st.floats(0.05, 1)),
        embedding_bytes=draw(sizes),
        head_bytes=draw(sizes),
        is_tied=draw(st.booleans()),
    )


@st.composite
def servers(
    draw: st.DrawFn, *, max_servers: int = 6, max_memory: float = 12, equal_memory: bool = False
) -> tuple[ServerProfile, ...]:
    """Servers with unlike times, and memories that are unlike or all equal."""
    num_servers = draw(st.integers(1, max_servers))
    memories = st.floats(0.5, max_memory)
    if equal_memory:
        memories = st.just(draw(memories))
    return tuple(
        ServerProfile(
            peer=PeerId(f"s{number}"),
            memory_bytes=draw(memories),
            communication_s=draw(COMMUNICATION_S),
            block_s=draw(BLOCK_S),
        )
        for number in range(num_servers)
    )


@st.composite
def placed(
    draw: st.DrawFn, max_blocks: int = 6, *, max_servers: int = 6
) -> tuple[tuple[ServerProfile, ...], ModelSpec, Placement]:
    """Servers, a model, and any placement in which every server's weights fit and most have room for some slots.

    Not every block is covered.
    """
    model = draw(models(max_blocks))
    profiles, spans = [], {}
    for number in range(draw(st.integers(1, max_servers))):
        peer = PeerId(f"s{number}")
        start = draw(st.integers(0, model.num_blocks - 1))
        spans[peer] = span = Span(start, draw(st.integers(start + 1, model.num_blocks)))
        num_slots = draw(st.floats(0, 12))
        profiles.append(
            ServerProfile(
                peer=peer,
                memory_bytes=model.weight_bytes(span) + num_slots * model.slot_bytes,
                communication_s=draw(COMMUNICATION_S),
                block_s=draw(BLOCK_S),
            )
        )
    return tuple(profiles), model, Placement(spans)
