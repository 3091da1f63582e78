"""The client's commands that serve until they are told to end, as processes."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TIMEOUT_S = 60.0


@contextmanager
def serving(command: str, token: str, folder: Path, *options: str) -> Iterator[str]:
    """`chainserve COMMAND TOKEN` as a process, by the address that it prints; it has to end well."""
    words = [sys.executable, "-m", "chainserve_client.cli", command, token, *options]
    log = folder / f"{command}.log"
    with log.open("w") as output, subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            deadline_s = time.monotonic() + TIMEOUT_S
            while (found := re.search(r" at (http\S+)\n", log.read_text())) is None:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline_s, log.read_text()
                time.sleep(0.05)  # a process that writes to a file offers no event to wait on
            yield found[1]
        finally:
            process.terminate()
            process.wait(20)
    assert process.returncode == 0, log.read_text()
    assert token not in log.read_text()
    assert "Traceback" not in log.read_text()
