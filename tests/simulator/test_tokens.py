"""Sessions token by token: closed forms for one, batching and queueing for several."""

import random
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_swarms import SPEED, A, B, C, planned, play, server

from chainserve.planning.dispatch import JoinIdle, JoinShortestQueue, RandomChain, ShortestExpectedDelay
from chainserve.planning.times import BlockTimes
from chainserve.simulator.engine import InvariantError
from chainserve.simulator.report import summarize
from chainserve.simulator.tokens.run import CLIENT
from chainserve.simulator.tokens.values import Link, Mode, Protocol, ServerSpeed
from chainserve.simulator.workloads import make_requests

HIDDEN = Protocol(hidden_bytes=100, message_bytes=10)


@given(input_tokens=st.integers(1, 512), output_tokens=st.integers(1, 20), num_blocks=st.integers(1, 9))
@settings(max_examples=30)
def test_one_session_on_one_server_takes_the_time_of_the_papers_model(
    input_tokens: int, output_tokens: int, num_blocks: int
) -> None:
    times = BlockTimes(overhead_s=0.5, prefill_s=0.01, decode_s=0.2)
    requests = make_requests([3.0], input_tokens=input_tokens, output_tokens=output_tokens)
    outcome = play(requests, [server(A, speed=ServerSpeed.of(times))], [planned((A, 0, num_blocks))])
    assert outcome.response_s[0] == pytest.approx(num_blocks * times.request_s(input_tokens, output_tokens))
    assert outcome.waiting_s[0] == 0
    [use] = outcome.servers[A]
    assert use.busy_s == pytest.approx(outcome.service_s[0])
    assert use.up_s == pytest.approx(3 + outcome.service_s[0])
    assert use.utilization == pytest.approx(use.busy_s / use.up_s)
    assert (use.num_prefilled, use.num_decoded) == (input_tokens, output_tokens - 1)
    assert outcome.num_iterations == output_tokens


def test_a_prompt_pays_the_overhead_once_per_chunk() -> None:
    requests = make_requests([0.0], input_tokens=1100)
    outcome = play(requests, [server(A)], [planned((A, 0, 2))])
    assert outcome.response_s[0] == pytest.approx(2 * (3 * 0.5 + 1100 * 0.01))


def test_one_session_on_a_chain_takes_the_sum_of_its_servers_and_links() -> None:
    requests = make_requests([0.0], input_tokens=10, output_tokens=4)
    outcome = play(
        requests,
        [server(A), server(B)],
        [planned((A, 0, 1), (B, 1, 3))],
        link_of=lambda sender, receiver: Link(
            delay_s=1.0 if CLIENT in (sender, receiver) else 0.25, bytes_per_s=1000 if receiver == B else 500
        ),
        protocol=HIDDEN,
    )
    opened = 1 + 0.25 + 1
    first = opened + (1 + 1010 / 500) + 0.6 + (0.25 + 1010 / 1000) + 2 * 0.6 + (1 + 110 / 500)
    trip = (1 + 110 / 500) + 0.2 + (0.25 + 110 / 1000) + 2 * 0.2 + (1 + 110 / 500)
    assert outcome.time_to_first_token_s[0] == pytest.approx(first)
    assert outcome.inter_token_s[0] == pytest.approx(trip)
    assert outcome.finish_s[0] == outcome.end_s == pytest.approx(first + 3 * trip)


def test_in_token_mode_the_prompt_goes_ahead_and_the_client_is_not_in_the_loop() -> None:
    requests = make_requests([0.0], input_tokens=10, output_tokens=4)
    outcome = play(
        requests,
        [server(A), server(B)],
        [planned((A, 0, 1), (B, 1, 3))],
        link_of=lambda sender, receiver: Link(
            delay_s=1.0 if CLIENT in (sender, receiver) else 0.25, bytes_per_s=1000 if receiver == B else 500
        ),
        protocol=Protocol(mode=Mode.TOKEN, hidden_bytes=100, token_bytes=4),
    )
    first = (1 + 40 / 500) + 0.6 + (0.25 + 1) + 2 * 0.6 + (1 + 4 / 500)
    trip = (0.25 + 4 / 500) + 0.2 + (0.25 + 100 / 1000) + 2 * 0.2
    assert outcome.time_to_first_token_s[0] == pytest.approx(first)
    assert outcome.inter_token_s[0] == pytest.approx(trip)


def test_a_request_of_one_token_has_no_time_between_tokens() -> None:
    outcome = play(make_requests([0.0]), [server(A)], [planned((A, 0, 1))])
    assert np.isnan(outcome.inter_token_s[0])
    assert outcome.time_to_first_token_s[0] == outcome.response_s[0]


