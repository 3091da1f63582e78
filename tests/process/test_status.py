"""`chainserve status` over a real swarm."""

import json
import subprocess
import sys
import time
from typing import Any

import pytest
from bundled import MODEL, MakeSwarm

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]


def status(token: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "chainserve_client.cli", "status", token, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done
    assert done.stderr == ""
    return done.stdout


def once_planned(token: str, *, num_servers: int) -> dict[str, Any]:
    """The status as JSON once all of so many servers follow a plan for all of them."""
    deadline = time.monotonic() + 60
    while True:
        content: dict[str, Any] = json.loads(status(token, "--json"))
        plan = content["models"][0]["plan"]
        if plan and len(plan["servers"]) == plan["num_followers"] == num_servers:
            return content
        assert time.monotonic() < deadline, content


def test_a_live_swarm_is_shown_with_what_it_holds_and_lacks(make_swarm: MakeSwarm) -> None:
    swarm = make_swarm("0:10", "8:20", arguments=("--memory", "400MB"))
    text = status(swarm.token)
    assert text.startswith(f"swarm chainserve: 2 servers\n\n{MODEL}: 30 blocks, 2 servers, dtype float32, version ")
    assert "\nnobody serves blocks 20:30\n" in text
    assert max(map(len, text.splitlines())) <= 100
    for server in swarm.servers:
        (line,) = (line for line in text.splitlines() if line.startswith(server.peer[-6:]))
        assert f"{server.blocks}*" in line
        assert " of 400 MB" in line
        assert "online" in line
        assert "direct, " in line
        assert " ms" in line

    swarm.start("20:30")
    content = once_planned(swarm.token, num_servers=3)
    assert content["models"][0]["missing_blocks"] == []
    shown = {server["peer"]: server for server in content["servers"]}
    assert set(shown) == {server.peer for server in swarm.servers}
    for server in swarm.servers:
        entry = shown[server.peer]
        assert entry["state"] == "online"
        assert f"{entry['blocks'][0]}:{entry['blocks'][1]}" == server.blocks
        assert 0 < entry["round_trip_s"] < 5
        assert 0 <= entry["up_s"] < 240
        assert entry["addresses"]
        assert entry["is_pinned"]
        assert 0 < entry["weight_bytes"] < entry["offer"]["memory_bytes"]

    plan = content["models"][0]["plan"]
    assert plan["planner"] == min(shown)
    assert {server["peer"]: server["blocks"] for server in plan["servers"]} == {
        peer: entry["blocks"] for peer, entry in shown.items()
    }
    assert [hop[1:] for hop in plan["chains"][0]["hops"]] in (
        [[0, 10], [10, 20], [20, 30]],
        [[0, 8], [8, 20], [20, 30]],
    )
    assert plan["max_requests_per_s"] > 0
    text = status(swarm.token)
    assert f"\nplan {plan['epoch']} by {plan['planner'][-6:]}, followed by 3 of 3 servers\n" in text
    assert "\nchain  sessions  first token  tokens/s  request  way\n" in text
    assert "\ntogether " in text


@pytest.mark.parametrize(("host", "option"), [("127.0.0.1", ""), ("0.0.0.0", "--host ADDRESS ")])
def test_a_server_says_how_to_join_it(make_swarm: MakeSwarm, host: str, option: str) -> None:
    [server] = make_swarm("0:1", arguments=("--host", host)).servers
    assert f"\njoin it:  chainserve-server --model {MODEL} {option}--join TOKEN\n" in server.output()
