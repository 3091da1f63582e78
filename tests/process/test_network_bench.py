"""The network bench with few servers and requests: real processes in namespaces, from links to tables."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from network.namespaces import FOLDER, PREFIX, why_not

PROJECT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(420),
    pytest.mark.skipif(why_not() is not None, reason=f"takes namespaces: {why_not()}"),
]


def test_a_run_with_few_servers_answers_all_and_leaves_nothing(tmp_path: Path) -> None:
    words = ["--only", "gbp-cr", "--large", "1", "--small", "2", "--requests", "4", "--rate", "0.5"]
    process = subprocess.Popen(
        [sys.executable, "benchmarks/network", "policies", *words, "--data", "none", "--output", str(tmp_path)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=400)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)
    assert process.returncode == 0, output
    figures = json.loads((tmp_path / "policies.json").read_text())["figures"]
    assert all(link["is_as_asked"] for link in figures["links"])
    row = figures["of"]["gbp-cr"]
    assert row["num_answered"] == row["num_requests"] == 4
    assert row["prediction"]["response"]["mean"] > 0
    assert sum(row["where"].values()) == pytest.approx(row["times"]["response"]["mean"], rel=1e-3)
    assert not list(FOLDER.glob(f"{PREFIX}-{process.pid}-*"))
    assert not os.path.exists(f"/proc/{process.pid}")
