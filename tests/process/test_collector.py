"""Python's garbage collector keeps nobody waiting for a token: it looks through what has come since the start."""

import asyncio
import signal
from pathlib import Path

import pytest
from bundled import MODEL

from chainserve_client import AsyncClient
from chainserve_server.local import LocalSwarm

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

PROGRAM = (str(Path(__file__).with_name("counted_server.py")),)
MOST_OBJECTS = 50_000
"""Of 450,000 that are there, which it takes 0.33 s to look through."""


async def test_a_server_that_serves_has_little_to_look_through(tmp_path: Path) -> None:
    path = tmp_path / "counted"
    with LocalSwarm(MODEL, tmp_path, environment={"COUNTED": str(path)}, program=PROGRAM) as swarm:
        [server] = await asyncio.to_thread(swarm.start, "0:30")
        async with await AsyncClient.connect(swarm.token) as client:
            await client.generate("Once upon a time", max_new_tokens=4)
        server.process.send_signal(signal.SIGUSR1)
        while not path.exists():
            assert server.process.poll() is None, server.output()
            await asyncio.sleep(0.05)
    assert int(path.read_text()) < MOST_OBJECTS, path.read_text()
