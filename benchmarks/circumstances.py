"""What a reader needs to judge a benchmark's figures, or to repeat them, and where both are kept."""

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

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
    report = {"circumstances": about, "figures": figures}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    return report
