"""The event loop: order of events, and the errors that a wrong scheduler meets."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from chainserve.simulator.engine import Engine, InvariantError, run
from chainserve.simulator.workloads import Requests, make_requests


class Recorder:
    """Writes down what it is called for, and acts as it is told: `acts` maps (what, number) to an action."""

    def __init__(self, acts: dict[tuple[str, int], Callable[[Engine], None]]) -> None:
        self.acts = acts
        self.calls: list[tuple[float, str, int]] = []

    def bind(self, engine: Engine) -> None:
        self.engine = engine

    def arrive(self, request: int) -> None:
        self._called("arrive", request)

    def finish(self, request: int) -> None:
        self._called("finish", request)

    def wake(self, key: int) -> None:
        self._called("wake", key)

    def _called(self, what: str, number: int) -> None:
        self.calls.append((self.engine.now_s, what, number))
        self.acts.get((what, number), lambda engine: None)(self.engine)


def arrivals(*times_s: float) -> Requests:
    return make_requests(times_s)


def test_tells_the_scheduler_what_happens_when() -> None:
    scheduler = Recorder(
        {
            ("arrive", 0): lambda engine: engine.start(0, 5.0, chain=3),
            ("arrive", 1): lambda engine: engine.wake_at(1, 4.0),
            ("wake", 1): lambda engine: engine.start(1, 2.5),
        }
    )
    outcome = run(arrivals(1, 2), scheduler)
    assert scheduler.calls == [(1, "arrive", 0), (2, "arrive", 1), (4, "wake", 1), (6, "finish", 0), (6.5, "finish", 1)]
    assert outcome.start_s.tolist() == [1, 4]
    assert outcome.finish_s.tolist() == [6, 6.5]
    assert outcome.waiting_s.tolist() == [0, 2]
    assert outcome.service_s.tolist() == [5, 2.5]
    assert outcome.response_s.tolist() == [5, 4.5]
    assert outcome.chain.tolist() == [3, -1]
    assert not outcome.is_refused.any()


def test_at_one_instant_places_are_freed_before_anybody_asks_for_one() -> None:
    scheduler = Recorder(
        {
            ("arrive", 0): lambda engine: (engine.wake_at(1, 2.0), engine.start(0, 2.0)),
            ("arrive", 1): lambda engine: engine.start(1, 2.0),
            ("arrive", 2): lambda engine: engine.start(2, 0.0),
        }
    )
    run(arrivals(0, 0, 2), scheduler)
    assert [(what, number) for at_s, what, number in scheduler.calls if at_s == 2] == [
        ("finish", 0),
        ("finish", 1),
        ("wake", 1),
        ("arrive", 2),
        ("finish", 2),
    ]


def test_a_refused_request_has_no_times() -> None:
    scheduler = Recorder(
        {
            ("arrive", 0): lambda engine: engine.refuse(0),
            ("arrive", 1): lambda engine: engine.start(1, 1.0),
        }
    )
    outcome = run(arrivals(0, 1), scheduler)
    assert outcome.is_refused.tolist() == [True, False]
    assert np.isnan(outcome.start_s[0])
    assert np.isnan(outcome.response_s[0])


def test_an_interrupted_request_starts_again_and_ends_once() -> None:
    scheduler = Recorder(
        {
            ("arrive", 0): lambda engine: (engine.start(0, 10.0), engine.wake_at(0, 4.0)),
            ("wake", 0): lambda engine: (engine.interrupt(0), engine.start(0, 8.0)),
        }
    )
    outcome = run(arrivals(0), scheduler)
    assert scheduler.calls == [(0, "arrive", 0), (4, "wake", 0), (12, "finish", 0)]
    assert outcome.waiting_s.tolist() == [4]
    assert outcome.service_s.tolist() == [8]


def test_an_interrupted_request_may_be_refused() -> None:
    scheduler = Recorder(
        {
            ("arrive", 0): lambda engine: (engine.start(0, 10.0), engine.wake_at(0, 4.0)),
            ("wake", 0): lambda engine: (engine.interrupt(0), engine.refuse(0)),
        }
    )
    assert run(arrivals(0), scheduler).is_refused.tolist() == [True]


def test_a_timer_of_the_scheduler_does_not_keep_the_run_alive() -> None:
    scheduler = Recorder(
        {
            ("arrive", 0): lambda engine: (engine.start(0, 2.0), engine.wake_at(7, 1.0), engine.wake_at(8, 1000.0)),
        }
    )
    run(arrivals(0), scheduler)
    assert scheduler.calls == [(0, "arrive", 0), (1, "wake", 7), (2, "finish", 0)]


def test_names_a_request_that_is_lost() -> None:
    scheduler = Recorder({("arrive", 0): lambda engine: engine.start(0, 1.0)})
    with pytest.raises(InvariantError, match="request 1 and 1 others never started") as caught:
        run(arrivals(0, 1, 2), scheduler)
    assert caught.value.request == 1


@pytest.mark.parametrize(
    ("act", "fact"),
    [
        (lambda engine: (engine.start(0, 1.0), engine.start(0, 1.0)), "request 0 is started while running"),
        (lambda engine: (engine.refuse(0), engine.start(0, 1.0)), "request 0 is started while done"),
        (lambda engine: engine.start(1, 1.0), "request 1 is started while absent"),
        (lambda engine: (engine.start(0, 1.0), engine.refuse(0)), "request 0 is refused while running"),
        (lambda engine: engine.interrupt(0), "request 0 is interrupted while waiting"),
        (lambda engine: engine.start(0, math.nan), "request 0 would take nan s"),
        (lambda engine: engine.start(0, -1.0), "request 0 would take -1.0 s"),
        (lambda engine: engine.start(0, math.inf), "request 0 would take inf s"),
        (lambda engine: engine.wake_at(0, 0.5), "request 0 would be woken at 0.5 s, at 1.0 s"),
        (lambda engine: engine.wake_at(-1, 2.0), "request -1 would be woken at 2.0 s, at 1.0 s"),
    ],
)
def test_stops_at_what_cannot_be(act: Callable[[Engine], None], fact: str) -> None:
    with pytest.raises(InvariantError, match=fact):
        run(arrivals(1, 2), Recorder({("arrive", 0): act}))


def test_a_request_starts_once_even_after_its_end() -> None:
    scheduler = Recorder(
        {
            ("arrive", 0): lambda engine: engine.start(0, 1.0),
            ("finish", 0): lambda engine: engine.start(0, 1.0),
        }
    )
    with pytest.raises(InvariantError, match="request 0 is started while done"):
        run(arrivals(0, 9), scheduler)
