"""Long work in threads of its own, for which nobody waits when the process leaves."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

NAME = "background"


async def in_background(work: Callable[[], T]) -> T:
    """Run `work` in a new thread; cancelling the wait leaves it running."""
    with _new_thread() as thread:
        result = await asyncio.get_running_loop().run_in_executor(thread, work)
        thread.shutdown()  # it ends now, and keeps the result until then: of weights there is no room for more
        return result


def in_passing_thread(work: Callable[[], T]) -> T:
    """The same without an event loop; KeyboardInterrupt ends the wait and leaves it running.

    For what computes before the thread comes that computes from then on: torch keeps helpers for each thread that has
    computed, and with more of them than cores those of all threads go to sleep between two operators. That made steps
    of 2 to 16 rows take 1.3 to 2 times as long.
    """
    with _new_thread() as thread:
        return thread.submit(work).result()


def is_busy() -> bool:
    """Whether some of it still runs, which Python would wait for at its end: leave with os._exit then."""
    return any(thread.name.startswith(NAME) for thread in threading.enumerate())


@contextmanager
def _new_thread() -> Iterator[ThreadPoolExecutor]:
    """One that ends with its work."""
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=NAME)
    try:
        yield thread
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
