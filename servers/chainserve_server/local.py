"""Several servers as child processes of this one, on loopback: for tests, benchmarks and first tries."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from chainserve_server.warm import ServerProcess, WarmProcess

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.05


class ServerExitedError(Exception):
    """A server ended before it was online; the message is what it said."""


@dataclass(frozen=True, slots=True)
class LocalServer:
    """One server process and what it prints."""

    blocks: str
    process: ServerProcess
    log: Path

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str, *, timeout_s: float = START_TIMEOUT_S) -> str:
        """Wait until the server has printed `text`; returns all it has printed."""
        deadline = time.monotonic() + timeout_s
        while text not in (output := self.output()):
            if self.process.poll() is not None:
                raise ServerExitedError(f"server of {self.blocks} exited with {self.process.returncode}:\n{output}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"server of {self.blocks} did not print {text!r} in {timeout_s:.0f} s:\n{output}")
            time.sleep(POLL_S)
        return output

    @property
    def has_joined(self) -> bool:
        """Whether it has said who it is."""
        return (
            re.search(r"^chainserve-server \S+ has (started|joined) swarm .*\n  peer ", self.output(), re.M) is not None
        )

    @property
    def peer(self) -> str:
        """Its peer id, once it has joined."""
        return next(line.split()[1] for line in self.output().splitlines() if line.split()[:1] == ["peer"])


class LocalSwarm:
    """Servers of one model; the first one starts the swarm, the others join it.

    They compute in float32, so that tokens are the same on every machine, unless `dtype` or their arguments say
    otherwise. Each keeps its key and its output in `folder`. Leaving the `with` block stops them all. `program` is what
    Python runs: the server, or something around it. With `is_warm` servers are forked from one that has imported all
    they need, which is seconds quicker.
    """

    def __init__(
        self,
        model: str,
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        program: Sequence[str] = ("-m", "chainserve_server.cli"),
        is_warm: bool = False,
        dtype: str | None = "float32",
    ) -> None:
        self.model = model
        self._program = program
        self.servers: list[LocalServer] = []
        self._folder = folder
        self._environment = {**os.environ, **(environment or {})}
        self._is_warm = is_warm
        self._dtype = dtype

    @property
    def token(self) -> str:
        """What the first server printed for others to join."""
        output = self.servers[0].wait_for("\nchainserve1.")
        return next(line for line in output.splitlines() if line.startswith("chainserve1."))

    def start(self, *spans: str, arguments: Sequence[str] = ()) -> list[LocalServer]:
        """Start a server for each of `spans` ("0:10") and wait until all are online."""
        first = [] if self.servers else [self.launch(spans[0], arguments)]
        others = [self.launch(span, arguments) for span in spans[len(first) :]]
        for server in (*first, *others):
            server.wait_for("is online")
        return [*first, *others]

    def launch(self, span: str, arguments: Sequence[str] = ()) -> LocalServer:
        """Start a server and do not wait, except for the token to join with."""
        name = f"server-{len(self.servers)}"
        options = ["--model", self.model, "--blocks", span, "--identity", str(self._folder / f"{name}.key")]
        options += [*(["--dtype", self._dtype] if self._dtype else []), *arguments]
        if self.servers:
            options += ["--join", self.token]
        log = self._folder / f"{name}.log"
        server = LocalServer(span, self._start(options, log), log)
        self.servers.append(server)
        return server

    def _start(self, options: Sequence[str], log: Path) -> ServerProcess:
        log.touch()
        command = [*self._program, *options]
        if self._is_warm:
            return WarmProcess(command, log=log, environment=self._environment)
        with log.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, *command], stdout=output, stderr=subprocess.STDOUT, env=self._environment
            )

    def close(self) -> None:
        """Ask all servers to leave, and end those that do not."""
        for server in self.servers:
            server.process.send_signal(signal.SIGCONT)
            server.process.send_signal(signal.SIGINT)
        for server in self.servers:
            try:
                server.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                server.process.kill()
                server.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
