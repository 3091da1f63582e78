"""Servers whose blocks the swarm chooses: one command starts six of them, and they serve through every chain."""

import asyncio
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bundled import MODEL, Reference
from planned import check_memory, settled_plan

from chainserve_client import AsyncClient

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

MEMORY_MB = (300, 250, 200, 170, 150, 130)
PROMPT = "What is the capital of France?"
NEW_TOKENS = 16
START_S = 180.0
LEAVE_S = 30.0


@contextmanager
def family(folder: Path, *arguments: str) -> Iterator[Path]:
    """Several servers by one command; what they print is in the file, and they are gone at the end."""
    log = folder / "family.log"
    command = [sys.executable, "-m", "chainserve_server.cli", "--model", MODEL, "--identity", str(folder / "key")]
    with log.open("wb") as output:
        parent = subprocess.Popen([*command, *arguments], stdout=output, stderr=subprocess.STDOUT, cwd=folder)
    try:
        yield log
        assert parent.poll() is None, log.read_text()
    finally:
        parent.send_signal(signal.SIGINT)
        try:
            parent.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            parent.kill()
            parent.wait()


def printed(log: Path, pattern: str, *, times: int = 1) -> list[str]:
    """Wait until what `pattern` finds has been printed so often."""
    deadline = time.monotonic() + START_S
    while len(found := re.findall(pattern, log.read_text(), re.MULTILINE)) < times:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return found


async def test_one_command_starts_six_unlike_servers_that_plan_themselves(tmp_path: Path, reference: Reference) -> None:
    memory = ",".join(f"{megabytes}MB" for megabytes in MEMORY_MB)
    with family(tmp_path, "--num-servers", str(len(MEMORY_MB)), "--memory", memory) as log:
        (token,) = await asyncio.to_thread(printed, log, r"^chainserve1\.\S+$")
        await asyncio.to_thread(printed, log, "is online", times=len(MEMORY_MB))
        prompt = reference.prompt(PROMPT)
        expected = reference.greedy(prompt, NEW_TOKENS)
        async with await AsyncClient.connect(token) as client:
            plan = await settled_plan(client, num_servers=len(MEMORY_MB))
            view = client.network.swarm.view

            # The live plan is what plan() makes of the servers' own profiles.
            again = plan.inputs.plan()
            assert (again.placement, again.chains) == (plan.placement, plan.chains)
            offers = {peer: server.offer for peer, server in view.servers.items() if server.offer}
            assert {server.peer: server.offered_bytes for server in plan.inputs.servers} == {
                peer: offer.memory_bytes for peer, offer in offers.items()
            }
            assert sorted(offer.memory_bytes for offer in offers.values()) == sorted(mb * 10**6 for mb in MEMORY_MB)
            for server in plan.inputs.servers:
                assert server.times.block.decode_s == offers[server.peer].profile.times.block.decode_s

            # Nobody holds more than its memory, and every chain of the plan gives the right tokens.
            for announced in view.servers.values():
                check_memory(announced)
            assert plan.chains
            for planned in plan.chains:
                answer = await client.generate(prompt, chain=planned.chain, max_new_tokens=NEW_TOKENS)
                assert answer.chain == planned.chain
                assert answer.tokens == expected
