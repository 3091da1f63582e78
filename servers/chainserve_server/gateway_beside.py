"""A gateway beside a server: `chainserve gateway` as a child process, which joins the swarm as any client does.

It has a process of its own so that what HTTP takes is not taken from the server's steps, and it decides by the same
rules who is let in. It begins with the server and waits for the join token on its standard input, whose end tells it
that the server is gone.
"""

import argparse
import asyncio
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from chainserve.errors import UsageError

PROGRAM = (sys.executable, "-P", "-m", "chainserve_client.cli")
"""The client's command, not taken from the current folder."""
LOOK_S = 0.5
"""Between looks at whether it still runs."""
LEAVE_S = 5.0
"""So long it has to leave before it is killed."""
OPTIONS = ("--gateway", "--gateway-host", "--api-keys", "--no-auth")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a server that are for its gateway."""
    parser.add_argument("--gateway", type=int, metavar="PORT", help="serve an OpenAI-compatible API there too (no)")
    parser.add_argument(
        "--gateway-host", default="127.0.0.1", metavar="ADDRESS", help="where the gateway listens (127.0.0.1)"
    )
    parser.add_argument("--api-keys", metavar="FILE", help="keys of the gateway; see chainserve api-key")
    parser.add_argument("--no-auth", action="store_true", help="let everybody in who reaches the gateway")


def arguments_of(options: argparse.Namespace) -> list[str]:
    """The command line of the gateway that is asked for."""
    keys = ["--api-keys", options.api_keys] if options.api_keys is not None else []
    open_ = ["--no-auth"] if options.no_auth else []
    where = ["--host", options.gateway_host, "--port", str(options.gateway)]
    return ["gateway", "-", "--leave-on-eof", *where, *keys, *open_]


class GatewayBeside:
    """The child process. It writes to this process's own output."""

    def __init__(self, arguments: Sequence[str], *, program: Sequence[str] = PROGRAM) -> None:
        self._process = subprocess.Popen(
            [*program, *arguments],
            stdin=subprocess.PIPE,
            start_new_session=True,  # out of the reach of the terminal's Ctrl-C
        )

    def check(self) -> None:
        """UsageError if it has ended, as it does at once where it may not or cannot serve; it has said why."""
        if (status := self._process.poll()) is not None:
            raise UsageError(f"the gateway did not start (status {status}): its own line says why")

    def join(self, token: str) -> None:
        """Let it join the swarm of this token, and serve."""
        self.check()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has just ended, which will be noticed
            self._process.stdin.write(f"{token}\n".encode())
            self._process.stdin.flush()

    async def watch(self, say: Callable[[str], None]) -> None:
        """Wait until it has ended, and say so."""
        while self._process.poll() is None:  # noqa: ASYNC110 (processes offer no event to wait on)
            await asyncio.sleep(LOOK_S)
        say(f"the gateway has ended (status {self._process.returncode}); the server goes on")

    def close(self) -> None:
        """Tell it to leave, and see to it that it is gone."""
        with suppress(BrokenPipeError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        self._process.terminate()
        try:
            self._process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
