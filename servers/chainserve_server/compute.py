"""The thread in which a server's model runs.

A ThreadPoolExecutor would do, but its results take two futures and two turns of the event loop to come back: a token of
a model whose blocks compute next to nothing took 7 % longer through a chain of four servers (benchmarks/hop.py).
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


class ComputeThread:
    """Runs one piece of work after another; Python does not end before it has been stopped."""

    def __init__(self) -> None:
        self._works: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        threading.Thread(target=_run_all, args=(self._works,), name="compute").start()

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """What `work` returns or raises. Cancelling the wait leaves it running, unless it has not begun."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._works.put(partial(_run, work, done, loop))
        return done

    def stop(self, *, last: Callable[[], None] = lambda: None) -> None:
        """End the thread behind what it runs, and behind `last`, which must not raise."""
        self._works.put(last)
        self._works.put(None)


def _run_all(works: "SimpleQueue[Callable[[], None] | None]") -> None:
    while (work := works.get()) is not None:
        work()
        del work  # nothing of it is kept alive while the next is waited for


def _run(work: Callable[[], T], done: asyncio.Future[T], loop: asyncio.AbstractEventLoop) -> None:
    if done.cancelled():
        return
    try:
        report = partial(_set_result, done, work())
    except Exception as error:  # noqa: BLE001 (whatever it is, it is for who waits)
        report = partial(_set_exception, done, error)
    with suppress(RuntimeError):  # the loop is closed: nobody waits
        loop.call_soon_threadsafe(report)


def _set_result(done: asyncio.Future[T], result: T) -> None:
    if not done.cancelled():
        done.set_result(result)


def _set_exception(done: asyncio.Future[T], error: Exception) -> None:
    if not done.cancelled():
        done.set_exception(error)
