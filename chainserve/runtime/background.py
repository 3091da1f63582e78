"""Long work in threads of its own, for which nobody waits when the process leaves."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

NAME = "background"


async def in_background(work: Callable[[], T]) -> T:
    """Run `work` in a new thread; cancelling the wait leaves it running."""
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=NAME)
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, work)
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def is_busy() -> bool:
    """Whether some of it still runs, which Python would wait for at its end: leave with os._exit then."""
    return any(thread.name.startswith(NAME) for thread in threading.enumerate())
