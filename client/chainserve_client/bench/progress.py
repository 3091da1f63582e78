"""What has become of the requests so far: the results as they come, and a line of live figures for a terminal."""

import asyncio
import shutil
import statistics
from collections.abc import Callable
from typing import TextIO

from chainserve_client.bench.timing import Timed
from chainserve_client.units import format_seconds

BAR_CELLS = 20
EVERY_S = 0.25
ERASE = "\r\x1b[K"


class Progress:
    """Is told how requests get on."""

    def __init__(self, num_requests: int) -> None:
        self._num_requests = num_requests
        self._num_sent = 0
        self._num_tokens = 0
        self._firsts_s: list[float] = []
        self.began_s: float | None = None
        """In Unix time; None before all are connected."""
        self.ended_of: dict[int, Timed] = {}
        """By the number of the request."""

    def sent(self) -> None:
        self._num_sent += 1

    def first(self, first_s: float) -> None:
        self._firsts_s.append(first_s)

    def came(self, num_tokens: int) -> None:
        self._num_tokens += num_tokens

    def ended(self, timed: Timed) -> None:
        self.ended_of[timed.index] = timed

    def results(self) -> list[Timed]:
        """Those that have ended, in the order of arrival."""
        return [self.ended_of[index] for index in sorted(self.ended_of)]

    def begins(self, unix_s: float) -> None:
        """Times of requests count from then on."""
        self.began_s = unix_s

    def line(self, passed_s: float) -> str:
        """'[####....] 12 of 30 sent, 3 running, 8 done, 1 failed, 14.2 tokens/s, first token 1.20 s, 0:31'."""
        num_ended = len(self.ended_of)
        num_failed = sum(timed.error is not None for timed in self.ended_of.values())
        num_cells = BAR_CELLS * num_ended // max(self._num_requests, 1)
        parts = [
            f"[{'#' * num_cells}{'.' * (BAR_CELLS - num_cells)}] {self._num_sent} of {self._num_requests} sent",
            f"{max(self._num_sent - num_ended, 0)} running",
            f"{num_ended - num_failed} done",
            *([f"{num_failed} failed"] if num_failed else []),
            f"{self._num_tokens / passed_s if passed_s > 0 else 0.0:.1f} tokens/s",
            *([f"first token {format_seconds(statistics.median(self._firsts_s))}"] if self._firsts_s else []),
            f"{int(passed_s) // 60}:{int(passed_s) % 60:02}",
        ]
        return ", ".join(parts)


async def show(progress: Progress, stream: TextIO, *, clock: Callable[[], float]) -> None:
    """Keep the line of figures on a terminal until cancelled, then take it away; `clock` gives Unix time."""
    try:
        while True:
            began_s = progress.began_s
            line = "connecting" if began_s is None else progress.line(clock() - began_s)
            width = shutil.get_terminal_size().columns - 1  # a line that wraps cannot be taken back
            stream.write(f"{ERASE}{line[:width]}")
            stream.flush()
            await asyncio.sleep(EVERY_S)
    finally:
        stream.write(ERASE)
        stream.flush()
