"""The swarm as it is seen from one of the hosts, asked by a thread of this process that is there."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from chainserve_client.status import read_status, to_json
from network.namespaces import enter

T = TypeVar("T")


def at_host(namespace: str, question: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `question()` in a loop whose sockets are in a namespace; what it raises is raised here."""

    def be_there() -> T:
        enter(namespace)  # this thread, and those that it starts
        return asyncio.run(question())

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(be_there).result()


def status_at(namespace: str, token: str, *, timeout_s: float) -> dict[str, Any]:
    """What `chainserve status --json` shows there. TimeoutError if it takes too long."""

    async def look() -> dict[str, Any]:
        async with asyncio.timeout(timeout_s):
            status = await read_status(token)
        shown: dict[str, Any] = json.loads(to_json(status))
        return shown

    return at_host(namespace, look)
