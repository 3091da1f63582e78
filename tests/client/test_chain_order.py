"""Which of the plan's chains a request may take, and in which order."""

from dataclasses import replace

import pytest
from live_swarms import peer, plan_of, server

from chainserve.planning.values import Placement, PlannedChain
from chainserve.swarm.plans import SwarmPlan
from chainserve.types import Chain, Hop, PeerId, Span
from chainserve_client.dispatch import planned_chains, step_predictor

SPANS = {"a": Span(0, 8), "b": Span(0, 4), "c": Span(4, 8), "d": Span(4, 8)}
SPEEDS = {"a": 1.0, "b": 4.0, "c": 4.0, "d": 2.0}
SERVERS = [server(name, span, pinned=True, speed=SPEEDS[name]) for name, span in SPANS.items()]


def chain(*names: str) -> Chain:
    return Chain(tuple(Hop(peer(name), SPANS[name]) for name in names))


def plan(capacity: int = 2) -> SwarmPlan:
    placement = Placement({peer(name): span for name, span in SPANS.items()})
    chains = tuple(PlannedChain(chain(*names), capacity, 1.0) for names in ("a", "bc", "bd"))
    return replace(plan_of(*SERVERS), chains=chains, placement=placement, goal=placement)


def names_of(
    plan: SwarmPlan, *, num_tokens: int = 100, far: PeerId | None = None, without: str = "", **moved: Span
) -> list[str]:
    servers = [
        replace(announced, span=moved.get(name, SPANS[name]))
        for name, announced in zip(SPANS, SERVERS, strict=True)
        if name not in without
    ]
    found = planned_chains(
        plan,
        servers,
        num_tokens=num_tokens,
        input_tokens=50,
        output_tokens=50,
        round_trip_s=lambda other: 1.0 if other == far else None,
    )
    return ["".join(hop.peer[-1] for hop in planned.chain.hops) for planned in found]


def test_the_fastest_for_the_request_comes_first() -> None:
    assert names_of(plan()) == ["bc", "bd", "a"]


def test_the_clients_own_way_to_the_ends_counts() -> None:
    assert names_of(plan(), far=peer("c")) == ["bd", "a", "bc"]


def test_chains_over_servers_that_are_gone_or_have_moved_are_left_out() -> None:
    assert names_of(plan(), without="c") == ["bd", "a"]
    assert names_of(plan(), without="b") == ["a"]
    assert names_of(plan(), c=Span(5, 8)) == ["bd", "a"]


def test_a_request_longer_than_a_places_share_needs_a_chain_with_more() -> None:
    assert names_of(plan(2), num_tokens=4096) == ["bc", "bd", "a"]
    assert names_of(plan(2), num_tokens=4097) == []


def test_a_step_is_predicted_where_all_servers_are_known() -> None:
    predict = step_predictor(plan(), chain("b", "c"))
    assert predict is not None
    assert 0 < predict(1) < predict(512)
    assert step_predictor(plan(), Chain((Hop(peer("z"), Span(0, 8)),))) is None


@pytest.mark.parametrize("name", SPANS)
def test_a_slower_server_makes_slower_steps(name: str) -> None:
    whole = Chain((Hop(peer(name), Span(0, 8)),))
    predict, slowest = step_predictor(plan(), whole), step_predictor(plan(), chain("a"))
    assert predict is not None
    assert slowest is not None
    assert predict(100) <= slowest(100)
