"""What operators use, over one real server: metrics, token, doctor, bench."""

import json
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundled import MODEL
from prometheus_client.parser import text_string_to_metric_families as parse

from chainserve_server.local import LocalSwarm

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSwarm]:
    with LocalSwarm(MODEL, tmp_path_factory.mktemp("swarm"), is_warm=True) as swarm:
        swarm.start("0:30", arguments=("--metrics-port", "0"))
        yield swarm


def command(token: str, *arguments: str, status: int = 0) -> Any:
    """What a command prints as JSON, of a swarm whose token comes by standard input."""
    name, *others = arguments
    line = [sys.executable, "-m", "chainserve_client.cli", name, "-", *others, "--json"]
    done = subprocess.run(line, input=token, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (status, ""), done
    return json.loads(done.stdout)


def samples(swarm: LocalSwarm) -> dict[tuple[str, ...], float]:
    found = re.search(r"metrics (http\S+)", swarm.servers[0].output())
    assert found is not None
    with urllib.request.urlopen(found[1], timeout=10) as response:
        families = list(parse(response.read().decode()))
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def test_a_benchmark_shows_in_the_metrics_of_the_server(swarm: LocalSwarm) -> None:
    before = samples(swarm)
    assert before["chainserve_server_online",] == 1
    assert before["chainserve_server_blocks",] == before["chainserve_server_model_blocks",] == 30
    report = command(swarm.token, "bench", "--requests", "3", "--rate", "20", "--output-tokens", "6")
    assert report["num_answered"] == 3
    assert [request["num_tokens"] for request in report["requests"]] == [6, 6, 6]
    assert 0 <= report["summary"]["waited_s"]["median"] <= report["summary"]["first_s"]["median"]
    after = samples(swarm)

    def grown(*key: str) -> float:
        return after[key] - before.get(key, 0.0)

    assert grown("chainserve_server_sessions_opened_total") == 3
    assert grown("chainserve_server_computed_tokens_total", "prefill") >= 3 * 32
    steps = [grown("chainserve_server_computed_tokens_total", phase) for phase in ("decode", "drafts")]
    assert sum(steps) >= 3 * 5 - 6  # drafts may save some
    assert after["chainserve_server_cache_free_tokens",] == after["chainserve_server_cache_tokens",]
    assert after["chainserve_server_sessions",] == 0


def test_a_token_says_who_answers(swarm: LocalSwarm) -> None:
    report = command(swarm.token, "token")
    assert report["is_good"] is True
    assert {one["peer"] for one in report["addresses"]} == {swarm.servers[0].peer}
    assert all(one["error"] is None for one in report["addresses"])


def test_the_doctor_sees_the_swarm_and_has_itself_called_back(swarm: LocalSwarm) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    report = command(swarm.token, "doctor", "--device", "cpu", "--host", "127.0.0.1", "--port", str(port))
    levels = {finding["name"]: finding["level"] for finding in report["findings"]}
    for name in ("versions", "ports", "token", "swarm", "blocks", "version", "clock"):
        assert levels[name] == "ok", report
    [reachable] = [finding for finding in report["findings"] if finding["name"] == "reachable"]
    assert "servers of this very machine" in reachable["fact"]


def test_a_profile_that_was_measured_on_a_busy_machine_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def slowed(value: Any) -> Any:
        return list(map(slowed, value)) if isinstance(value, list) else value if isinstance(value, int) else 50 * value

    with LocalSwarm(MODEL, tmp_path, is_warm=True) as swarm:
        swarm.start("0:30")
    [kept] = tmp_path.glob("cache/chainserve/profiles/*.json")
    (tmp_path / "again").mkdir()
    report = json.loads(kept.read_text())
    report["profile"]["times"] = {name: slowed(value) for name, value in report["profile"]["times"].items()}
    kept.write_text(json.dumps(report))
    with LocalSwarm(MODEL, tmp_path / "again", is_warm=True) as swarm:
        swarm.start("0:30")
        command(swarm.token, "bench", "--requests", "1", "--rate", "20", "--output-tokens", "24")
        swarm.servers[0].wait_for("it was busy with something else then")
    assert not kept.exists()
