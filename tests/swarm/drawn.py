"""What swarms speak of, drawn by hypothesis: offers, announcements, and plans that were really made."""

from collections.abc import Mapping
from types import MappingProxyType

from hypothesis import strategies as st

from chainserve.errors import NoPlanError
from chainserve.planning.allocation import allocate
from chainserve.planning.moves import next_step
from chainserve.planning.profile import BlockProfile, StepTimes
from chainserve.planning.times import BlockTimes, ServerTimes
from chainserve.planning.values import ModelSpec, Placement, ResponseTimeBounds
from chainserve.swarm.offers import (
    LEAST_BYTES_PER_S,
    LEAST_STEP_S,
    LEAST_WINDOW_S,
    MAX_BYTES,
    MAX_SIZE,
    MAX_STEP_S,
    MAX_WINDOW_S,
    Demand,
    Offer,
    Reach,
    StepCheck,
)
from chainserve.swarm.plans import PlanInputs, PlannedServer, Shortage, SwarmPlan, Way
from chainserve.swarm.records import MAX_EPOCH, Announcement, ServerState
from chainserve.swarm.reports import ChainUse, Report
from chainserve.types import PeerId, Span

texts = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=64)
peer_ids = texts.map(PeerId)
step_s = st.floats(LEAST_STEP_S, MAX_STEP_S)
num_bytes = st.integers(1, MAX_BYTES)


@st.composite
def spans(draw: st.DrawFn, num_blocks: int) -> Span:
    start = draw(st.integers(0, num_blocks - 1))
    return Span(start, draw(st.integers(start + 1, num_blocks)))


@st.composite
def points(draw: st.DrawFn, *, most: int = 5) -> tuple[tuple[int, float], ...]:
    sizes = draw(st.sets(st.integers(1, MAX_SIZE), min_size=2, max_size=most))
    return tuple((size, draw(step_s)) for size in sorted(sizes))


profiles = st.builds(
    BlockProfile,
    times=st.builds(StepTimes, forward_s=st.floats(0, MAX_STEP_S), prefill=points(), decode=points(), head=points()),
    block_bytes=num_bytes,
    embedding_bytes=st.integers(0, MAX_BYTES),
    head_bytes=st.integers(0, MAX_BYTES),
    is_tied=st.booleans(),
    token_bytes=num_bytes,
    activation_bytes=st.integers(0, MAX_BYTES),
)
checks = st.none() | st.builds(StepCheck, predicted_s=step_s, observed_s=step_s)
reaches = st.builds(
    Reach,
    round_trip_s=st.floats(0, MAX_STEP_S),
    bytes_per_s=st.none() | st.floats(LEAST_BYTES_PER_S, MAX_BYTES),
)
demands = st.builds(
    Demand,
    num_requests=st.integers(0, MAX_SIZE),
    window_s=st.floats(LEAST_WINDOW_S, MAX_WINDOW_S),
    input_tokens=st.floats(0, MAX_SIZE),
    output_tokens=st.floats(0, MAX_SIZE),
)


def offers(peers: st.SearchStrategy[PeerId] = peer_ids) -> st.SearchStrategy[Offer]:
    """Offers of servers that know the way to some of these peers."""
    return st.builds(
        Offer,
        memory_bytes=num_bytes,
        profile=profiles,
        prefill=checks,
        decode=checks,
        reach=st.dictionaries(peers, reaches, max_size=4).map(MappingProxyType),
        demand=st.none() | demands,
    )


shares = st.floats(0, 1)
reports = st.builds(
    Report,
    device=texts,
    name=st.none() | texts,
    tokens_per_s=st.floats(0, 1e6),
    loaded_share=st.none() | shares,
    chains=st.lists(
        st.builds(
            ChainUse,
            chain=st.integers(0, 1000),
            num_held=st.integers(0, 1000),
            used_share=shares,
            num_waiting=st.integers(0, 1000),
            wait_s=st.floats(0, 1e6),
            service_s=st.none() | st.floats(0, 1e6),
        ),
        max_size=4,
    ).map(tuple),
)


@st.composite
def announcements(draw: st.DrawFn, peer: PeerId, *, others: st.SearchStrategy[PeerId] = peer_ids) -> Announcement:
    num_blocks = draw(st.integers(1, 200))
    state = draw(st.sampled_from(ServerState))
    may_lack = state in (ServerState.JOINING, ServerState.OFFLINE)
    span = draw(st.none() | spans(num_blocks)) if may_lack else draw(spans(num_blocks))
    cache_tokens = draw(st.integers(0, 10**12))
    return Announcement(
        peer=peer,
        state=state,
        model=draw(texts),
        model_digest=draw(texts),
        num_blocks=num_blocks,
        span=span,
        dtype=draw(texts),
        cache_tokens=cache_tokens,
        free_tokens=draw(st.integers(0, cache_tokens)),
        addresses=tuple(draw(st.lists(texts, max_size=4))),
        version=draw(texts),
        started_at=draw(st.floats(0, 1e12)),
        pinned=span is not None and draw(st.booleans()),
        weight_bytes=draw(st.integers(0, MAX_BYTES)),
        epoch=draw(st.integers(0, MAX_EPOCH)),
        quant=draw(st.none() | texts),
        offer=draw(st.none() | offers(others)),
        report=draw(st.none() | reports),
    )


