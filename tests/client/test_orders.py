"""A swarm that is told how to place, and for which load."""

from dataclasses import replace

import pytest
from live_swarms import MODEL_DIGEST, NOW, peer, server

from chainserve.planning.rules import PETALS, PETALS_SHARED_TOKENS, PETALS_TOKENS, WHOLE_MODEL, PlacementRule
from chainserve.swarm.inputs import ModelFacts
from chainserve.swarm.offers import Demand
from chainserve.swarm.orders import Orders
from chainserve.swarm.planner import Job, Planner
from chainserve.swarm.plans import SwarmPlan
from chainserve.swarm.records import Announcement
from chainserve.swarm.view import make_view
from chainserve.types import Span

LOAD = Demand(num_requests=120, window_s=60.0, input_tokens=100.0, output_tokens=10.0)
SERVERS = [server("a", memory_gb=12), server("b", memory_gb=12), server("c", memory_gb=5)]


def job_of(orders: Orders, *servers: Announcement, current: SwarmPlan | None = None, at_s: float = 60.0) -> Job | None:
    planner = Planner(
        peer("a"),
        model_digest=MODEL_DIGEST,
        model=ModelFacts(num_blocks=8, longest_tokens=8192, wire_bytes=8192),
        orders=orders,
    )
    view = make_view(servers, taken_at=NOW)
    first = planner.consider(view, current, now_s=0.0)
    return first or planner.consider(view, current, now_s=at_s)


def plan_by(orders: Orders, *servers: Announcement) -> SwarmPlan:
    job = job_of(orders, *servers)
    assert job is not None
    return job.carry_out()


def test_the_plan_says_by_which_rule_it_was_made_and_whoever_has_it_can_make_it_again() -> None:
    plan = plan_by(Orders(rule=PlacementRule(name=WHOLE_MODEL)), *SERVERS)
    assert plan.goal.spans == {peer("a"): Span(0, 8), peer("b"): Span(0, 8)}
    same = SwarmPlan.from_body(plan.body, planner=plan.planner)
    assert same == plan
    assert same.inputs.plan().placement == plan.goal


def test_without_chains_cache_is_left_to_routes() -> None:
    rule = PlacementRule(name=PETALS, has_chains=False)
    plan = plan_by(Orders(rule=rule), *SERVERS)
    assert plan.chains == ()
    assert plan.goal.missing(8) == ()


@pytest.mark.parametrize(("wire_bytes", "tokens"), [(8192, PETALS_SHARED_TOKENS), (5000, PETALS_TOKENS)])
def test_petals_allots_cache_by_how_many_heads_have_keys_of_their_own(wire_bytes: int, tokens: int) -> None:
    planner = Planner(
        peer("a"),
        model_digest=MODEL_DIGEST,
        model=ModelFacts(num_blocks=8, longest_tokens=8192, wire_bytes=wire_bytes),
        orders=Orders(rule=PlacementRule(name=PETALS)),
    )
    view = make_view(SERVERS, taken_at=NOW)
    job = planner.consider(view, None, now_s=0.0) or planner.consider(view, None, now_s=60.0)
    assert job is not None
    assert job.inputs.rule.cache_tokens == tokens


def test_a_load_that_is_ordered_is_planned_for_whatever_comes() -> None:
    busy = Demand(num_requests=6000, window_s=60.0, input_tokens=900.0, output_tokens=90.0)
    servers = [replace(one, offer=replace(one.offer, demand=busy)) for one in SERVERS if one.offer]
    job = job_of(Orders(demand=LOAD, slot_tokens=256), *servers)
    assert job is not None
    inputs = job.inputs
    assert (inputs.arrival_rate, inputs.input_tokens, inputs.output_tokens) == (2.0, 100.0, 10.0)
    assert inputs.slot_tokens == 256
    plan = job.carry_out()
    assert plan.is_settled
    assert job_of(Orders(demand=LOAD, slot_tokens=256), *servers, current=plan, at_s=1e6) is None
    assert job_of(Orders(), *servers, current=plan, at_s=1e6) is not None


def test_pinned_servers_take_no_part_where_every_server_is_placed() -> None:
    pinned = server("d", Span(0, 3), pinned=True)
    plan = plan_by(Orders(rule=PlacementRule(name=WHOLE_MODEL)), *SERVERS, pinned)
    assert "pinned" in plan.left_out[pinned.peer]
    assert pinned.peer not in plan.goal.spans
