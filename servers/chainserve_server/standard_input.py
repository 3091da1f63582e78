"""What a server is told through its standard input: a join token, and by its end that the parent is gone."""

import os
import signal
import threading
import time
from queue import SimpleQueue

from chainserve.errors import UsageError

LEAVE_S = 15.0
"""Time to leave the swarm once the input has ended."""


class StandardInput:
    """Reads standard input in a thread of its own, from the first moment on: the parent may die while we import.

    With `leave_on_eof` the end of the input is for this process what SIGTERM is, and its own end some time later.
    """

    def __init__(self, *, leave_on_eof: bool, leave_s: float = LEAVE_S) -> None:
        self._leave_on_eof = leave_on_eof
        self._leave_s = leave_s
        self._first_line: SimpleQueue[str] = SimpleQueue()
        threading.Thread(target=self._read, name="standard input", daemon=True).start()

    def token(self) -> str:
        """Wait for the first line; UsageError if there is none. Call once, in the main thread: signals end the wait."""
        line = self._first_line.get()
        if not line:
            raise UsageError("no join token on standard input: --join - reads one line from there")
        return line

    def _read(self) -> None:
        text = b""
        has_line = False
        while data := self._chunk():
            if not has_line:
                text += data
                has_line = b"\n" in text
                if has_line:
                    self._first_line.put(_first_line_of(text))
        if not has_line:
            self._first_line.put(_first_line_of(text))
        if self._leave_on_eof:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(self._leave_s)
            os._exit(1)

    @staticmethod
    def _chunk() -> bytes:
        try:
            return os.read(0, 4096)  # `sys.stdin` has a lock that would be missed when the interpreter ends
        except OSError:  # closed, or not for reading
            return b""


def _first_line_of(text: bytes) -> str:
    return text.partition(b"\n")[0].decode(errors="replace").strip()
