"""Swarm time: the one clock by which all peers of a swarm judge records, though their own clocks may disagree.

Whoever creates a swarm gives it the time of its own clock; whoever joins asks those it joins through how far they are
ahead. From then on time runs with a steady clock, so it never jumps when a machine's clock is set.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from statistics import median_low

from chainserve.errors import JoinError

DAY_S = 86_400.0
MAX_OFFSET_S = DAY_S

# Linux's monotonic clock stands still while a machine sleeps; this one does not. Others' do not, or have but one.
_STEADY_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def _steady() -> float:
    return time.monotonic() if _STEADY_CLOCK is None else time.clock_gettime(_STEADY_CLOCK)


class SwarmClock:
    """The time of one swarm: that of this machine when made, unless we `follow` others."""

    def __init__(self, *, wall: Callable[[], float] = time.time, steady: Callable[[], float] = _steady) -> None:
        self._steady = steady
        self._ahead_s = wall() - steady()  # of the steady clock

    def now(self) -> float:
        """Swarm time, in unix seconds."""
        return self._steady() + self._ahead_s

    def follow(self, offsets: Sequence[float]) -> None:
        """Go by peers that are ahead of us by `offsets` seconds: by the middle one, so that one of many may be wrong.

        JoinError if all of them are more than a day away.
        """
        near = [offset for offset in offsets if abs(offset) <= MAX_OFFSET_S]
        if not near:
            away_s = min(map(abs, offsets))
            raise JoinError(
                f"the clock of this machine and that of the swarm differ by {away_s / DAY_S:.6g} days: set the clock "
                f"that is wrong"
            )
        self._ahead_s += median_low(near)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, and in tasks started within, `swarm_time` is of this clock."""
        token = _applied.set(self)
        try:
            yield
        finally:
            _applied.reset(token)


_applied: ContextVar[SwarmClock | None] = ContextVar("clock of the swarm whose code runs", default=None)


def swarm_time() -> float:
    """The time of the swarm whose code runs, in unix seconds; outside of any that of this machine."""
    clock = _applied.get()
    return time.time() if clock is None else clock.now()
