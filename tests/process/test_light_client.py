"""A client without a model, torch and hivemind, over a real swarm."""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bundled import MakeSwarm, Reference

from chainserve.models.resolve import resolve
from chainserve_client.join import join

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

TESTS = Path(__file__).parents[1]


def test_it_sees_the_swarm_and_gets_the_models_own_answer(make_swarm: MakeSwarm, reference: Reference) -> None:
    swarm = make_swarm("0:15", "15:30")
    command = [sys.executable, str(TESTS / "client" / "forbidding.py"), "light_client", "--", swarm.token]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd=TESTS / "process", env=_environment()
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    peers = sorted(server.peer for server in swarm.servers)
    assert found["servers"] == peers
    assert set(found["planned"]) <= set(peers)
    assert set(found["kinds"]) == {"direct"}
    messages = [{"role": "user", "content": "Why is the sky blue?"}]
    tokenizer = resolve(swarm.model).tokenizer()
    assert found["prompt"] == tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert tuple(found["answer"]) == reference.greedy(found["prompt"], 16)


async def test_it_goes_on_when_the_server_that_it_asked_is_gone(make_swarm: MakeSwarm) -> None:
    swarm = await asyncio.to_thread(make_swarm, "0:15", "15:30")
    network = await join(swarm.token)
    try:
        asked, other = swarm.servers  # only the first one's address is in the token
        assert network.links.kind(asked.peer) == "direct"
        asked.process.kill()
        asked.process.wait()
        began_s = time.monotonic()
        view = await network.swarm.refresh()
        assert other.peer in view.servers
        assert time.monotonic() - began_s < 5
        assert network.links.kind(other.peer) == "direct"
    finally:
        await network.close()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS / "process"), os.environ.get("PYTHONPATH", "")])}
