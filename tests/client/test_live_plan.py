"""What follows from a plan that a swarm follows."""

import math
from dataclasses import replace

import pytest
from live_swarms import peer, plan_of, server

from chainserve.planning.bounds import response_time_bounds
from chainserve.planning.spares import leave_out
from chainserve.planning.values import Placement
from chainserve.swarm.offers import Demand, Reach
from chainserve.types import Span
from chainserve_client.forecast import MAX_LEFT_OUT
from chainserve_client.live_plan import examine

HALVES = (server("a", memory_gb=5), server("b", memory_gb=6, speed=2))
BUSY = Demand(num_requests=5000, window_s=100.0, input_tokens=100.0, output_tokens=50.0)


def test_first_token_and_further_ones_add_up_to_the_time_that_was_planned_with() -> None:
    slow = Reach(round_trip_s=0.08, bytes_per_s=1e6)
    plan = plan_of(server("a", memory_gb=5, reach={peer("b"): slow}), server("b", memory_gb=6))
    outlook = examine(plan).outlook
    assert any(way.prompt_s for way in plan.inputs.ways.values())
    assert any(len(chain.chain.hops) == 2 for chain in outlook.chains)
    for chain, prediction in zip(outlook.chains, outlook.predictions, strict=True):
        whole_s = prediction.first_token_s + (plan.inputs.output_tokens - 1) * prediction.token_s
        head_s = plan.inputs.times[chain.chain.hops[-1].peer].head_s  # which planning does not count
        assert head_s > 0
        assert whole_s == pytest.approx(chain.service_s + plan.inputs.output_tokens * head_s)


def test_what_a_server_is_worth_is_what_leaving_it_out_of_the_planning_shows() -> None:
    plan = plan_of(server("a", memory_gb=10), server("b", memory_gb=20, speed=3), server("c", memory_gb=4, speed=2))
    planned, found = replace(plan.inputs, before=None, search_effort=100).plan(), examine(plan).left_out
    for name in "abc":
        expected = leave_out(planned, peer(name), search_effort=100)
        assert found[peer(name)].slowdown == pytest.approx(expected.slowdown, abs=0.02)
        assert found[peer(name)].missing == expected.missing
    assert found[peer("b")].slowdown > 0.5


def test_without_a_server_that_is_needed_blocks_have_no_room() -> None:
    left_out = examine(plan_of(*HALVES)).left_out
    assert all(found.missing and math.isinf(found.slowdown) for found in left_out.values())
    alone = examine(plan_of(server("a", memory_gb=20))).left_out[peer("a")]
    assert alone.missing == tuple(range(8))


def test_of_a_swarm_that_cannot_bear_the_load_the_rates_are_compared() -> None:
    plan = plan_of(server("a", memory_gb=9, demand=BUSY), server("b", memory_gb=9))
    found = examine(plan)
    assert not found.outlook.is_stable
    expected = leave_out(plan.inputs.plan(), peer("b")).slowdown
    assert found.left_out[peer("b")].slowdown == pytest.approx(expected, rel=0.02)


def test_in_a_large_swarm_only_servers_without_blocks_are_told() -> None:
    servers = [server(f"{number:02}", memory_gb=9) for number in range(MAX_LEFT_OUT)]
    found = examine(plan_of(*servers, server("tiny", memory_gb=0.5)))
    assert set(found.left_out) == {peer("tiny")}
    assert found.left_out[peer("tiny")].is_spare


def test_with_a_shortage_nothing_is_expected() -> None:
    found = examine(plan_of(server("a", memory_gb=5)))
    assert found.plan.shortage is not None
    assert (found.outlook.chains, found.left_out) == ((), {})
    assert (found.outlook.total_rate, found.outlook.load) == (0, math.inf)


def test_where_only_the_present_placement_fits_nobody_is_left_out() -> None:
    plan = plan_of(*HALVES)
    tiny = tuple(replace(planned, memory_bytes=1.5e9) for planned in plan.inputs.servers)
    assert examine(replace(plan, inputs=replace(plan.inputs, servers=tiny))).left_out == {}


def test_on_the_way_to_its_goal_a_swarm_is_as_fast_as_the_chains_it_has() -> None:
    plan = plan_of(server("a", memory_gb=10), server("b", memory_gb=20, speed=3))
    under_way = replace(plan, chains=plan.chains[1:], placement=Placement({peer("a"): Span(0, 8)}))
    bounds = examine(under_way).outlook.bounds
    (chain,) = under_way.chains
    assert bounds == response_time_bounds([chain.rate], [chain.capacity], arrival_rate=plan.inputs.arrival_rate)
    assert examine(plan).outlook.bounds == plan.bounds
    assert bounds.lower_s > plan.bounds.lower_s
