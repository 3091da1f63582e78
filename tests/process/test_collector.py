"""Python's garbage collector keeps nobody waiting for a token: it looks through what has come since the start."""

import asyncio
import re
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
    with LocalSwarm(MODEL, tmp_path, program=PROGRAM) as swarm:
        [server] = await asyncio.to_thread(swarm.start, "0:30")
        async with await AsyncClient.connect(swarm.token) as client:
            await client.generate("Once upon a time", max_new_tokens=4)
        server.process.send_signal(signal.SIGUSR1)
        said = re.search(r"^(\d+) objects$", await asyncio.to_thread(server.wait_for, " objects\n"), re.M)
    assert said is not None
    assert int(said[1]) < MOST_OBJECTS
