"""GCA: the paper's example, and every round against all chains there are."""

import math
from collections import Counter
from random import Random

import pytest
from brute_force import all_chains, allocated, room, service_s
from examples import BLOCK_S, COMMUNICATION_S, WORKED_ALLOCATED, WORKED_MODEL, WORKED_PLACEMENT, WORKED_PROFILES, placed
from hypothesis import given, settings
from hypothesis import strategies as st

from chainserve.planning.allocation import allocate, c_max, fastest_chain, residual_slots
from chainserve.planning.values import ModelSpec, Placement, PlannedChain, ServerProfile
from chainserve.types import PeerId, Span

Swarm = tuple[tuple[ServerProfile, ...], ModelSpec, Placement]
PairSeconds = dict[tuple[PeerId, PeerId], float]


@st.composite
def with_pairs(draw: st.DrawFn) -> tuple[Swarm, PairSeconds]:
    """A swarm and the communication times of some pairs, among them one that is not in it."""
    profiles, model, placement = draw(placed())
    peers = st.sampled_from([*(profile.peer for profile in profiles), PeerId("gone")])
    return (profiles, model, placement), draw(st.dictionaries(st.tuples(peers, peers), COMMUNICATION_S, max_size=12))


def two_blocks(*servers: tuple[str, Span, float, float], slots: int = 2) -> Swarm:
    """Servers of a model of two blocks: id, span, seconds of communication, seconds per block."""
    model = ModelSpec(num_blocks=2, block_bytes=1, slot_bytes=1)
    profiles = tuple(
        ServerProfile(
            peer=PeerId(peer), memory_bytes=len(span) + slots, communication_s=communication_s, block_s=block_s
        )
        for peer, span, communication_s, block_s in servers
    )
    return profiles, model, Placement({PeerId(peer): span for peer, span, *_ in servers})


def peers(chains: tuple[PlannedChain, ...]) -> list[str]:
    return ["".join(hop.peer for hop in chain.chain.hops) for chain in chains]


def slots_used(chains: tuple[PlannedChain, ...]) -> Counter[PeerId]:
    used: Counter[PeerId] = Counter()
    for chain in chains:
        for hop in chain.chain.hops:
            used[hop.peer] += chain.capacity * len(hop.span)
    return used


def test_the_worked_example_gives_its_three_chains() -> None:
    chains = allocate(WORKED_PROFILES, WORKED_MODEL, WORKED_PLACEMENT)
    found = {tuple(hop.peer for hop in chain.chain.hops): chain.service_s for chain in chains}
    assert found == pytest.approx(WORKED_ALLOCATED)
    assert [chain.capacity for chain in chains] == [5, 5, 5]


@given(placed(max_servers=8))
@settings(deadline=None)
def test_every_round_finds_what_trying_all_chains_finds(swarm: Swarm) -> None:
    assert allocate(*swarm) == allocated(*swarm)


@given(with_pairs())
@settings(deadline=None)
def test_costs_of_pairs_change_what_is_found_as_trying_all_chains_does(drawn: tuple[Swarm, PairSeconds]) -> None:
    swarm, pair_s = drawn
    assert allocate(*swarm, pair_s=pair_s) == allocated(*swarm, pair_s=pair_s)


@given(placed(max_servers=8))
@settings(deadline=None)
def test_the_first_chain_is_the_fastest_possible(swarm: Swarm) -> None:
    profiles, model, placement = swarm
    slots = residual_slots(*swarm)
    possible = [service_s(hops, profiles) for hops in all_chains(placement, model.num_blocks) if room(hops, slots) > 0]
    assert min((chain.service_s for chain in allocate(*swarm)), default=None) == min(possible, default=None)
    assert [chain.service_s for chain in allocate(*swarm)[:1]] == sorted(possible)[:1]


