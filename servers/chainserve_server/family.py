"""Several servers as children of one process: one log, one Ctrl-C.

All children start at once and import their libraries side by side. The first one's join token is written to the
standard input of the others, and that pipe stays open: a child that sees its end knows that the parent is gone. (Linux
could signal a parent's death too, but that has to be asked for between fork and exec, where asyncio's threads make
running Python unsafe; a pipe works everywhere, and lets the child leave as it does on Ctrl-C.)

Everything that happens is an event in one queue, and one loop takes them in turn.
"""

import asyncio
import json
import os
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from chainserve.errors import ChainserveError
from chainserve.runtime.logs import entry
from chainserve_server.family_options import Child

LEAVE_S = 15.0
"""A server that was told to leave is killed after that."""
LAST_LINES_S = 1.0
"""How long to wait for a dead child's last lines: something it started may hold the pipe open."""
MAX_LINE_BYTES = 2**15
"""Of a longer line every part is one: nothing waits for its end."""
STDIN, STDOUT, STDERR = range(3)
LEAVE = signal.SIGTERM
"""What SIGINT is to a server, except while its Python starts: that says nothing, where SIGINT leaves a traceback."""
LEFT = (0, 130, -LEAVE)
"""What a server ends with that was told to leave while it served, prepared, or had not yet begun."""

TOKEN = re.compile(r"chainserve1\.\S+")
JOINED = re.compile(r"chainserve-server \S+ has (started|joined) swarm")
PROGRAM = "chainserve-server"
ERROR = f"{PROGRAM}: "

Say = Callable[[str], None]


class ServerFailedError(ChainserveError):
    """A server of the family ended before it had joined."""


@dataclass(frozen=True, slots=True)
class Line:
    """A child wrote a line."""

    server: "Server"
    is_error: bool
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A child is gone and has no more to say."""

    server: "Server"
    status: int


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Somebody wants us to leave."""


@dataclass(frozen=True, slots=True)
class TimeUp:
    """Those that were told to leave have had their time."""


Event = Line | Ended | Interrupted | TimeUp
Post = Callable[[Event], None]


