"""Computing in turns with the other servers on the same cores, or on the same GPU.

Threads that compute one product wait for each other, and wake or spin for it. Two servers that use all cores at once
keep each other's waiting. And who waits for a turn can collect work meanwhile, which runs at once as fast as one step.
"""

import os
import sys
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import IO

if sys.platform != "win32":
    import fcntl

PATIENCE_S = 0.5
POLL_S = 0.0002


class Turns:
    """A lock on the file `path`, the same for all servers, held for one forward at a time.

    One thread at a time may use it. It is waited for for `patience_s` at most, and not at all again until it has been
    got: a process that is frozen holds it for as long as that lasts. One that dies has let go. Where files cannot be
    locked there are no turns.
    """

    def __init__(self, path: Path, *, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._is_patient = True
        self._is_held = False
        self._file: int | None = None  # open all the time: to open it took 0.1 ms of every step
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            weakref.finalize(self, os.close, self._file)

    def take(self) -> bool:
        """Take the turn; False if it has to be waited for."""
        if self._file is None:
            return True
        try:
            self._is_held = try_lock(self._file)
        except OSError:
            return True
        self._is_patient |= self._is_held
        return self._is_held or not self._is_patient

    def wait(self) -> None:
        """Take the turn when it is free, or go on without once patience has ended."""
        deadline = time.monotonic() + self._patience_s
        while not self.take():
            if time.monotonic() >= deadline:
                self._is_patient = False
                return
            time.sleep(POLL_S)  # what waits for a lock by itself waits without a deadline

    def give_back(self) -> None:
        """Let others have their turn."""
        if self._is_held and self._file is not None and sys.platform != "win32":
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._is_held = False


def try_lock(file: IO[bytes] | int) -> bool:
    """Lock `file` until it is closed or unlocked; False if another process has it. OSError where that cannot be."""
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
