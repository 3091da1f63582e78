"""The local search: never worse than where it starts, and what it counts as better."""

import math
from dataclasses import replace

import numpy as np
import pytest
from examples import BLOOM, models, paper_servers, placed, servers
from hypothesis import given, settings
from hypothesis import strategies as st

from chainserve.planning.allocation import residual_slots
from chainserve.planning.improve import Judged, improve, judge
from chainserve.planning.placement import greedy_placement
from chainserve.planning.values import ModelSpec, Placement, PlannedChain, ServerProfile, total_rate
from chainserve.types import Chain, Hop, PeerId, Span

A, B = PeerId("a"), PeerId("b")
MODEL = ModelSpec(num_blocks=4, block_bytes=1, slot_bytes=0.1)


def server(peer: PeerId, memory: float, *, block_s: float = 1.0, pinned: Span | None = None) -> ServerProfile:
    return ServerProfile(peer=peer, memory_bytes=memory, communication_s=1, block_s=block_s, pinned=pinned)


@settings(max_examples=60, deadline=None)
@given(placed(), st.floats(0.01, 3))
def test_what_comes_out_is_never_worse_and_fits(
    system: tuple[tuple[ServerProfile, ...], ModelSpec, Placement], arrival_rate: float
) -> None:
    profiles, model, placement = system
    before = judge(profiles, model, placement, arrival_rate=arrival_rate)
    after = improve(profiles, model, placement, arrival_rate=arrival_rate, max_evaluations=200)
    assert after == before or after.is_better_than(before)
    assert set(after.placement) == set(placement)
    assert min(residual_slots(profiles, model, after.placement).values()) >= 0


@settings(max_examples=30, deadline=None)
@given(servers(), models(), st.floats(0.01, 1))
def test_a_search_that_ended_by_itself_finds_nothing_when_it_goes_on(
    profiles: tuple[ServerProfile, ...], model: ModelSpec, arrival_rate: float
) -> None:
    start = greedy_placement(profiles, model, concurrency=1).placement
    once = improve(profiles, model, start, arrival_rate=arrival_rate)
    assert improve(profiles, model, once.placement, arrival_rate=arrival_rate) == once


def test_spare_memory_becomes_cache_where_the_fast_server_needs_it() -> None:
    # The fast server holds all blocks and has one slot for each; half as many would give it room for many sessions.
    profiles = [server(A, 4.4, block_s=0.1), server(B, 8)]
    greedy = Placement({A: Span(0, 4), B: Span(0, 4)})
    found = improve(profiles, MODEL, greedy, arrival_rate=3.0)
    assert not judge(profiles, MODEL, greedy, arrival_rate=3.0).is_stable
    assert found.is_stable
    assert len(found.placement[A]) < 4


def test_pinned_servers_stay() -> None:
    profiles = [server(A, 4.4, block_s=0.1, pinned=Span(0, 4)), server(B, 8, pinned=Span(0, 4))]
    placement = Placement({A: Span(0, 4), B: Span(0, 4)})
    assert improve(profiles, MODEL, placement, arrival_rate=1.0).placement == placement


def test_the_budget_is_kept() -> None:
    profiles = paper_servers(10, share_high=0.2, rng=np.random.default_rng(1))
    start = greedy_placement(profiles, BLOOM, concurrency=7).placement
    costs = [
        improve(profiles, BLOOM, start, arrival_rate=0.1, max_evaluations=budget).cost_s for budget in (0, 30, 400)
    ]
    assert costs[0] == judge(profiles, BLOOM, start, arrival_rate=0.1).cost_s
    assert costs[0] >= costs[1] >= costs[2]
    assert costs[2] < costs[0]


def test_what_the_caller_adds_decides() -> None:
    profiles = [server(A, 4.4, block_s=0.1), server(B, 8)]
    greedy = Placement({A: Span(0, 4), B: Span(0, 4)})

    def dear(placement: Placement) -> float:
        return 0.0 if placement == greedy else 1e6

    assert improve(profiles, MODEL, greedy, arrival_rate=0.5, extra_s=dear).placement == greedy


def test_of_two_overloads_the_one_whose_queue_grows_slower_is_better() -> None:
    profiles = [server(A, 4.4, block_s=0.1), server(B, 8)]
    few = judge(profiles, MODEL, Placement({A: Span(0, 4), B: Span(0, 4)}), arrival_rate=1000)
    more = judge(profiles, MODEL, Placement({A: Span(0, 2), B: Span(0, 4)}), arrival_rate=1000)
    none = judge(profiles, MODEL, Placement({A: Span(0, 2)}), arrival_rate=1000)
    assert total_rate(few.chains) < total_rate(more.chains)
    assert more.is_better_than(few)
    assert few.is_better_than(none)
    assert none.cost_s == math.inf
    assert not none.is_better_than(none)


def test_bearing_the_load_comes_before_cost() -> None:
    chain = PlannedChain(Chain((Hop(A, Span(0, 4)),)), 1, 1.0)
    stable = Judged(Placement({A: Span(0, 4)}), (chain,), is_stable=True, cost_s=100.0)
    overloaded = replace(stable, is_stable=False, cost_s=1.0)
    assert stable.is_better_than(overloaded)
    assert not overloaded.is_better_than(stable)


def test_pair_times_count_and_servers_change_places() -> None:
    profiles = [server(A, 3), server(B, 3)]
    placement = Placement({A: Span(0, 2), B: Span(2, 4)})
    near = judge(profiles, MODEL, placement, arrival_rate=0.01)
    far = judge(profiles, MODEL, placement, arrival_rate=0.01, pair_s={(A, B): 50.0})
    assert far.cost_s == pytest.approx(near.cost_s + 49, abs=0.01)
    assert improve(profiles, MODEL, placement, arrival_rate=0.01, pair_s={(A, B): 50.0}).placement[A] == Span(2, 4)