@st.composite
def plan_inputs(draw: st.DrawFn) -> PlanInputs:
    """Inputs from which a plan can be made unless memory is short: whoever stays where it is has room there."""
    model = ModelSpec(
        num_blocks=draw(st.integers(1, 5)),
        block_bytes=draw(st.integers(1, 4) | st.floats(1, 4)),
        slot_bytes=draw(st.floats(0.05, 1)),
        embedding_bytes=draw(st.just(0) | st.floats(0, 3)),
        head_bytes=draw(st.just(0) | st.floats(0, 3)),
        is_tied=draw(st.booleans()),
    )
    peers = [PeerId(f"s{number}") for number in range(draw(st.integers(1, 5)))]
    pinned: Mapping[PeerId, Span] = draw(st.dictionaries(st.sampled_from(peers), spans(model.num_blocks), max_size=1))
    before = draw(st.dictionaries(st.sampled_from(peers), spans(model.num_blocks), max_size=len(peers)))
    held = frozenset(draw(st.sets(st.sampled_from(sorted(before)), max_size=2))) if before else frozenset()
    servers = []
    for peer in peers:
        block_bytes = draw(st.none() | st.floats(0.5, 4))
        needed = [
            len(stay) * (block_bytes or model.block_bytes) + model.end_bytes(stay)
            for stay in (pinned.get(peer), before.get(peer))
            if stay
        ]
        servers.append(
            PlannedServer(
                peer=peer,
                offered_bytes=draw(st.integers(1, 100)),
                memory_bytes=max(needed, default=0) + draw(st.floats(0.5, 12)),
                times=ServerTimes(
                    hop_s=draw(st.floats(0, 0.1)),
                    block=BlockTimes(
                        overhead_s=draw(st.floats(0.001, 0.1)),
                        prefill_s=draw(st.floats(0, 0.01)),
                        decode_s=draw(st.just(0) | st.floats(0, 0.1)),
                        session_s=draw(st.just(0) | st.floats(0, 0.1)),
                    ),
                    head_s=draw(st.just(0) | st.floats(0, 0.1)),
                ),
                pinned=pinned.get(peer),
                block_bytes=block_bytes,
            )
        )
    pairs = st.tuples(st.sampled_from(peers), st.sampled_from(peers))
    ways = st.builds(Way, hop_s=st.just(0) | st.floats(0, 0.5), prompt_s=st.floats(0, 1))
    return PlanInputs(
        model=model,
        servers=tuple(servers),
        arrival_rate=draw(st.floats(0.01, 5)),
        input_tokens=draw(st.integers(1, 1000) | st.floats(1, 1000)),
        output_tokens=draw(st.floats(1, 100)),
        slot_tokens=draw(st.integers(1, MAX_SIZE)),
        ways=draw(st.dictionaries(pairs, ways, max_size=4)),
        before=draw(st.sampled_from([None, Placement(before)])) if not held else Placement(before),
        held=held,
        s_per_byte=draw(st.floats(0, 1)),
        search_effort=draw(st.sampled_from([0, 100])),
        concurrencies=draw(st.none() | st.lists(st.integers(1, 20), min_size=1, max_size=3).map(tuple)),
    )


@st.composite
def swarm_plans(draw: st.DrawFn, *, planner: PeerId) -> SwarmPlan:
    """The plan for such inputs: at its goal or on the way there, or with a shortage."""
    inputs = draw(plan_inputs())
    epoch, digest = draw(st.integers(1, MAX_EPOCH)), draw(texts)
    left_out = draw(st.dictionaries(peer_ids, st.text(max_size=20), max_size=3))
    where = inputs.before or Placement({})
    try:
        planned = inputs.plan()
    except NoPlanError as error:
        return SwarmPlan(
            epoch=epoch,
            planner=planner,
            model_digest=digest,
            inputs=inputs,
            goal=where,
            placement=where,
            chains=(),
            concurrency=0,
            bounds=ResponseTimeBounds(float("inf"), float("inf")),
            shortage=Shortage(error.missing, error.missing_bytes),
            left_out=left_out,
        )
    placement, chains = planned.placement, planned.chains
    if draw(st.booleans()):
        placement = next_step(where.spans, planned.placement)
        try:
            chains = allocate(inputs.profiles(), inputs.model, placement, pair_s=inputs.pair_s or None)
        except ValueError:  # a server that moves has less room than it holds
            chains = ()
    return SwarmPlan(
        epoch=epoch,
        planner=planner,
        model_digest=digest,
        inputs=inputs,
        goal=planned.placement,
        placement=placement,
        chains=chains,
        concurrency=planned.chosen.concurrency,
        bounds=planned.bounds,
        left_out=left_out,
    )