def test_sessions_that_share_iterations_give_more_tokens_per_second() -> None:
    requests = make_requests([0.0] * 4, input_tokens=10, output_tokens=101)
    outcome = play(requests, [server(A)], [planned((A, 0, 1))], protocol=Protocol(mode=Mode.TOKEN))
    # The prompt that came first is alone in its iteration; the others share the next, with the first's second token.
    assert outcome.first_token_s.tolist() == pytest.approx([0.6, *[0.6 + 0.2 + 0.5 + 30 * 0.01] * 3])
    assert outcome.finish_s[0] == pytest.approx(1.6 + 99 * 0.2)
    assert outcome.finish_s[3] == pytest.approx(1.6 + 100 * 0.2)
    assert outcome.num_iterations == 102


def test_many_sessions_decode_as_fast_as_they_can_be_computed() -> None:
    requests = make_requests([0.0] * 10, input_tokens=10, output_tokens=3)
    alone = play(make_requests([0.0], input_tokens=10, output_tokens=3), [server(A)], [planned((A, 0, 1))])
    together = play(requests, [server(A)], [planned((A, 0, 1), capacity=10)], protocol=Protocol(mode=Mode.TOKEN))
    prefills = 0.6 + (0.2 + 0.5 + 0.9)
    assert together.end_s == pytest.approx(prefills + 10 * SPEED.session_s + 9 * SPEED.session_s)
    assert alone.end_s == pytest.approx(0.6 + 2 * 0.2)


def test_a_step_that_is_on_its_way_to_the_client_misses_the_iteration() -> None:
    requests = make_requests([0.0, 0.0], input_tokens=10, output_tokens=11)
    outcome = play(requests, [server(A)], [planned((A, 0, 1))])
    assert outcome.end_s == pytest.approx(2 * (0.6 + 10 * 0.2))  # they take turns for good


def test_sessions_over_different_blocks_of_a_server_take_a_forward_each() -> None:
    outcome = play(
        make_requests([0.0, 0.1, 0.2], input_tokens=10),
        [server(A), server(B)],
        [planned((A, 0, 3), capacity=2), planned((B, 0, 2), (A, 2, 3), service_s=2.0)],
    )
    assert outcome.chain.tolist() == [0, 0, 1]
    assert outcome.finish_s.tolist() == pytest.approx([1.8, 1.8 + 1.8 + 0.6, 1.8 + 1.8 + 0.6])
    assert outcome.num_iterations == 3


def test_the_servers_of_a_chain_prefill_a_long_prompt_at_the_same_time() -> None:
    requests = make_requests([0.0], input_tokens=4 * 512)
    outcome = play(requests, [server(A), server(B), server(C)], [planned((A, 0, 1), (B, 1, 2), (C, 2, 3))])
    assert outcome.response_s[0] == pytest.approx((4 + 3 - 1) * (0.5 + 512 * 0.01))


def test_messages_on_a_link_wait_for_each_other_but_not_for_the_delay() -> None:
    requests = make_requests([0.0], input_tokens=30)
    speed = ServerSpeed(overhead_s=0, prefill_s=0, decode_s=0, session_s=0)
    outcome = play(
        requests,
        [server(A, speed=speed)],
        [planned((A, 0, 1))],
        delay_s=2.0,
        bytes_per_s=100,
        protocol=Protocol(hidden_bytes=10, chunk_tokens=10),
    )
    assert outcome.response_s[0] == pytest.approx(4 + (3 * 1.0 + 2) + (0.1 + 2))


def test_short_steps_go_before_long_prompts() -> None:
    requests = make_requests([0.0, 0.1, 0.2], input_tokens=[100, 500, 5], output_tokens=[3, 1, 1])
    outcome = play(
        requests, [server(A, max_batch_tokens=100)], [planned((A, 0, 1))], protocol=Protocol(mode=Mode.TOKEN)
    )
    second = 1.5 + 0.2 + 0.5 + 0.05  # a decode step and the short prompt; the long one does not fit beside
    assert outcome.finish_s.tolist() == pytest.approx([second + 0.2, second + 0.2 + 5.5, second])


def test_an_iteration_takes_no_more_decode_steps_than_tokens() -> None:
    requests = make_requests([0.0] * 5, input_tokens=1, output_tokens=3)
    whole = play(requests, [server(A)], [planned((A, 0, 1))], protocol=Protocol(mode=Mode.TOKEN))
    parts = play(requests, [server(A, max_batch_tokens=2)], [planned((A, 0, 1))], protocol=Protocol(mode=Mode.TOKEN))
    [use] = parts.servers[A]
    assert use.num_decoded == whole.servers[A][0].num_decoded == 10
    assert use.num_iterations >= 15 / 2
    assert parts.end_s > whole.end_s


def test_requests_wait_in_order_until_the_cache_has_room_for_their_tokens() -> None:
    # Room for 100 tokens in two blocks: the second request does not fit beside the first, the third would.
    requests = make_requests([0.0, 0.1, 0.2], input_tokens=[60, 60, 10], output_tokens=[20, 20, 10])
    outcome = play(requests, [server(A, cache_tokens=200)], [planned((A, 0, 2), capacity=9)])
    assert outcome.start_s[0] == 0
    assert outcome.start_s[1] == outcome.start_s[2] == outcome.finish_s[0]
    assert summarize(outcome).waiting.mean_s == pytest.approx(outcome.waiting_s.mean())


