"""Servers that fail and join while sessions run: nothing is lost, and no token comes twice."""

import random
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_swarms import A, B, C, D, planned, play, server

from chainserve.planning.dispatch import JoinFastestFree, JoinShortestQueue, ShortestExpectedDelay
from chainserve.planning.values import PlannedChain
from chainserve.simulator.tokens.membership import Change, Fail, Join
from chainserve.simulator.tokens.outcome import TokenOutcome
from chainserve.simulator.tokens.values import Mode, Protocol
from chainserve.simulator.workloads import Requests, make_requests
from chainserve.types import PeerId

FAST, SLOW = planned((A, 0, 1), (B, 1, 2)), planned((C, 0, 2), service_s=3.0)
ONE = make_requests([0.0], input_tokens=10, output_tokens=21)  # on FAST: first token at 1.2 s, then each 0.4 s


@pytest.mark.parametrize("mode", list(Mode))
def test_a_session_whose_server_fails_is_replayed_on_another_chain(mode: Mode) -> None:
    outcome = play(
        ONE, [server(A), server(B), server(C)], [FAST, SLOW], changes=[Fail(3.7, B)], protocol=Protocol(mode=mode)
    )
    assert outcome.num_replays.tolist() == [1]
    assert outcome.chain.tolist() == [0]  # SLOW is the only chain of the second plan
    assert outcome.first_token_s[0] == pytest.approx(1.2)
    # Tokens 1 to 7 came until 3.6 s. At 8.7 s the failure is noticed, and 17 known tokens are prefilled on c.
    assert outcome.finish_s[0] == pytest.approx(3.7 + 5 + 2 * (0.5 + 17 * 0.01) + 13 * 2 * 0.2)
    assert outcome.servers[C][0].num_prefilled == 17
    assert outcome.servers[C][0].num_decoded == 13
    assert outcome.servers[B][0].up_s == pytest.approx(3.7)
    assert outcome.servers[B][0].busy_s == pytest.approx(0.6 + 6 * 0.2)


def test_a_server_that_fails_in_an_iteration_was_busy_until_then() -> None:
    outcome = play(ONE, [server(A), server(B), server(C)], [FAST, SLOW], changes=[Fail(0.4, A)])
    assert outcome.servers[A][0].busy_s == pytest.approx(0.4)
    assert outcome.servers[A][0].utilization == pytest.approx(1)


def test_a_session_that_is_past_the_server_that_fails_ends_as_if_nothing_was() -> None:
    single = make_requests([0.0], input_tokens=10)
    outcome = play(single, [server(A), server(B)], [FAST], changes=[Fail(1.0, A)])
    assert outcome.finish_s[0] == pytest.approx(1.2)
    assert outcome.num_replays[0] == 0


def test_sessions_opened_before_a_failure_is_noticed_are_lost_with_it() -> None:
    requests = make_requests([0.0, 2.0], input_tokens=10)
    outcome = play(requests, [server(A), server(B), server(C)], [FAST, SLOW], changes=[Fail(1.5, A)])
    assert outcome.num_replays.tolist() == [0, 1]
    assert outcome.start_s[1] == 2.0  # the first start
    assert outcome.finish_s[1] == pytest.approx(6.5 + 1.2)
    assert outcome.servers[A][0].num_prefilled == 10  # what is sent to a server that failed is not computed


def test_sessions_wait_while_there_is_no_chain() -> None:
    requests = make_requests([0.0, 7.0], input_tokens=10, output_tokens=5)
    outcome = play(requests, [server(A), server(B)], [FAST, SLOW], changes=[Fail(1.0, A), Join(30.0, server(C))])
    assert outcome.start_s.tolist() == [0.0, 30.0]
    assert outcome.num_replays.tolist() == [1, 0]
    assert outcome.first_token_s[0] == pytest.approx(1.2)
    assert min(outcome.finish_s[0], outcome.first_token_s[1]) > 30


def test_sessions_are_refused_when_no_server_is_left_to_come() -> None:
    requests = make_requests([0.0, 7.0], input_tokens=10, output_tokens=5)
    outcome = play(requests, [server(A), server(B)], [FAST], changes=[Fail(1.5, A)])
    assert outcome.is_refused.all()
    assert np.isnan(outcome.start_s).all()
    assert np.isnan(outcome.first_token_s).all()
    assert outcome.num_replays.tolist() == [1, 0]


def test_a_server_that_comes_back_before_its_failure_was_noticed_starts_empty() -> None:
    outcome = play(ONE, [server(A), server(B)], [FAST], changes=[Fail(2.5, B), Join(3.0, server(B))])
    assert outcome.num_replays.tolist() == [1]
    # Tokens came at 1.2, 1.6, 2.0, 2.4 s; 14 are known at 3 s.
    assert outcome.finish_s[0] == pytest.approx(3.0 + 2 * 0.64 + 16 * 0.4)
    assert [use.num_prefilled for use in outcome.servers[B]] == [10, 14]
    assert outcome.servers[B][0].up_s == pytest.approx(2.5)


