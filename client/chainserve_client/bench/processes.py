"""Several clients as processes, which share the requests and ask theirs at the times of one common clock.

The clock is time.monotonic(), which on Linux and macOS is the machine's and the same in all of its processes.
"""

import asyncio
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from chainserve.errors import ChainserveError
from chainserve_client.bench import messages
from chainserve_client.bench.aim import Aim
from chainserve_client.bench.load import Due
from chainserve_client.bench.run import INTERRUPTED, Observer
from chainserve_client.bench.timing import Timed

PROGRAM = ("-m", "chainserve_client.bench.client_process")
READY_S = 120.0
"""For a client to start and connect."""
LEAD_S = 0.3
"""From when all are ready to the first request: by then all have been told."""
SLACK_S = 30.0
"""Beyond the time that its last request may take, after which a client is ended."""
LEAVE_S = 10.0
MAX_LINE = 2**26
MAX_SAID = 400


class ClientProcessError(ChainserveError):
    """A client process that could not begin."""


class ClientProcess:
    """One client, and its part of the requests."""

    def __init__(self, process: Process, *, number: int, load: Sequence[Due]) -> None:
        self.number = number
        self._process = process
        self._missing = {due.index: due for due in load}
        self._said = asyncio.create_task(_read_all(process))

    async def get_ready(self, aim: Aim) -> None:
        """Give it its task; ClientProcessError if it cannot connect."""
        self._write("task", messages.task(aim, list(self._missing.values()), client=self.number))
        try:
            async with asyncio.timeout(READY_S):
                kind, value = await self._read()
        except TimeoutError:
            raise ClientProcessError(f"client {self.number} was not ready within {READY_S:.0f} s") from None
        if kind != "ready":
            raise ClientProcessError(value)

    def begin(self, begin_s: float) -> None:
        """Have it send, at its times from `begin_s` of time.monotonic() on."""
        self._write("begin", begin_s)

    async def follow(self, observer: Observer, *, until_s: float) -> None:
        """Pass on what it observes until it ends; what it leaves undone counts as failed."""
        reason = ""
        try:
            async with asyncio.timeout(max(0.0, until_s - time.monotonic())):
                while self._missing:
                    kind, value = await self._read()
                    if kind == "over":
                        reason = value
                        break
                    self._pass_on(observer, kind, value)
        except TimeoutError:
            reason = f"client process {self.number} said nothing more"
        for due in self._missing.values():
            observer.ended(unanswered(due, client=self.number, error=reason))

    async def leave(self, observer: Observer) -> None:
        """Interrupt what it still has, and end it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(LEAVE_S):
                while (message := await self._read())[0] != "over":
                    self._pass_on(observer, *message)
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._said

    def _pass_on(self, observer: Observer, kind: Any, value: Any) -> None:
        if kind == "ended":
            self._missing.pop(value["index"], None)
        messages.tell(observer, kind, value)

    async def _read(self) -> tuple[str, Any]:
        """The next message; 'over' with the reason when none come any more."""
        assert self._process.stdout is not None
        text = await self._process.stdout.readline()
        if text.endswith(b"\n"):  # a process that is killed may leave half a line
            return messages.read(text)
        status = await self._process.wait()
        last = (await self._said).strip().splitlines()[-1:]
        return "over", ": ".join([f"client process {self.number} ended with status {status}", *last])

    def _write(self, kind: str, value: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(messages.line(kind, value))


def unanswered(due: Due, *, client: int, error: str) -> Timed:
    """A request of which its client says nothing."""
    return Timed(
        index=due.index,
        client=client,
        arrival_s=due.arrival_s,
        num_input_tokens=due.num_input_tokens,
        num_asked_tokens=due.num_output_tokens,
        error=error or INTERRUPTED,
    )


async def run_clients(
    aim: Aim, load: Sequence[Due], *, num_clients: int, observer: Observer, on_begin: Callable[[float], None]
) -> None:
    """Send the requests from so many processes, by turns; the observer is told, and when all begins in Unix time.

    ClientProcessError if one of them cannot connect. When it is cancelled, those under way end as interrupted.
    """
    async with AsyncExitStack() as leaving:
        clients = [
            await leaving.enter_async_context(_started(number, load[number::num_clients], observer))
            for number in range(num_clients)
        ]
        for client in clients:
            await client.get_ready(aim)
        begin_s = time.monotonic() + LEAD_S
        on_begin(time.time() + LEAD_S)
        for client in clients:
            client.begin(begin_s)
        until_s = begin_s + load[-1].arrival_s + aim.timeout_s + SLACK_S
        async with asyncio.TaskGroup() as following:
            for client in clients:
                following.create_task(client.follow(observer, until_s=until_s))


@asynccontextmanager
async def _started(number: int, load: Sequence[Due], observer: Observer) -> AsyncIterator[ClientProcess]:
    """A process in a session of its own, so that Ctrl-C comes to its parent alone."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *PROGRAM, stdin=PIPE, stdout=PIPE, stderr=PIPE, limit=MAX_LINE, start_new_session=True
    )
    client = ClientProcess(process, number=number, load=load)
    try:
        yield client
    finally:
        await client.leave(observer)


async def _read_all(process: Process) -> str:
    """The end of what it writes to standard error."""
    assert process.stderr is not None
    said = b""
    while more := await process.stderr.read(4096):
        said = (said + more)[-MAX_SAID:]
    return said.decode(errors="replace")
