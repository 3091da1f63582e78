"""GBP-CR: the paper's example, what it promises, and what we added to it."""

import math
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from brute_force import can_be_covered, disjoint_groups
from examples import (
    BLOOM,
    J1,
    J2,
    WORKED_DISJOINT,
    WORKED_MODEL,
    WORKED_PLACEMENT,
    WORKED_PROFILES,
    models,
    paper_servers,
    servers,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from chainserve.planning.allocation import c_max
from chainserve.planning.placement import GreedyPlacement, blocks_that_fit, greedy_placement, slots_beside, span_at
from chainserve.planning.values import ModelSpec, PlannedChain, ServerProfile
from chainserve.types import PeerId, Span

CONCURRENCY = st.integers(1, 5)


def server(
    peer: str, memory: float, *, hop_s: float = 1, block_s: float = 1, pinned: Span | None = None
) -> ServerProfile:
    return ServerProfile(peer=PeerId(peer), memory_bytes=memory, communication_s=hop_s, block_s=block_s, pinned=pinned)


def peers(chains: tuple[PlannedChain, ...]) -> list[str]:
    return ["".join(hop.peer for hop in chain.chain.hops) for chain in chains]


def counted_s(chain: PlannedChain, greedy: GreedyPlacement, profiles: tuple[ServerProfile, ...]) -> float:
    """T_k as Alg. 1 counts it: all blocks of every server."""
    by_id = {profile.peer: profile for profile in profiles}
    return sum(by_id[hop.peer].span_s(len(greedy.placement[hop.peer])) for hop in chain.chain.hops)


def test_the_worked_example_gives_its_placement_and_two_disjoint_chains() -> None:
    greedy = greedy_placement(WORKED_PROFILES, WORKED_MODEL, concurrency=1)
    assert greedy.placement == WORKED_PLACEMENT
    found = {tuple(hop.peer for hop in chain.chain.hops): chain.service_s for chain in greedy.chains}
    assert found == pytest.approx(WORKED_DISJOINT)
    assert (greedy.incomplete, greedy.unfit) == ((), ())


def test_the_paper_stops_where_the_rate_suffices() -> None:
    required = 1 / WORKED_DISJOINT[J1, J2]
    stopped = greedy_placement(WORKED_PROFILES, WORKED_MODEL, concurrency=1, required_rate=required, place_all=False)
    assert set(stopped.placement) == {J1, J2}
    assert (stopped.num_needed, stopped.num_chains_needed, len(stopped.chains)) == (2, 1, 1)


def test_all_other_servers_are_placed_after_the_stop_and_it_is_reported() -> None:
    greedy = greedy_placement(WORKED_PROFILES, WORKED_MODEL, concurrency=1, required_rate=0.2)
    assert greedy.placement == WORKED_PLACEMENT
    assert (greedy.num_needed, greedy.num_chains_needed, len(greedy.chains)) == (2, 1, 2)


@pytest.mark.parametrize("place_all", [True, False])
def test_a_rate_out_of_reach_places_everyone_and_says_so(place_all: bool) -> None:
    greedy = greedy_placement(WORKED_PROFILES, WORKED_MODEL, concurrency=1, required_rate=9, place_all=place_all)
    assert greedy.placement == WORKED_PLACEMENT
    assert (greedy.num_needed, greedy.num_chains_needed) == (None, None)


def test_the_last_server_of_a_chain_ends_with_the_model() -> None:
    greedy = greedy_placement(
        [server("a", 2), server("b", 2)], ModelSpec(num_blocks=3, block_bytes=0.9, slot_bytes=0.1), concurrency=1
    )
    assert dict(greedy.placement.spans) == {"a": Span(0, 2), "b": Span(1, 3)}
    (chain,) = greedy.chains
    assert [str(hop.span) for hop in chain.chain.hops] == ["0:2", "2:3"]
    assert chain.service_s == 2 + 3  # Eq. 2: two hops, each block once


def test_servers_of_an_incomplete_chain_start_at_the_first_block() -> None:
    model = ModelSpec(num_blocks=3, block_bytes=0.9, slot_bytes=0.1)
    greedy = greedy_placement([server("a", 3), server("b", 2, block_s=2)], model, concurrency=1)
    assert dict(greedy.placement.spans) == {"a": Span(0, 3), "b": Span(0, 2)}
    assert greedy.incomplete == ("b",)


def test_equally_fast_servers_are_visited_by_their_ids() -> None:
    model = ModelSpec(num_blocks=1, block_bytes=1, slot_bytes=1)
    greedy = greedy_placement([server("b", 2), server("c", 2), server("a", 2)], model, concurrency=1)
    assert peers(greedy.chains) == ["a", "b", "c"]


def test_a_server_with_no_room_for_a_block_and_its_cache_holds_nothing() -> None:
    greedy = greedy_placement(
        [server("a", 1.5), server("b", 9)], ModelSpec(num_blocks=3, block_bytes=1, slot_bytes=1), concurrency=1
    )
    assert greedy.unfit == ("a",)
    assert set(greedy.placement) == {"b"}


def test_rounding_loses_no_block() -> None:
    model = ModelSpec(num_blocks=9, block_bytes=0.99, slot_bytes=0.01)
    assert [blocks_that_fit(server("a", memory), model, concurrency=1) for memory in (3.0, 2.9999999999, 2.99)] == [
        3,
        3,
        2,
    ]
    assert slots_beside(server("a", 2.9999999999), model, Span(0, 3)) == 3


def test_a_server_whose_blocks_are_quantized_holds_more_of_them_beside_the_same_cache() -> None:
    model = ModelSpec(num_blocks=9, block_bytes=4, slot_bytes=1, embedding_bytes=2)
    plain = server("a", 20)
    quantized = replace(plain, block_bytes=1)
    assert [blocks_that_fit(one, model, concurrency=1) for one in (plain, quantized)] == [4, 9]
    assert [blocks_that_fit(one, model, concurrency=4) for one in (plain, quantized)] == [2, 4]
    assert [slots_beside(one, model, Span(0, 4)) for one in (plain, quantized)] == [2, 14]
    assert span_at(quantized, model, cursor=0, concurrency=4) == Span(0, 3)
    assert c_max([plain], model) == 16
    assert c_max([plain, replace(quantized, peer=PeerId("b"))], model) == 19
    with pytest.raises(ValueError, match="block_bytes of a is 0"):
        replace(plain, block_bytes=0)


def test_the_embedding_takes_room_from_blocks_at_the_models_start() -> None:
    model = ModelSpec(num_blocks=6, block_bytes=0.9, slot_bytes=0.1, embedding_bytes=2)
    assert span_at(server("a", 4), model, cursor=0, concurrency=1) == Span(0, 2)
    assert span_at(server("a", 4), model, cursor=1, concurrency=1) == Span(1, 5)
    assert span_at(server("a", 2.5), model, cursor=0, concurrency=1) is None


def test_the_head_takes_room_from_blocks_at_the_models_end() -> None:
    model = ModelSpec(num_blocks=6, block_bytes=0.9, slot_bytes=0.1, head_bytes=2)
    assert span_at(server("a", 4), model, cursor=3, concurrency=1) == Span(3, 5)  # 2:6 and 3:6 do not fit with the head
    assert span_at(server("a", 4), model, cursor=4, concurrency=1) == Span(4, 6)


def test_a_server_too_small_for_the_embedding_serves_later_blocks() -> None:
    model = ModelSpec(num_blocks=2, block_bytes=0.9, slot_bytes=0.1, embedding_bytes=2)
    greedy = greedy_placement([server("a", 1, block_s=0.1), server("b", 3)], model, concurrency=1)
    assert peers(greedy.chains) == ["ba"]


def test_servers_that_fit_at_no_cursor_go_where_the_fewest_hold_a_block() -> None:
    model = ModelSpec(num_blocks=4, block_bytes=0.9, slot_bytes=0.1, embedding_bytes=2)
    greedy = greedy_placement([server(peer, 1) for peer in "abcd"], model, concurrency=1)
    assert dict(greedy.placement.spans) == {"a": Span(1, 2), "b": Span(2, 3), "c": Span(3, 4), "d": Span(1, 2)}
    assert (greedy.chains, greedy.incomplete) == ((), tuple("abcd"))


def test_the_ends_are_kept_for_servers_that_can_hold_them_where_no_chain_comes_about_otherwise() -> None:
    # Six servers of one machine, of 300 to 130 MB less 59 MB for activations; "d" and smaller ones fit no end.
    model = ModelSpec(
        num_blocks=30,
        block_bytes=14.2e6,
        slot_bytes=3.1e6,
        embedding_bytes=113.2e6,
        head_bytes=113.2e6,
        is_tied=True,
    )
    megabytes = {"a": 241, "b": 191, "c": 141, "d": 111, "e": 91, "f": 71}
    profiles = [server(peer, size * 1e6, hop_s=number) for number, (peer, size) in enumerate(megabytes.items())]
    assert span_at(profiles[3], model, cursor=0, concurrency=1) is None
    for order in (profiles, [replace(profile, communication_s=9 - profile.communication_s) for profile in profiles]):
        (chain,) = greedy_placement(order, model, concurrency=1).chains
        assert {chain.chain.hops[0].peer, chain.chain.hops[-1].peer} <= set("abc")


def test_an_end_that_a_pinned_server_holds_is_kept_for_nobody() -> None:
    model = ModelSpec(num_blocks=4, block_bytes=0.9, slot_bytes=0.1, embedding_bytes=2, head_bytes=2)
    profiles = [server("a", 3, block_s=0.1), server("b", 1), server("p", 4, pinned=Span(0, 2))]
    assert peers(greedy_placement(profiles, model, concurrency=1).chains) == ["pba"]
    profiles = [server("a", 3, block_s=0.1), server("b", 1), server("p", 4, pinned=Span(2, 4))]
    assert peers(greedy_placement(profiles, model, concurrency=1).chains) == ["abp"]


@given(servers(max_servers=5), models(5, has_ends=True), st.integers(1, 2))
@settings(deadline=None)
def test_a_chain_is_found_wherever_there_is_one(
    profiles: tuple[ServerProfile, ...], model: ModelSpec, concurrency: int
) -> None:
    greedy = greedy_placement(profiles, model, concurrency=concurrency)
    assert bool(greedy.chains) == can_be_covered(profiles, model, concurrency=concurrency)


def test_a_pinned_server_is_woven_into_the_chain_that_meets_it() -> None:
    model = ModelSpec(num_blocks=4, block_bytes=0.9, slot_bytes=0.1)
    profiles = [server("a", 2, block_s=0.1), server("b", 9, hop_s=9, pinned=Span(1, 3)), server("c", 2)]
    greedy = greedy_placement(profiles, model, concurrency=1)
    assert peers(greedy.chains) == ["abc"]
    assert [str(hop.span) for hop in greedy.chains[0].chain.hops] == ["0:2", "2:3", "3:4"]
    assert greedy.placement["b"] == Span(1, 3)


def test_of_pinned_servers_the_furthest_reaching_then_the_fastest_then_the_smallest_id_comes_first() -> None:
    model = ModelSpec(num_blocks=2, block_bytes=1, slot_bytes=0.1)
    profiles = [
        server("a", 9, pinned=Span(0, 1)),
        server("b", 9, block_s=2, pinned=Span(0, 2)),
        server("d", 9, pinned=Span(0, 2)),
        server("c", 9, pinned=Span(0, 2)),
        server("e", 9, pinned=Span(1, 2)),
    ]
    assert peers(greedy_placement(profiles, model, concurrency=1).chains) == ["c", "d", "b", "ae"]


def test_a_pinned_server_without_slots_for_a_chain_is_placed_all_the_same() -> None:
    model = ModelSpec(num_blocks=2, block_bytes=1, slot_bytes=1)
    profiles = [server("a", 3, pinned=Span(0, 2)), server("b", 4)]
    greedy = greedy_placement(profiles, model, concurrency=1)
    assert peers(greedy.chains) == ["b"]
    assert greedy.placement["a"] == Span(0, 2)


def test_a_pinned_server_on_an_incomplete_chain_is_not_called_left_over() -> None:
    model = ModelSpec(num_blocks=3, block_bytes=1, slot_bytes=1)
    greedy = greedy_placement([server("a", 9, pinned=Span(0, 1)), server("b", 2)], model, concurrency=1)
    assert (greedy.chains, greedy.incomplete) == ((), ("b",))


@given(servers(equal_memory=True, max_servers=7), models(has_ends=False), CONCURRENCY)
@settings(max_examples=40, deadline=None)
def test_no_disjoint_chains_of_equal_servers_have_a_higher_rate(
    profiles: tuple[ServerProfile, ...], model: ModelSpec, concurrency: int
) -> None:
    """Thm. 2: with equal memories, no K disjoint chains have a higher sum of 1 / T_k than the first K of GBP-CR."""
    greedy = greedy_placement(profiles, model, concurrency=concurrency)
    num_blocks = blocks_that_fit(profiles[0], model, concurrency=concurrency)
    best: dict[int, float] = {}
    for groups in disjoint_groups(profiles):
        if all(len(group) * num_blocks >= model.num_blocks for group in groups):
            rate = sum(1 / sum(profile.span_s(num_blocks) for profile in group) for group in groups)
            best[len(groups)] = max(best.get(len(groups), 0), rate)
    rates = [1 / counted_s(chain, greedy, profiles) for chain in greedy.chains]
    assert {num: sum(rates[:num]) for num in range(len(rates) + 1)} == pytest.approx(best)


@given(servers(equal_memory=True, max_servers=7), models(has_ends=False), CONCURRENCY, st.floats(0.01, 2))
@settings(max_examples=40, deadline=None)
def test_no_fewer_equal_servers_reach_the_required_rate(
    profiles: tuple[ServerProfile, ...], model: ModelSpec, concurrency: int, required: float
) -> None:
    """Thm. 2 again: the disjoint-chain problem asks for the fewest servers."""
    greedy = greedy_placement(profiles, model, concurrency=concurrency, required_rate=required)
    num_blocks = blocks_that_fit(profiles[0], model, concurrency=concurrency)
    enough = [
        sum(map(len, groups))
        for groups in disjoint_groups(profiles)
        if all(len(group) * num_blocks >= model.num_blocks for group in groups)
        and sum(1 / sum(profile.span_s(num_blocks) for profile in group) for group in groups) >= required
    ]
    assert greedy.num_needed == min(enough, default=None)


@given(servers(max_servers=10), models(), CONCURRENCY, st.none() | st.floats(0.01, 3), st.booleans())
@settings(deadline=None)
def test_every_span_fits_with_its_cache_and_every_chain_is_whole_and_its_own(
    profiles: tuple[ServerProfile, ...], model: ModelSpec, concurrency: int, required: float | None, place_all: bool
) -> None:
    greedy = greedy_placement(profiles, model, concurrency=concurrency, required_rate=required, place_all=place_all)
    by_id = {profile.peer: profile for profile in profiles}
    for peer, span in greedy.placement.spans.items():
        used = model.weight_bytes(span) + concurrency * len(span) * model.slot_bytes
        assert used <= by_id[peer].memory_bytes * (1 + 1e-8)
        assert slots_beside(by_id[peer], model, span) >= concurrency * len(span)
    used = [hop.peer for chain in greedy.chains for hop in chain.chain.hops]
    assert len(used) == len(set(used))
    for chain in greedy.chains:
        assert chain.chain.num_blocks == model.num_blocks
        assert chain.capacity == concurrency
        assert chain.service_s == sum(by_id[hop.peer].span_s(len(hop.span)) for hop in chain.chain.hops)
    if place_all:
        assert set(greedy.placement) == {*used, *greedy.incomplete} == set(by_id) - set(greedy.unfit)
    rates = [1 / counted_s(chain, greedy, profiles) for chain in greedy.chains]
    reached = next((num for num in range(1, len(rates) + 1) if required and sum(rates[:num]) >= required), None)
    if greedy.num_chains_needed != reached:  # but for rounding
        assert required is not None
        assert sum(rates[: greedy.num_chains_needed]) == pytest.approx(required)


@given(servers(max_servers=8), models(), CONCURRENCY, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_the_input_does_not_matter(
    profiles: tuple[ServerProfile, ...], model: ModelSpec, concurrency: int, random: Random
) -> None:
    shuffled = list(profiles)
    random.shuffle(shuffled)
    assert greedy_placement(shuffled, model, concurrency=concurrency) == greedy_placement(
        profiles, model, concurrency=concurrency
    )


def test_the_papers_defaults_give_disjoint_chains() -> None:
    profiles = paper_servers(20, share_high=0.2, rng=np.random.default_rng(0))
    greedy = greedy_placement(profiles, BLOOM, concurrency=7)
    assert [blocks_that_fit(profile, BLOOM, concurrency=7) for profile in (profiles[0], profiles[-1])] == [19, 9]
    assert [len(chain.chain.hops) for chain in greedy.chains] == [4, 8, 8]


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one session at once, not 0"):
        greedy_placement(WORKED_PROFILES, WORKED_MODEL, concurrency=0)
    for rate in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="required_rate is"):
            greedy_placement(WORKED_PROFILES, WORKED_MODEL, concurrency=1, required_rate=rate)


def test_no_servers_and_two_of_one_id_are_refused() -> None:
    with pytest.raises(ValueError, match="there are no servers"):
        greedy_placement([], WORKED_MODEL, concurrency=1)
    with pytest.raises(ValueError, match="two profiles of one server: j1"):
        greedy_placement([*WORKED_PROFILES, WORKED_PROFILES[0]], WORKED_MODEL, concurrency=1)


def test_a_pinned_span_has_to_lie_in_the_model_and_fit_its_server() -> None:
    with pytest.raises(ValueError, match="j1 is pinned to blocks 2:4, the model has 3 blocks"):
        greedy_placement([replace(WORKED_PROFILES[0], pinned=Span(2, 4))], WORKED_MODEL, concurrency=1)
    with pytest.raises(ValueError, match="blocks 0:3 take 3 bytes, j1 has 2: 1 too few"):
        greedy_placement([replace(WORKED_PROFILES[0], pinned=Span(0, 3))], WORKED_MODEL, concurrency=1)