def test_a_server_that_joins_is_used() -> None:
    requests = make_requests([0.0, 0.1, 0.2, 0.3], input_tokens=10, output_tokens=11)
    crowded = [planned((A, 0, 2), capacity=1), planned((B, 0, 2), capacity=3, service_s=0.5)]
    outcome = play(requests, [server(A)], crowded, changes=[Join(2.0, server(B))])
    assert outcome.start_s[1:].tolist() == [2.0, 2.0, 2.0]
    assert outcome.chain.tolist() == [0, 1, 1, 1]
    assert outcome.servers[B][0].up_s == pytest.approx(outcome.end_s - 2.0)


def test_a_new_plan_counts_the_sessions_that_run_on_its_chains() -> None:
    requests = make_requests([0.0, 1.0], input_tokens=10, output_tokens=11)
    outcome = play(requests, [server(A)], [planned((A, 0, 2), capacity=1)], changes=[Join(2.0, server(B))])
    assert outcome.start_s[1] == outcome.finish_s[0]


def test_a_session_stays_on_a_chain_that_is_planned_no_more() -> None:
    def replan(live: frozenset[PeerId]) -> list[PlannedChain]:
        return [planned((B, 0, 2), capacity=1)] if B in live else [planned((A, 0, 2), capacity=1)]

    requests = make_requests([0.0, 1.0], input_tokens=10, output_tokens=11)
    outcome = play(requests, [server(A)], [], replan=replan, changes=[Join(2.0, server(B))])
    assert outcome.start_s.tolist() == [0.0, 2.0]
    assert outcome.finish_s[0] == pytest.approx(1.2 + 10 * 0.4)
    assert outcome.num_replays.tolist() == [0, 0]


def test_a_replay_goes_before_those_that_came_later() -> None:
    requests = make_requests([0.0, 0.1, 0.2], input_tokens=10, output_tokens=21)
    chains = [planned((A, 0, 2), capacity=1), planned((B, 0, 2), capacity=1, service_s=2.0)]
    outcome = play(requests, [server(A), server(B)], chains, changes=[Fail(0.5, A)])
    assert outcome.num_replays.tolist() == [1, 0, 0]
    assert outcome.finish_s[1] < outcome.finish_s[0] < outcome.finish_s[2]
    assert outcome.start_s[2] == outcome.finish_s[0]


def test_a_prompt_of_a_lost_session_that_waits_at_another_server_is_not_run() -> None:
    # The long prompt keeps b busy until 11 s; that of the second request is there at 0.7 s.
    requests = make_requests([0.0, 0.1], input_tokens=[500, 10], output_tokens=[1, 5])
    chains = [planned((B, 0, 2), capacity=1), planned((A, 0, 1), (B, 1, 2), service_s=2.0)]
    outcome = play(requests, [server(A), server(B)], chains, changes=[Fail(1.0, A)], protocol=Protocol(detection_s=0))
    [use] = outcome.servers[B]
    assert (use.num_prefilled, use.num_decoded) == (500 + 10, 4)


def test_a_step_of_a_lost_session_that_waits_at_another_server_is_not_run() -> None:
    # The long prompt keeps b busy from 1.3 to 12.3 s; the second token of the first request is there at 1.4 s.
    requests = make_requests([0.0, 1.3], input_tokens=[10, 500], output_tokens=[5, 1])
    chains = [planned((A, 0, 1), (B, 1, 2), capacity=1), planned((B, 0, 2), capacity=1, service_s=2.0)]
    outcome = play(requests, [server(A), server(B)], chains, changes=[Fail(2.0, A)], protocol=Protocol(detection_s=0))
    [use] = outcome.servers[B]
    assert (use.num_prefilled, use.num_decoded) == (10 + 500 + 11, 3)


def test_a_token_on_its_way_to_the_client_is_made_again_after_a_loss() -> None:
    outcome = play(
        make_requests([0.0], input_tokens=10, output_tokens=2),
        [server(A), server(B), server(C)],
        [FAST, SLOW],
        delay_s=1.0,
        changes=[Fail(6.5, A)],  # the first token left b at 3 + 1 + 0.6 + 1 + 0.6 = 6.2 s
        protocol=Protocol(detection_s=0),
    )
    assert outcome.first_token_s[0] == pytest.approx(6.5 + 2 + 1 + 1.2 + 1)
    assert outcome.inter_token_s[0] == pytest.approx(2 + 0.4)


