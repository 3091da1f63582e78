"""Send requests, each when its time has come, however long those before it take."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Protocol

from chainserve.errors import ChainserveError
from chainserve_client.bench.load import Due
from chainserve_client.bench.targets import Arrival, Target
from chainserve_client.bench.timing import Timed

INTERRUPTED = "interrupted"
UNEXPECTED = "ended by a fault of the benchmark itself"


class Observer(Protocol):
    """Is told how the requests get on."""

    def sent(self) -> None:
        """One more is on its way."""

    def first(self, first_s: float) -> None:
        """One has its first token, so long after it was due."""

    def came(self, num_tokens: int) -> None:
        """More tokens of some request."""

    def ended(self, timed: Timed) -> None:
        """One was answered, or has failed."""


async def run(
    target: Target,
    load: Sequence[Due],
    *,
    begin_s: float,
    clock: Callable[[], float],
    observer: Observer,
    client: int = 0,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Ask `target` for these requests, at their times from `begin_s` on; the observer is told. Errors are results.

    When it is cancelled, those that were sent and have not ended are ended as interrupted.
    """
    async with asyncio.TaskGroup() as asking:
        for due in load:
            one = _Asking(due, client=client, due_s=begin_s + due.arrival_s, clock=clock, observer=observer)
            asking.create_task(one.ask(target, sleep))


class _Asking:
    """One request on its way."""

    def __init__(self, due: Due, *, client: int, due_s: float, clock: Callable[[], float], observer: Observer) -> None:
        self._due = due
        self._client = client
        self._due_s = due_s
        self._clock = clock
        self._observer = observer
        self._late_s = 0.0
        self._came_s: list[float] = []
        self._last = Arrival()
        self._num_tokens = 0
        self._num_chains = 0

    async def ask(self, target: Target, sleep: Callable[[float], Awaitable[None]]) -> None:
        await sleep(max(0.0, -self._passed_s))
        self._late_s = max(0.0, self._passed_s)
        self._observer.sent()
        error: str | None = UNEXPECTED
        try:
            async for arrival in target(self._due):
                self._take(arrival)
            error = None
        except ChainserveError as raised:
            error = str(raised) or type(raised).__name__
        except asyncio.CancelledError:
            error = INTERRUPTED
            raise
        finally:
            self._observer.ended(self._timed(error))

    @property
    def _passed_s(self) -> float:
        return self._clock() - self._due_s

    def _take(self, arrival: Arrival) -> None:
        if arrival.num_tokens:
            self._came_s.append(self._passed_s)
            self._num_tokens += arrival.num_tokens
            if len(self._came_s) == 1:
                self._observer.first(self._came_s[0])
            self._observer.came(arrival.num_tokens)
        if arrival.chain and arrival.chain != self._last.chain:
            self._num_chains += 1
        self._last = self._last.then(arrival)

    def _timed(self, error: str | None) -> Timed:
        due, last = self._due, self._last
        return Timed(
            index=due.index,
            client=self._client,
            arrival_s=due.arrival_s,
            late_s=self._late_s,
            waited_s=None if last.waited_s is None else self._late_s + last.waited_s,
            first_s=self._came_s[0] if self._came_s else None,
            between_s=tuple(after - before for before, after in pairwise(self._came_s)),
            total_s=self._passed_s,
            num_input_tokens=due.num_input_tokens if last.num_input_tokens is None else last.num_input_tokens,
            num_asked_tokens=due.num_output_tokens,
            num_tokens=self._num_tokens if last.num_output_tokens is None else last.num_output_tokens,
            chain=last.chain,
            hops=last.hops,
            retries=max(len(last.changes), self._num_chains - 1, 0),
            changes=last.changes,
            error=error,
        )
