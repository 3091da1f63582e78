"""Cheapest routes through a placement, against all routes there are."""

import math
from collections.abc import Iterator
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainserve.errors import NoChainError
from chainserve.planning.baselines.routes import Routes
from chainserve.planning.baselines.windows import blocks_with_cache, free_servers, poorest_window, require_room
from chainserve.planning.values import ModelSpec, Placement, ServerProfile
from chainserve.types import Chain, Hop, PeerId, Span

A, B, C = PeerId("A"), PeerId("B"), PeerId("C")


def by_length(before: PeerId | None, hop: Hop) -> float:
    return 1 + 0.1 * len(hop.span)


def test_a_hop_runs_from_the_current_block_to_the_end_of_the_span() -> None:
    routes = Routes(Placement({A: Span(0, 3), B: Span(1, 5), C: Span(2, 6)}), 6, hop_s=by_length)
    assert routes.hops == (
        Hop(A, Span(0, 3)),
        Hop(B, Span(3, 5)),
        Hop(C, Span(3, 6)),
        Hop(C, Span(5, 6)),
    )
    route = routes.cheapest([0, 0, 0, 0])
    assert route == Chain((Hop(A, Span(0, 3)), Hop(C, Span(3, 6))))
    assert routes.cost_s(route) == pytest.approx(2.6)


def test_what_a_hop_takes_more_leads_around_it() -> None:
    routes = Routes(Placement({A: Span(0, 3), B: Span(1, 5), C: Span(2, 6)}), 6, hop_s=by_length)
    detour = Chain((Hop(A, Span(0, 3)), Hop(B, Span(3, 5)), Hop(C, Span(5, 6))))
    assert routes.cheapest([0, 0, 1.5, 0]) == detour
    assert routes.cheapest([math.inf, 0, 0, 0]) is None


def test_the_server_before_and_the_way_back_count() -> None:
    def hop_s(before: PeerId | None, hop: Hop) -> float:
        return 5.0 if (before, hop.peer) == (A, C) else 1.0

    placement = Placement({A: Span(0, 2), B: Span(0, 2), C: Span(2, 4)})
    route = Routes(placement, 4, hop_s=hop_s).cheapest([0.5 if peer == B else 0 for peer in (A, B, C)])
    assert route is not None
    assert route.head == B
    two = Routes(Placement({A: Span(0, 4), B: Span(0, 4)}), 4, hop_s=hop_s, return_s={A: 2.0, B: 1.0}.__getitem__)
    route = two.cheapest([0, 0])
    assert route is not None
    assert route.head == B
    assert two.cost_s(route) == 2


def test_ties_go_to_the_smaller_id() -> None:
    route = Routes(Placement({B: Span(0, 4), A: Span(0, 4)}), 4, hop_s=by_length).cheapest([0, 0])
    assert route is not None
    assert route.head == A


def test_blocks_that_nobody_holds_are_named() -> None:
    with pytest.raises(NoChainError, match="blocks 3:4 of 4"):
        Routes(Placement({A: Span(0, 3)}), 4, hop_s=by_length)


@st.composite
def covered(draw: st.DrawFn) -> tuple[Placement, int]:
    num_blocks = draw(st.integers(1, 6))
    spans = {}
    for number in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, num_blocks - 1))
        spans[PeerId(f"s{number}")] = Span(start, draw(st.integers(start + 1, num_blocks)))
    spans[PeerId("whole")] = Span(0, num_blocks)
    return Placement(spans), num_blocks


def all_routes(placement: Placement, num_blocks: int, start: int = 0) -> Iterator[tuple[Hop, ...]]:
    if start == num_blocks:
        yield ()
        return
    for peer, span in placement.spans.items():
        if start in span:
            for rest in all_routes(placement, num_blocks, span.end):
                yield (Hop(peer, Span(start, span.end)), *rest)


@settings(max_examples=100)
@given(covered(), st.randoms(use_true_random=False))
def test_no_route_is_cheaper(case: tuple[Placement, int], random: Random) -> None:
    placement, num_blocks = case
    uniform = random.uniform
    pairs = {(before, peer): uniform(0, 2) for before in (None, *placement) for peer in placement}
    returns = {peer: uniform(0, 2) for peer in placement}
    routes = Routes(
        placement,
        num_blocks,
        hop_s=lambda before, hop: pairs[before, hop.peer] + 0.1 * len(hop.span),
        return_s=returns.__getitem__,
    )
    extra_s = {hop: uniform(0, 1) for hop in routes.hops}

    def total_s(route: Chain) -> float:
        return routes.cost_s(route) + sum(extra_s[hop] for hop in route.hops)

    best = routes.cheapest(list(extra_s.values()))
    assert best is not None
    assert total_s(best) == pytest.approx(min(total_s(Chain(hops)) for hops in all_routes(placement, num_blocks)))


def profile(peer: PeerId, memory: float, *, pinned: Span | None = None) -> ServerProfile:
    return ServerProfile(peer=peer, memory_bytes=memory, communication_s=1, block_s=1, pinned=pinned)


def test_pinned_servers_and_servers_given_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="A is pinned to blocks 0:2"):
        free_servers([profile(A, 1, pinned=Span(0, 2))])
    with pytest.raises(ValueError, match="two profiles of one server: A"):
        free_servers([profile(A, 1), profile(A, 2)])


def test_blocks_are_counted_with_their_cache_beside_both_ends() -> None:
    model = ModelSpec(num_blocks=5, block_bytes=1, slot_bytes=0.1, embedding_bytes=1, head_bytes=0.5)
    assert blocks_with_cache(profile(A, 5.0999999999), model, num_slots=2) == 3
    assert blocks_with_cache(profile(A, 100), model, num_slots=2) == 5
    assert blocks_with_cache(profile(A, 1), model, num_slots=2) == 0


def test_the_poorest_window_is_the_first_whose_sorted_values_are_smallest() -> None:
    assert poorest_window(np.array([3.0, 1, 2, 1, 2, 9]), 2) == Span(1, 3)
    assert poorest_window(np.array([5.0, 1, 9, 2, 1, 0]), 3) == Span(3, 6)


def test_a_server_without_a_slot_for_each_block_is_named() -> None:
    require_room(Placement({A: Span(0, 2)}), {A: 2})
    with pytest.raises(ValueError, match="A has 1 block-slots for its 2 blocks"):
        require_room(Placement({A: Span(0, 2)}), {A: 1})
