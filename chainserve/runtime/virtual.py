"""An event loop whose clock jumps to the next thing that is due: hours of waiting pass in no time."""

import asyncio
import selectors
from typing import Any


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs coroutines that wait on each other and on time, and on nothing outside the process.

    What they compute takes no time, so equal inputs give equal histories.
    """

    def __init__(self) -> None:
        self._selector_of_time = _Jumping()
        super().__init__(self._selector_of_time)

    def time(self) -> float:
        """Seconds since the loop was made, as far as the loop has come."""
        return self._selector_of_time.now_s


class _Jumping(selectors.DefaultSelector):
    """Where a selector would wait for so many seconds, they have passed."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("nothing is due any more: what is waited for cannot happen")
        self.now_s += max(0.0, timeout)
        return super().select(0)