@given(placed(12, max_servers=12))
@settings(deadline=None)
def test_chains_exhaust_each_other_and_never_exceed_memory(swarm: Swarm) -> None:
    profiles, model, placement = swarm
    slots = residual_slots(*swarm)
    chains = allocate(*swarm)
    for num, chain in enumerate(chains, start=1):
        assert chain.chain.num_blocks == model.num_blocks
        used = slots_used(chains[:num])
        left = {peer: slots[peer] - used[peer] for peer in slots}
        assert min(left.values()) >= 0
        assert room(chain.chain.hops, left) == 0, "one more session would fit"
    used = slots_used(chains)
    for profile in profiles:
        used_bytes = model.weight_bytes(placement[profile.peer]) + used[profile.peer] * model.slot_bytes
        assert used_bytes <= profile.memory_bytes * (1 + 1e-8)
    left = {peer: slots[peer] - used[peer] for peer in slots}
    assert fastest_chain(*swarm, slots=left) is None, "a chain was left out"
    assert [chain.service_s for chain in chains] == sorted(chain.service_s for chain in chains)


@given(placed(20, max_servers=24), st.booleans(), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_what_is_kept_up_to_date_is_what_a_fresh_start_finds(swarm: Swarm, has_pairs: bool, seed: int) -> None:
    profiles, *_ = swarm
    rng, slots = Random(seed), residual_slots(*swarm)
    pairs = [(before.peer, after.peer) for before in profiles for after in profiles] if has_pairs else []
    pair_s = {pair: rng.randrange(128) / 64 for pair in pairs}
    for chain in allocate(*swarm, pair_s=pair_s):
        assert chain == fastest_chain(*swarm, slots=slots, pair_s=pair_s)
        for hop in chain.chain.hops:
            slots[hop.peer] -= chain.capacity * len(hop.span)


@given(placed(max_servers=8), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_the_input_does_not_matter(swarm: Swarm, random: Random) -> None:
    profiles, model, placement = swarm
    shuffled, spans = list(profiles), list(placement.spans.items())
    random.shuffle(shuffled)
    random.shuffle(spans)
    assert allocate(shuffled, model, Placement(dict(spans))) == allocate(*swarm)


@given(placed(max_servers=8))
@settings(deadline=None)
def test_pairs_that_cost_what_the_profiles_say_change_nothing(swarm: Swarm) -> None:
    profiles, *_ = swarm
    pair_s = {(before.peer, after.peer): after.communication_s for before in profiles for after in profiles}
    assert allocate(*swarm, pair_s=pair_s) == allocate(*swarm, pair_s={}) == allocate(*swarm)


@given(placed(), st.data())
@settings(deadline=None)
def test_a_slower_server_never_makes_the_fastest_chain_faster(swarm: Swarm, data: st.DataObject) -> None:
    profiles, model, placement = swarm
    slower = tuple(
        ServerProfile(
            peer=profile.peer,
            memory_bytes=profile.memory_bytes,
            communication_s=profile.communication_s + data.draw(COMMUNICATION_S),
            block_s=profile.block_s + data.draw(BLOCK_S),
        )
        for profile in profiles
    )
    before, after = fastest_chain(*swarm), fastest_chain(slower, model, placement)
    if before is None or after is None:
        assert before is after
    else:
        assert after.service_s > before.service_s


def test_a_server_may_be_entered_in_the_middle_of_its_span() -> None:
    swarm = two_blocks(("a", Span(0, 1), 0, 1), ("b", Span(0, 2), 1, 2))
    chains = allocate(*swarm)
    assert [[str(hop.span) for hop in chain.chain.hops] for chain in chains] == [["0:1", "1:2"]]
    assert chains[0].service_s == 1 + 1 + 2


def test_of_equal_chains_the_one_whose_first_hop_reaches_furthest_comes_first() -> None:
    swarm = two_blocks(("a", Span(0, 1), 1, 1), ("b", Span(1, 2), 1, 1), ("c", Span(0, 2), 2, 1))
    assert peers(allocate(*swarm)) == ["c", "ab"]


def test_of_equal_chains_with_equal_reach_the_smallest_id_comes_first() -> None:
    swarm = two_blocks(("b", Span(0, 2), 1, 1), ("a", Span(0, 2), 1, 1))
    assert peers(allocate(*swarm)) == ["a", "b"]


def test_a_direct_link_makes_a_pair_faster_than_a_better_server_behind_a_slow_one() -> None:
    swarm = two_blocks(("a", Span(0, 1), 1, 1), ("b", Span(1, 2), 5, 1), ("c", Span(1, 2), 2, 1))
    assert peers(allocate(*swarm)) == ["ac"]
    direct = allocate(*swarm, pair_s={(PeerId("a"), PeerId("b")): 0.5})
    assert peers(direct) == ["ab"]
    assert direct[0].service_s == 1 + 1 + 0.5 + 1


def test_the_fastest_chain_knows_how_many_sessions_still_fit() -> None:
    chain = fastest_chain(WORKED_PROFILES, WORKED_MODEL, WORKED_PLACEMENT)
    assert chain == allocate(WORKED_PROFILES, WORKED_MODEL, WORKED_PLACEMENT)[0]
    few = fastest_chain(WORKED_PROFILES, WORKED_MODEL, WORKED_PLACEMENT, slots={PeerId("j1"): 9, PeerId("j2"): 5})
    assert few is not None
    assert few.capacity == 2  # j2 runs two blocks


def test_servers_absent_from_the_slots_have_none() -> None:
    assert fastest_chain(WORKED_PROFILES, WORKED_MODEL, WORKED_PLACEMENT, slots={PeerId("j1"): 9}) is None


def test_a_placement_with_a_gap_has_no_chain() -> None:
    assert allocate(WORKED_PROFILES, WORKED_MODEL, Placement({PeerId("j1"): Span(0, 1)})) == ()
    assert allocate(WORKED_PROFILES, WORKED_MODEL, Placement({})) == ()


def test_slots_left_beside_the_weights_are_counted_without_loss_to_rounding() -> None:
    assert residual_slots(WORKED_PROFILES, WORKED_MODEL, WORKED_PLACEMENT) == dict.fromkeys(WORKED_PLACEMENT, 10)


def test_the_ends_of_the_model_leave_fewer_slots() -> None:
    model = ModelSpec(num_blocks=2, block_bytes=1, slot_bytes=1, embedding_bytes=2, head_bytes=3, is_tied=True)
    profiles = [ServerProfile(peer=PeerId(peer), memory_bytes=6, communication_s=1, block_s=1) for peer in "abc"]
    spans = {PeerId("a"): Span(0, 1), PeerId("b"): Span(1, 2), PeerId("c"): Span(0, 2)}
    assert residual_slots(profiles, model, Placement(spans)) == {"a": 3, "b": 2, "c": 1}


@pytest.mark.parametrize(
    ("spans", "fact"),
    [
        ({"j1": Span(0, 3)}, "blocks 0:3 take 3 bytes, j1 has 2: 1 too few"),
        ({"j2": Span(2, 4)}, "j2 holds blocks 2:4, the model has 3 blocks"),
        ({"j9": Span(0, 1)}, "j9 is placed but has no profile"),
    ],
)
def test_a_placement_that_cannot_be_is_refused(spans: dict[PeerId, Span], fact: str) -> None:
    with pytest.raises(ValueError, match=fact):
        allocate(WORKED_PROFILES, WORKED_MODEL, Placement(spans))


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf])
def test_times_of_pairs_that_cannot_be_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="pair_s of j1 and j2 is"):
        allocate(WORKED_PROFILES, WORKED_MODEL, WORKED_PLACEMENT, pair_s={(PeerId("j1"), PeerId("j2")): seconds})


def test_the_largest_concurrency_fills_the_largest_server_beside_one_block() -> None:
    assert c_max(WORKED_PROFILES, WORKED_MODEL) == 20
    assert c_max(WORKED_PROFILES[:1], WORKED_MODEL) == 10
    tight = ModelSpec(num_blocks=1, block_bytes=1, slot_bytes=0.1, embedding_bytes=1)
    assert c_max(WORKED_PROFILES, tight) == 10
    assert c_max(WORKED_PROFILES, ModelSpec(num_blocks=1, block_bytes=9, slot_bytes=1)) == 0
