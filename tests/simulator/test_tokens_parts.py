"""The parts of the token-level simulator by themselves: values, queues, a server's cache, changes."""

import math

import pytest
from token_swarms import SPEED, A, B, planned, server

from chainserve.simulator.engine import InvariantError
from chainserve.simulator.tokens.admission import Admission, Queue, Route
from chainserve.simulator.tokens.membership import Fail, Join, in_order, while_live
from chainserve.simulator.tokens.servers import Leg, Server, Session, split
from chainserve.simulator.tokens.values import Link, Protocol, ServerSpeed, TokenServer
from chainserve.types import Span


def session(request: int, *, num_input: int = 1, num_output: int = 1) -> Session:
    return Session(request, num_input=num_input, num_output=num_output)


def test_a_forward_pays_for_weights_once_and_for_computation_by_the_token() -> None:
    assert SPEED.step_s(0, 0, num_blocks=3) == 0
    assert SPEED.step_s(1, 0, num_blocks=3) == SPEED.step_s(4, 0, num_blocks=3) == pytest.approx(0.6)
    assert SPEED.step_s(8, 0, num_blocks=1) == pytest.approx(0.4)
    assert SPEED.step_s(0, 100, num_blocks=1) == pytest.approx(1.5)
    assert SPEED.step_s(8, 100, num_blocks=2) == pytest.approx(2 * 1.9)


@pytest.mark.parametrize("name", ["overhead_s", "prefill_s", "decode_s", "session_s"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_times_are_finite_and_not_negative(name: str, value: float) -> None:
    times = dict.fromkeys(("overhead_s", "prefill_s", "decode_s", "session_s"), 0.1) | {name: value}
    with pytest.raises(ValueError, match=name):
        ServerSpeed(**times)


def test_servers_links_and_messages_have_sizes_that_make_sense() -> None:
    with pytest.raises(ValueError, match="a has room for 0 tokens"):
        TokenServer(peer=A, speed=SPEED, cache_tokens=0)
    with pytest.raises(ValueError, match="a takes 0 tokens per iteration"):
        server(A, max_batch_tokens=0)
    with pytest.raises(ValueError, match="delay_s"):
        Link(delay_s=-1)
    with pytest.raises(ValueError, match="bytes_per_s is nan"):
        Link(delay_s=0, bytes_per_s=math.nan)
    with pytest.raises(ValueError, match="chunk_tokens"):
        Protocol(chunk_tokens=0)
    with pytest.raises(ValueError, match="detection_s"):
        Protocol(detection_s=math.inf)
    for change in (lambda at_s: Fail(at_s, A), lambda at_s: Join(at_s, server(A))):
        with pytest.raises(ValueError, match="at_s"):
            change(math.nan)


def test_changes_come_by_time_and_fit_who_is_there() -> None:
    fail, join, again = Fail(1.0, A), Join(2.0, server(A)), Fail(3.0, A)
    assert in_order([again, join, fail], peers=[A, B]) == [fail, join, again]
    with pytest.raises(ValueError, match="two servers of one id: a"):
        in_order([], peers=[A, A])
    with pytest.raises(ValueError, match=r"a fails, but is not there at 3.0 s"):
        in_order([fail, again], peers=[A])
    with pytest.raises(ValueError, match=r"b joins, but is there at 0.5 s"):
        in_order([Join(0.5, server(B))], peers=[A, B])


def test_chains_stay_while_all_their_servers_are_there() -> None:
    both, one = planned((A, 0, 1), (B, 1, 2)), planned((A, 0, 2))
    assert while_live([both, one])(frozenset({A, B})) == [both, one]
    assert while_live([both, one])(frozenset({A})) == [one]


def test_a_queue_goes_by_arrival_and_lets_replays_in_front() -> None:
    queue, lost = Queue(), session(0)
    lost.num_replays = 1
    for one in (session(3), session(2), lost):
        queue.push(one)
    assert queue.first is lost
    assert [queue.pop().request for _ in range(3)] == [0, 2, 3]
    queue.push(session(1))
    with pytest.raises(InvariantError, match="request 1 is overtaken by request 3"):
        queue.pop()


def test_a_server_never_promises_more_cache_than_it_has() -> None:
    held = Server(server(A, cache_tokens=100), now_s=0.0)
    held.reserve(session(0, num_input=20, num_output=5), Span(0, 3))
    assert held.num_free == 25
    with pytest.raises(InvariantError, match="request 1 takes 26 tokens on a, 25 are free"):
        held.reserve(session(1, num_input=10, num_output=3), Span(0, 2))
    held.release(session(0, num_input=20, num_output=5), Span(0, 3))
    assert held.num_free == 100


def test_a_server_that_was_never_there_has_no_utilization() -> None:
    assert Server(server(A), now_s=1.0).use(1.0).utilization == 0


def test_decode_steps_are_split_in_their_order() -> None:
    one = Server(server(A), now_s=0.0)
    legs = [Leg(one, Span(0, 1), head=None) for _ in range(3)]
    sessions = [session(number) for number in range(6)]
    decodes = {legs[0]: sessions[:3], legs[1]: sessions[3:5], legs[2]: sessions[5:]}
    first, rest = split(decodes, 4)
    assert first == {legs[0]: sessions[:3], legs[1]: sessions[3:4]}
    assert rest == {legs[1]: sessions[4:5], legs[2]: sessions[5:]}
    assert split(decodes, 6) == (decodes, {})


def test_a_plan_runs_over_servers_that_are_there_and_over_each_once() -> None:
    servers = {A: Server(server(A), now_s=0.0)}
    with pytest.raises(ValueError, match="servers that are not there: b"):
        Route(0, planned((A, 0, 1), (B, 1, 2)), servers=servers)
    with pytest.raises(ValueError, match="runs twice over one server"):
        Route(0, planned((A, 0, 1), (A, 1, 2)), servers=servers)


def test_the_chains_of_a_plan_run_the_same_model() -> None:
    admission = Admission(lambda rates, capacities: pytest.fail("no plan"), start=print, refuse=print)
    with pytest.raises(ValueError, match="equally many blocks"):
        admission.adopt([planned((A, 0, 1)), planned((A, 0, 2))], {A: Server(server(A), now_s=0.0)})
