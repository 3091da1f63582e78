"""`chainserve status` over a real swarm."""

import json
import subprocess
import sys

import pytest
from bundled import MODEL, MakeSwarm

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


def status(token: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "chainserve_client.cli", "status", token, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done
    assert done.stderr == ""
    return done.stdout


def test_a_live_swarm_is_shown_with_what_it_holds_and_lacks(make_swarm: MakeSwarm) -> None:
    swarm = make_swarm("0:10", "8:20", arguments=("--memory", "300MB"))
    text = status(swarm.token)
    assert text.startswith(f"swarm chainserve: 2 servers\n\n{MODEL}: 30 blocks, 2 servers, dtype float32, version ")
    assert text.endswith("nobody serves blocks 20:30\n")
    for server in swarm.servers:
        (line,) = (line for line in text.splitlines() if line.startswith(server.peer[-6:]))
        assert server.blocks in line
        assert "online" in line
        assert "direct, " in line
        assert " ms" in line

    swarm.start("20:30")
    content = json.loads(status(swarm.token, "--json"))
    assert content["models"][0]["missing_blocks"] == []
    shown = {server["peer"]: server for server in content["servers"]}
    assert set(shown) == {server.peer for server in swarm.servers}
    for server in swarm.servers:
        entry = shown[server.peer]
        assert entry["state"] == "online"
        assert f"{entry['blocks'][0]}:{entry['blocks'][1]}" == server.blocks
        assert 0 < entry["round_trip_s"] < 5
        assert 0 <= entry["up_s"] < 120
        assert entry["addresses"]
