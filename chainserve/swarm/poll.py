"""Waiting for a view: read, look, wait a little longer each time."""

import asyncio
from collections.abc import Awaitable, Callable

from chainserve.swarm.view import View

FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 0.5


async def poll(refresh: Callable[[], Awaitable[View]], condition: Callable[[View], bool], *, timeout_s: float) -> View:
    """Refresh until `condition` holds; TimeoutError if it does not within the time."""
    pause_s = FIRST_PAUSE_S
    async with asyncio.timeout(timeout_s):
        while not condition(view := await refresh()):
            await asyncio.sleep(pause_s)
            pause_s = min(1.5 * pause_s, LONGEST_PAUSE_S)
    return view
