"""A benchmark of a real swarm of two servers, from two client processes, with a trace from a file."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from bundled import MakeSwarm

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

TRACE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:00:00.0000000,9,9
2023-11-16 18:00:01.0000000,400,60
2023-11-16 18:00:01.2000000,300,5
2023-11-16 18:00:03.0000000,1000,40
2023-11-16 18:00:03.1000000,55,70
"""


def test_two_clients_replay_a_trace_over_two_servers(make_swarm: MakeSwarm, tmp_path: Path) -> None:
    swarm = make_swarm("0:12", "12:30")
    (tmp_path / "trace.csv").write_text(TRACE)
    folder = tmp_path / "report"
    words = [sys.executable, "-m", "chainserve_client.cli", "bench", "-", "--clients", "2"]
    words += ["--trace", str(tmp_path / "trace.csv"), "--first", "1", "--requests", "4", "--rate", "2"]
    words += ["--scale-tokens", "0.1", "--min-output", "2", "--output", str(folder)]
    done = subprocess.run(words, input=swarm.token, capture_output=True, text=True, timeout=180, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done  # no figures while it runs: this is no terminal
    assert "4 of 4 requests were answered" in done.stdout
    report = json.loads((folder / "report.json").read_text())
    assert swarm.token not in (folder / "report.json").read_text() + (folder / "report.md").read_text()
    first, second = swarm.servers
    requests = report["requests"]
    assert [(one["num_input_tokens"], one["num_tokens"]) for one in requests] == [(40, 6), (30, 2), (100, 4), (6, 7)]
    assert [one["arrival_s"] for one in requests] == pytest.approx([0.0, 0.1429, 1.4286, 1.5], abs=1e-3)
    assert [one["client"] for one in requests] == [0, 1, 0, 1]
    for one in requests:
        assert one["chain"] == [[first.peer, 0, 12], [second.peer, 12, 30]]
        assert 0 < one["waited_s"] < one["first_s"] <= one["total_s"]
        assert one["service_s"] == pytest.approx(one["total_s"] - one["waited_s"], abs=1e-5)
        assert [hop["peer"] for hop in one["hops"]] == [first.peer, second.peer]
        assert len(one["between_s"]) == one["num_tokens"] - 1
        assert (one["retries"], one["error"]) == (0, None)
    assert report["num_answered"] == report["num_due"] == 4
    assert report["summary"]["service_s"]["mean"] > 0
    with (folder / "requests.csv").open() as file:
        assert [row["num_tokens"] for row in csv.DictReader(file)] == ["6", "2", "4", "7"]
    assert {path.suffix for path in folder.iterdir()} == {".json", ".md", ".csv", ".svg"}