def test_a_chain_without_room_for_the_tokens_counts_as_full() -> None:
    requests = make_requests([0.0, 0.1], input_tokens=60, output_tokens=20)
    outcome = play(
        requests,
        [server(A, cache_tokens=100), server(B, cache_tokens=100)],
        [planned((A, 0, 1)), planned((B, 0, 1), service_s=2.0)],
    )
    assert outcome.chain.tolist() == [0, 1]
    assert outcome.waiting_s.tolist() == [0, 0]


def test_a_chain_holds_no_more_sessions_than_planned() -> None:
    requests = make_requests([0.0, 0.1, 0.2], input_tokens=10, output_tokens=5)
    outcome = play(requests, [server(A)], [planned((A, 0, 1), capacity=1)])
    assert outcome.start_s[1:].tolist() == outcome.finish_s[:-1].tolist()


def test_a_request_that_no_chain_could_ever_hold_is_refused() -> None:
    requests = make_requests([0.0, 0.1], input_tokens=[100, 10], output_tokens=1)
    outcome = play(requests, [server(A, cache_tokens=100)], [planned((A, 0, 1))])
    assert outcome.is_refused.tolist() == [True, False]
    assert np.isnan(outcome.start_s[0])
    assert outcome.chain.tolist() == [-1, 0]


def test_a_policy_without_a_central_queue_has_one_per_chain() -> None:
    requests = make_requests([0.0, 0.1, 0.2, 0.3], input_tokens=10, output_tokens=5)
    chains = [planned((A, 0, 1), capacity=1), planned((B, 0, 1), capacity=1, service_s=1.4)]
    outcome = play(requests, [server(A), server(B)], chains, make_policy=ShortestExpectedDelay)
    assert outcome.chain.tolist() == [0, 1, 0, 1]
    assert outcome.start_s[2:].tolist() == outcome.finish_s[:2].tolist()


def test_a_policy_that_knows_no_tokens_is_overruled_where_the_cache_is_too_small() -> None:
    requests = make_requests([0.0] * 3, input_tokens=100)
    small = [planned((A, 0, 1)), planned((B, 0, 1), service_s=9.0), planned((C, 0, 1), service_s=9.0)]
    outcome = play(
        requests,
        [server(A, cache_tokens=10), server(B), server(C)],
        small,
        make_policy=ShortestExpectedDelay,
    )
    assert outcome.chain.tolist() == [1, 2, 1]


@pytest.mark.parametrize("policy", [RandomChain, JoinIdle, JoinShortestQueue])
def test_equal_inputs_give_equal_runs(policy: type) -> None:
    rng = np.random.default_rng(5)
    requests = make_requests(
        np.cumsum(rng.exponential(3.0, 40)), input_tokens=rng.integers(1, 900, 40), output_tokens=rng.integers(1, 9, 40)
    )
    chains = [planned((A, 0, 1), (B, 1, 2), capacity=3), planned((C, 0, 2), capacity=2)]

    def once(seed: int) -> list[float]:
        make_policy = partial(policy, rng=random.Random(seed))
        outcome = play(requests, [server(A), server(B), server(C)], chains, delay_s=0.1, make_policy=make_policy)
        return outcome.finish_s.tolist()

    assert once(1) == once(1)
    assert once(1) != once(2)


class Unreasonable:
    """A policy that always says the same."""

    def __init__(self, answer: int | None, *, is_central: bool) -> None:
        self.is_central = is_central
        self._answer = answer

    def choose(self, num_sessions: object, num_waiting: int = 1) -> int | None:
        return self._answer


def test_a_policy_that_overfills_a_chain_is_an_error() -> None:
    requests = make_requests([0.0, 0.1])
    with pytest.raises(InvariantError, match="request 1 is sent to chain 0, which is full"):
        play(
            requests,
            [server(A)],
            [planned((A, 0, 1), capacity=1)],
            make_policy=lambda rates, capacities: Unreasonable(0, is_central=True),
        )


def test_a_policy_that_has_no_queue_and_names_no_chain_is_an_error() -> None:
    with pytest.raises(InvariantError, match="central queue"):
        play(
            make_requests([0.0]),
            [server(A)],
            [planned((A, 0, 1))],
            make_policy=lambda rates, capacities: Unreasonable(None, is_central=False),
        )


def test_requests_that_wait_when_nothing_can_happen_are_refused() -> None:
    outcome = play(
        make_requests([0.0, 1.0]),
        [server(A)],
        [planned((A, 0, 1))],
        make_policy=lambda rates, capacities: Unreasonable(None, is_central=True),
    )
    assert outcome.is_refused.all()
    assert outcome.servers[A][0].busy_s == 0