def test_after_a_failure_the_chains_are_chosen_anew_in_order_of_arrival() -> None:
    requests = make_requests([0.0, 0.1, 0.2], input_tokens=10, output_tokens=21)
    chains = [planned((peer, 0, 2), capacity=1, service_s=time_s) for peer, time_s in ((A, 1.0), (B, 2.5), (C, 6.0))]
    outcome = play(
        requests, [server(A), server(B), server(C)], chains, changes=[Fail(0.5, A)], make_policy=ShortestExpectedDelay
    )
    # The second waited for a. Now b is taken and the first waits for it, which leaves c for the second.
    assert outcome.num_replays.tolist() == [1, 0, 0]
    assert outcome.chain.tolist() == [0, 1, 1]  # of b and c, and for the third of a, b and c
    assert outcome.start_s[1] == 5.5
    assert outcome.start_s[2] < outcome.finish_s[2] < outcome.finish_s[0]


POOL = (
    planned((A, 0, 2), (B, 2, 3), capacity=2, service_s=2.0),
    planned((C, 0, 1), (B, 1, 3), capacity=1, service_s=1.0),
    planned((C, 0, 1), (D, 1, 2), (B, 2, 3), capacity=3, service_s=4.0),
    planned((D, 0, 3), capacity=1, service_s=1.5),
)
POLICIES = {
    "JFFC": lambda seed: JoinFastestFree,
    "SED": lambda seed: ShortestExpectedDelay,
    "JSQ": lambda seed: partial(JoinShortestQueue, rng=random.Random(seed)),
}


@st.composite
def changes(draw: st.DrawFn) -> list[Change]:
    """Failures and returns of four servers, with caches of any size."""
    live, at_s = dict.fromkeys((A, B, C, D), True), 0.0
    made: list[Change] = []
    for _ in range(draw(st.integers(0, 8))):
        at_s += draw(st.floats(0, 20))
        peer = draw(st.sampled_from((A, B, C, D)))
        cache_tokens = draw(st.integers(50, 500))
        made.append(Fail(at_s, peer) if live[peer] else Join(at_s, server(peer, cache_tokens=cache_tokens)))
        live[peer] = not live[peer]
    return made


@st.composite
def some_requests(draw: st.DrawFn) -> Requests:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    num = draw(st.integers(1, 15))
    return make_requests(
        np.cumsum(rng.exponential(draw(st.sampled_from((0.01, 1.0, 5.0))), num)),
        input_tokens=rng.integers(1, 60, num),
        output_tokens=rng.integers(1, 30, num),
    )


@given(
    requests=some_requests(),
    made=changes(),
    mode=st.sampled_from(Mode),
    policy=st.sampled_from(sorted(POLICIES)),
    cache_tokens=st.integers(50, 500),
    max_batch_tokens=st.sampled_from((1, 3, 1024)),
    delay_s=st.sampled_from((0.0, 0.3)),
    detection_s=st.sampled_from((0.0, 5.0)),
)
@settings(max_examples=100, deadline=None)
def test_whatever_fails_every_request_is_finished_or_refused(
    requests: Requests,
    made: list[Change],
    mode: Mode,
    policy: str,
    cache_tokens: int,
    max_batch_tokens: int,
    delay_s: float,
    detection_s: float,
) -> None:
    def once() -> TokenOutcome:
        return play(
            requests,
            [server(peer, cache_tokens=cache_tokens, max_batch_tokens=max_batch_tokens) for peer in (A, B, C, D)],
            POOL,
            delay_s=delay_s,
            bytes_per_s=5000,
            make_policy=POLICIES[policy](1),
            changes=made,
            protocol=Protocol(mode=mode, hidden_bytes=10, token_bytes=4, chunk_tokens=16, detection_s=detection_s),
        )

    outcome = once()
    served = ~outcome.is_refused
    assert (outcome.start_s[served] >= requests.arrival_s[served]).all()
    assert (outcome.first_token_s[served] > outcome.start_s[served]).all()
    assert (outcome.finish_s[served] >= outcome.first_token_s[served]).all()
    assert (np.isnan(outcome.start_s) == ~served).all()
    assert (outcome.chain[served] >= 0).all()
    uses = [use for of_peer in outcome.servers.values() for use in of_peer]
    assert all(0 <= use.busy_s <= use.up_s * (1 + 1e-9) for use in uses)
    if not any(isinstance(change, Fail) for change in made):
        assert not outcome.num_replays.any()
    if not made:
        num_hops = np.array([len(chain.chain.hops) for chain in POOL])[outcome.chain[served]]
        assert sum(use.num_prefilled for use in uses) == (requests.input_tokens[served] * num_hops).sum()
        assert sum(use.num_decoded for use in uses) == ((requests.output_tokens[served] - 1) * num_hops).sum()
        if policy == "JFFC":
            assert (np.diff(outcome.start_s[served]) >= 0).all()
    again = once()
    assert again.finish_s.tobytes() == outcome.finish_s.tobytes()
    assert again.servers == outcome.servers