class Server(asyncio.SubprocessProtocol):
    """A child process, which becomes lines and an end.

    asyncio's streams would wait for the pipes before they tell of an end, and refuse long lines.
    """

    def __init__(self, child: Child, post: Post) -> None:
        self.name = child.name
        self.has_joined = False
        self.error: str | None = None  # what kept it from joining, as it says
        self._post = post
        self._unfinished = {STDOUT: b"", STDERR: b""}
        self._transport: asyncio.SubprocessTransport
        self._has_ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        *lines, rest = (self._unfinished[fd] + data).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            lines, rest = [*lines, rest], b""
        self._unfinished[fd] = rest
        for line in lines:
            self._tell(fd, line)

    def process_exited(self) -> None:
        asyncio.get_running_loop().call_later(LAST_LINES_S, self._end)

    def connection_lost(self, _: Exception | None) -> None:
        self._end()

    def write(self, line: str) -> None:
        """Write a line to the child's standard input."""
        stdin = self._transport.get_pipe_transport(STDIN)
        if isinstance(stdin, asyncio.WriteTransport):
            stdin.write(f"{line}\n".encode())

    def send(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send a signal to the child, or to all of its process group.

        Not by way of `Popen`, which might collect the child's status before asyncio does.
        """
        if self._transport.get_returncode() is None:
            with suppress(ProcessLookupError, PermissionError):  # it has just ended
                (os.killpg if group else os.kill)(self._transport.get_pid(), number)

    def close(self) -> None:
        self._transport.close()

    def _tell(self, fd: int, line: bytes) -> None:
        shown = line.rstrip(b"\r").rpartition(b"\r")[2]  # a progress bar writes over itself: its last state
        self._post(Line(self, fd == STDERR, shown.decode(errors="backslashreplace").rstrip()))

    def _end(self) -> None:
        status = self._transport.get_returncode()
        if self._has_ended or status is None:
            return
        self._has_ended = True
        for fd, line in self._unfinished.items():
            if line:
                self._tell(fd, line)
        self._post(Ended(self, status))


class Family:
    """The servers of one command, and what is to be done about them.

    `program` is what runs a child's arguments. `token` is that of the swarm to join; with None the first child starts
    one and prints its token.
    """

    def __init__(
        self,
        children: Sequence[Child],
        *,
        program: Sequence[str],
        say: Say,
        token: str | None = None,
        keep_token: Say | None = None,  # None: the token of a new swarm is said
        as_json: bool = False,  # children say everything as lines of JSON, and so do we
        leave_s: float = LEAVE_S,
    ) -> None:
        self._children = children
        self._program = program
        self._write = say
        self._keep_token = keep_token
        self._as_json = as_json
        self._token = token
        self._leave_s = leave_s
        self._servers: list[Server] = []
        self._running: list[Server] = []
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._token_is_shown = False
        self._num_interrupts = 0
        self._is_leaving = False
        self._left_cleanly = True
        self._failure: str | None = None

    def interrupt(self) -> None:
        """Let all servers leave; the second time, kill them."""
        self._events.put_nowait(Interrupted())

    async def run(self) -> int:
        """Run until all servers are gone; returns the exit status: 0 if they left because they were told to, else 1.

        ServerFailedError if one ended before it had joined, which makes the others leave.
        """
        try:
            await self._start()
            await self._until_all_are_gone()
        except BaseException:  # cancelled, or what we say can go nowhere
            self._write = lambda _: None
            self._leave()
            await self._until_all_are_gone()
            raise
        finally:
            for server in self._servers:
                server.close()
        if self._failure is not None:
            raise ServerFailedError(self._failure)
        return 0 if self._is_leaving and self._left_cleanly else 1

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        for child in self._children:
            _, server = await loop.subprocess_exec(
                partial(Server, child, self._events.put_nowait),
                *self._program,
                *child.arguments,
                start_new_session=True,  # out of the reach of the terminal's Ctrl-C
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
            self._servers.append(server)
            self._running.append(server)
        if self._token is not None:
            self._hand_on(self._token)

    async def _until_all_are_gone(self) -> None:
        while self._running:
            match await self._events.get():
                case Line(server, is_error, text):
                    self._take_line(server, is_error, text)
                case Ended(server, status):
                    self._take_end(server, status)
                case Interrupted():
                    self._num_interrupts += 1
                    if self._num_interrupts > 1:
                        self._kill()
                    elif not self._is_leaving:
                        self._say(f"leaving, within {self._leave_s:g} s; Ctrl-C again ends all servers at once")
                        self._leave()
                case TimeUp():
                    self._kill()

    def _say(self, text: str) -> None:
        """Say something of our own."""
        self._write(json.dumps(entry(text, logger=PROGRAM)) if self._as_json else text)

    def _pass_on(self, server: Server, text: str, line: Mapping[str, object]) -> None:
        """Say what a child has said; `line` is what it was in JSON, if it was."""
        if self._as_json:
            line = line or entry(text, logger=PROGRAM)
            self._write(json.dumps({**line, "server": server.name}))
        else:
            self._write(f"[{server.name}] {text}")

    def _take_line(self, server: Server, is_error: bool, text: str) -> None:
        line = json_line(text) if self._as_json else {}
        text = str(line.get("message", text))
        is_failure = text.startswith(ERROR) or (line.get("level"), line.get("logger")) == ("error", PROGRAM)
        if not is_error and TOKEN.fullmatch(text):
            self._take_token(text)
        elif is_error and is_failure and not server.has_joined:
            server.error = text.removeprefix(ERROR)
        elif text:
            server.has_joined |= not is_error and JOINED.match(text) is not None
            self._pass_on(server, text, line)

    def _take_token(self, token: str) -> None:
        if not self._token_is_shown:
            self._token_is_shown = True
            if self._keep_token is not None:
                self._keep_token(token)
            else:
                self._say(token)  # alone on its line, to be copied
        if self._token is None:
            self._token = token
            self._hand_on(token)

    def _hand_on(self, token: str) -> None:
        for server in self._servers:
            server.write(token)

    def _take_end(self, server: Server, status: int) -> None:
        self._running.remove(server)
        error = f"[{server.name}] {server.error or describe_end(status)}"
        if not self._is_leaving and not server.has_joined:
            self._failure = error if server.error else f"{error} before it had joined"
            self._leave()
        elif not self._is_leaving:
            left = ", ".join(other.name for other in self._running)
            self._say(f"{error}; {f'those that go on: {left}' if left else 'no server is left'}")
        elif self._failure is None and status not in LEFT:
            self._left_cleanly = False
            self._say(error)

    def _leave(self) -> None:
        if not self._is_leaving:
            self._is_leaving = True
            for server in self._servers:
                server.send(LEAVE)
            asyncio.get_running_loop().call_later(self._leave_s, self._events.put_nowait, TimeUp())

    def _kill(self) -> None:
        for server in self._servers:
            server.send(signal.SIGKILL, group=True)


def describe_end(status: int) -> str:
    """A process's return code in words."""
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def json_line(text: str) -> dict[str, object]:
    """What a line of JSON holds; nothing if it is none, as what libraries write."""
    try:
        line = json.loads(text)
    except ValueError:
        return {}
    return line if isinstance(line, dict) and "message" in line else {}
