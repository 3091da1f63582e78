"""Routes, places in tokens and slow starts in the token-level simulator."""

import pytest
from token_swarms import A, B, C, planned, play, server

from chainserve.planning.baselines.petals import BANNED_FOR_S
from chainserve.planning.baselines.routes import Routes
from chainserve.planning.dispatch import JoinFastestFree
from chainserve.planning.values import Placement
from chainserve.simulator.tokens.admission import Slots
from chainserve.simulator.tokens.links import Wires
from chainserve.simulator.tokens.membership import Fail
from chainserve.simulator.tokens.outcome import TokenOutcome
from chainserve.simulator.tokens.routed import BprrRouting, PetalsRouting, Servers
from chainserve.simulator.tokens.run import simulate
from chainserve.simulator.tokens.values import Link, Protocol
from chainserve.simulator.workloads import Requests, make_requests
from chainserve.types import Span

PLACEMENT = Placement({A: Span(0, 2), B: Span(0, 2)})
COST_S = {A: 1.0, B: 3.0}
TOKENS = 20
ALONE_S = 2 * (0.5 + 0.01 * 10) + 9 * 2 * 0.2


def routed(requests: Requests, rule: str, *, cache_tokens: int, delay_s: float = 0.0) -> TokenOutcome:
    routes = Routes(PLACEMENT, 2, hop_s=lambda _before, hop: COST_S[hop.peer])

    def make(servers: Servers) -> BprrRouting | PetalsRouting:
        if rule == "bprr":
            return BprrRouting(routes, servers)
        return PetalsRouting(PLACEMENT, routes, servers, period_s=1000.0)

    return simulate(
        requests,
        [server(A, cache_tokens=cache_tokens), server(B, cache_tokens=cache_tokens)],
        link_of=lambda _sender, _receiver: Link(delay_s=delay_s),
        replan=lambda _live: [],
        make_policy=JoinFastestFree,
        make_routing=make,
    )


def requests_at(*arrival_s: float) -> Requests:
    return make_requests(list(arrival_s), input_tokens=10, output_tokens=10)


@pytest.mark.parametrize("rule", ["petals", "bprr"])
def test_a_session_takes_the_route_that_looks_fastest(rule: str) -> None:
    outcome = routed(requests_at(0.0), rule, cache_tokens=1000)
    assert outcome.response_s[0] == pytest.approx(ALONE_S)
    assert outcome.servers[B][0].num_iterations == 0


def test_petals_goes_around_a_server_that_refused_and_tries_at_once() -> None:
    outcome = routed(requests_at(0.0, 0.1), "petals", cache_tokens=2 * TOKENS)
    assert outcome.servers[B][0].num_iterations > 0
    assert outcome.start_s[1] == pytest.approx(0.1)


def test_petals_tries_again_later_and_later_where_all_are_full() -> None:
    outcome = routed(requests_at(0.0, 0.1, 0.2), "petals", cache_tokens=2 * TOKENS)
    ends_s = min(outcome.finish_s[:2])
    assert ends_s < outcome.start_s[2] <= 0.2 + BANNED_FOR_S
    assert (outcome.start_s[2] - 0.2) in (1.0, 3.0, 7.0, 15.0)


def test_a_refusal_costs_the_way_there_and_back() -> None:
    outcome = routed(requests_at(0.0, 0.1), "petals", cache_tokens=2 * TOKENS, delay_s=0.25)
    assert outcome.start_s[1] == pytest.approx(0.1 + 0.5)


def test_bprr_waits_for_the_fast_server_if_that_seems_shorter_and_starts_as_it_is_free() -> None:
    outcome = routed(requests_at(0.0, 0.1), "bprr", cache_tokens=2 * TOKENS)
    assert outcome.servers[B][0].num_iterations == 0
    assert outcome.start_s[1] == pytest.approx(outcome.finish_s[0])


def test_bprr_serves_in_order_of_arrival() -> None:
    outcome = routed(requests_at(0.0, 0.1, 0.2, 0.3, 0.4), "bprr", cache_tokens=2 * TOKENS)
    assert not outcome.is_refused.any()
    for chain in set(outcome.chain.tolist()):
        start_s = outcome.start_s[outcome.chain == chain]
        assert sorted(start_s) == list(start_s)


@pytest.mark.parametrize("rule", ["petals", "bprr"])
def test_what_no_cache_can_hold_is_refused(rule: str) -> None:
    outcome = routed(requests_at(0.0), rule, cache_tokens=TOKENS)
    assert outcome.is_refused.all()


def test_routes_are_for_servers_that_stay() -> None:
    with pytest.raises(ValueError, match="do not change"):
        simulate(
            requests_at(0.0),
            [server(A)],
            link_of=lambda _sender, _receiver: Link(delay_s=0),
            replan=lambda _live: [],
            make_policy=JoinFastestFree,
            make_routing=lambda _servers: pytest.fail("never made"),
            changes=[Fail(at_s=1.0, peer=A)],
        )


def test_places_may_count_in_tokens() -> None:
    requests = make_requests([0.0] * 4, input_tokens=10, output_tokens=10)
    slots = Slots(slot_tokens=30, mean_tokens=20.0)
    outcome = simulate(
        requests,
        [server(A)],
        link_of=lambda _sender, _receiver: Link(delay_s=0),
        replan=lambda _live: [planned((A, 0, 2), capacity=2)],
        make_policy=JoinFastestFree,
        slots=slots,
    )
    assert (outcome.start_s == 0).sum() == 3  # 60 tokens of room


def test_asking_for_a_place_takes_the_way_to_the_head_and_back() -> None:
    chain = [planned((A, 0, 1), (B, 1, 2))]
    asks, goes = (
        play(requests_at(0.0), [server(A), server(B)], chain, delay_s=1.0, protocol=Protocol(asks_for_place=is_asked))
        for is_asked in (True, False)
    )
    assert asks.opened_s[0] == goes.opened_s[0] + 2 == 5
    assert asks.response_s[0] == pytest.approx(goes.response_s[0] + 2)


def test_an_idle_link_starts_slowly_and_a_used_one_does_not() -> None:
    wires = Wires(lambda _sender, _receiver: Link(delay_s=1.0, window_bytes=10, idle_s=5.0))
    assert wires.send(A, B, now_s=0.0, num_bytes=10) == 1.0
    assert wires.send(A, C, now_s=0.0, num_bytes=70) == 1.0 + 2 * 2  # 10, 20, 40
    assert wires.send(A, C, now_s=4.0, num_bytes=40) == 4.0 + 1.0  # still 40
    assert wires.send(A, C, now_s=20.0, num_bytes=70) == 20.0 + 1.0 + 2 * 2
    assert wires.send(A, B, now_s=100.0, num_bytes=10) == 101.0
