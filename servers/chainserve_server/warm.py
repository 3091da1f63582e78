"""Server processes that start in a moment: forked from a process that has imported everything and done nothing.

For tests and benchmarks that start many. Importing torch and transformers takes a server most of its start.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

PRELOADED = ("chainserve_server.cli", "chainserve_server.prepare", "chainserve_server.server", "uvloop")


class ServerProcess(Protocol):
    """What `subprocess.Popen` and `WarmProcess` have in common."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int, /) -> None: ...

    def kill(self) -> None: ...


class WarmProcess:
    """What `python *command` would be, which runs a server."""

    def __init__(self, command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        self._process = context.Process(target=_run, args=(tuple(command), log, dict(environment)))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired("chainserve-server", timeout)
        return code

    def send_signal(self, sig: int, /) -> None:
        if self._process.exitcode is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    """The life of the forked process: `-m module` or a file, with arguments."""
    os.environ.clear()
    os.environ.update(environment)
    if threads := environment.get("OMP_NUM_THREADS"):  # which torch reads when it is imported, and it was before
        import torch

        torch.set_num_threads(int(threads))
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = list(command)
    if command[0] == "-m":
        sys.argv = sys.argv[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(command[0], run_name="__main__")
