"""What a reader needs to judge a benchmark's figures, or to repeat them, and where both are kept."""

import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

PROJECT = Path(__file__).parent.parent


def circumstances(benchmark: str, *packages: str, **facts: Any) -> dict[str, Any]:
    """Command, commit, day, hardware, versions of Python and the packages named, and what the benchmark adds."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=PROJECT, capture_output=True, text=True)
    with open("/proc/cpuinfo") as file:
        cpu = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "unknown")
    script = Path(sys.argv[0]).resolve().relative_to(PROJECT.resolve())
    software = [f"Python {platform.python_version()}", *(f"{package} {version(package)}" for package in packages)]
    return {
        "benchmark": benchmark,
        "command": f"python {script} {shlex.join(sys.argv[1:])}".strip(),
        "commit": commit.stdout.strip(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": f"{cpu}, {os.cpu_count()} cores",
        "software": ", ".join(software),
        **facts,
    }


def keep(path: Path, about: dict[str, Any], figures: Any) -> dict[str, Any]:
    """Write circumstances and figures as JSON; both as one report. ValueError for figures that are not finite."""
    text = json.dumps({"circumstances": about, "figures": figures}, indent=2, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    report: dict[str, Any] = json.loads(text)
    return report


@contextmanager
def measured_now() -> Iterator[None]:
    """Let servers that are started meanwhile measure the device again: it may have been busy when it was measured."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, XDG_CACHE_HOME=folder):
        yield
