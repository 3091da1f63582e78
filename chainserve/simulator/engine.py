"""The discrete-event loop: requests arrive, a scheduler starts them, they finish; the clock is a number.

The engine knows neither servers nor chains: a `Scheduler` decides when a request starts and how long it takes. Events
of one instant come in a fixed order, what frees places first: requests that finish, then wakes, then arrivals; each by
number. So equal inputs give equal runs.
"""

import math
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from chainserve.simulator.workloads import Requests


class InvariantError(RuntimeError):
    """A simulated system broke a rule that holds by design: its scheduler is wrong."""

    def __init__(self, request: int, fact: str) -> None:
        super().__init__(f"request {request} {fact}")
        self.request = request


class Scheduler(Protocol):
    """What the engine calls; a request is its index in `Requests`."""

    def bind(self, engine: "Engine") -> None:
        """Called once, before the first event."""

    def arrive(self, request: int) -> None:
        """The request is there: start it now or later, or refuse it."""

    def finish(self, request: int) -> None:
        """The request is done, and what it held is free."""

    def wake(self, key: int) -> None:
        """The time asked for with `Engine.wake_at` has come."""


PHASES = ("absent", "waiting", "running", "done")
ABSENT, WAITING, RUNNING, DONE = range(4)  # plain numbers, as the loop compares one for every event


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What became of each request, as arrays in the order of arrival; times are nan where it was refused."""

    requests: Requests
    start_s: NDArray[np.float64]
    finish_s: NDArray[np.float64]
    chain: NDArray[np.int64]  # -1 where the scheduler named none

    @property
    def is_refused(self) -> NDArray[np.bool_]:
        return np.isnan(self.finish_s)

    @property
    def waiting_s(self) -> NDArray[np.float64]:
        """From arrival to the (last) start."""
        return self.start_s - self.requests.arrival_s

    @property
    def service_s(self) -> NDArray[np.float64]:
        return self.finish_s - self.start_s

    @property
    def response_s(self) -> NDArray[np.float64]:
        return self.finish_s - self.requests.arrival_s


class Engine:
    """The clock, the events to come and the phase of every request, for one run."""

    __slots__ = ("_chain", "_events", "_finish_s", "_num_left", "_phase", "_start_s", "now_s", "requests")

    def __init__(self, requests: Requests) -> None:
        self.requests = requests
        self.now_s = 0.0
        self._events: list[tuple[float, int]] = []  # (when, request that finishes, or len(requests) + key to wake)
        self._phase = bytearray(len(requests))
        self._start_s = [math.nan] * len(requests)
        self._finish_s = [math.nan] * len(requests)
        self._chain = [-1] * len(requests)
        self._num_left = len(requests)

    def start(self, request: int, service_s: float, *, chain: int = -1) -> None:
        """Let a waiting request hold its place from now on for `service_s` seconds."""
        if self._phase[request] != WAITING:
            raise InvariantError(request, f"is started while {PHASES[self._phase[request]]}")
        if not 0 <= service_s < math.inf:
            raise InvariantError(request, f"would take {service_s} s")
        now_s = self.now_s
        self._phase[request] = RUNNING
        self._start_s[request] = now_s
        self._finish_s[request] = now_s + service_s
        self._chain[request] = chain
        heappush(self._events, (now_s + service_s, request))

    def interrupt(self, request: int) -> None:
        """Cut a running request off: it waits again, and what was done for it is lost."""
        if self._phase[request] != RUNNING:
            raise InvariantError(request, f"is interrupted while {PHASES[self._phase[request]]}")
        self._phase[request] = WAITING
        self._finish_s[request] = math.nan

    def refuse(self, request: int) -> None:
        """Send a waiting request away for good."""
        if self._phase[request] != WAITING:
            raise InvariantError(request, f"is refused while {PHASES[self._phase[request]]}")
        self._phase[request] = DONE
        self._start_s[request] = math.nan
        self._num_left -= 1

    def wake_at(self, key: int, at_s: float) -> None:
        """Have `Scheduler.wake(key)` called at `at_s`; keys from len(requests) on are timers of the scheduler's own.

        Timers still pending when the last request is done are dropped. One that always sets another must stop by
        itself when it cannot help a waiting request any more, or the run never ends.
        """
        if key < 0 or not self.now_s <= at_s < math.inf:
            raise InvariantError(key, f"would be woken at {at_s} s, at {self.now_s} s")
        heappush(self._events, (at_s, key + len(self.requests)))

    def run(self, scheduler: Scheduler) -> Outcome:
        """Play all events; InvariantError when nothing is left to happen and a request is neither done nor refused."""
        arrivals = [*self.requests.arrival_s.tolist(), math.inf]
        num_requests, next_request, next_s = len(self.requests), 0, arrivals[0]
        events, phase, finish_s = self._events, self._phase, self._finish_s
        arrive, finish, wake = scheduler.arrive, scheduler.finish, scheduler.wake
        scheduler.bind(self)
        while self._num_left:
            if events and events[0][0] <= next_s:
                self.now_s, number = heappop(events)
                if number >= num_requests:
                    wake(number - num_requests)
                elif phase[number] == RUNNING and finish_s[number] == self.now_s:  # else it was interrupted
                    phase[number] = DONE
                    self._num_left -= 1
                    finish(number)
            elif next_request < num_requests:
                self.now_s = next_s
                phase[next_request] = WAITING
                arrive(next_request)
                next_request += 1
                next_s = arrivals[next_request]
            else:
                lost = next(request for request in range(num_requests) if phase[request] != DONE)
                raise InvariantError(lost, f"and {self._num_left - 1} others never started")
        return Outcome(
            requests=self.requests,
            start_s=np.array(self._start_s),
            finish_s=np.array(self._finish_s),
            chain=np.array(self._chain, dtype=np.int64),
        )


def run(requests: Requests, scheduler: Scheduler) -> Outcome:
    """Run all requests through the scheduler; InvariantError if one is lost, started twice or started after its end."""
    return Engine(requests).run(scheduler)
