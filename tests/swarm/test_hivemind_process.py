"""How a process with a swarm ends: by Ctrl-C in good order, by SIGKILL without leaving its daemon behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.process]

CHILD = """
import asyncio, signal, sys
import uvloop
from chainserve.swarm.hivemind import HivemindSwarm
from chainserve.swarm.identity import Identity
from chainserve.swarm.records import Announcement, ServerState
from chainserve.types import Span

async def main():
    leave = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, leave.set)
    observer = await HivemindSwarm.create(Identity.generate(), "test", secret=b"s" * 32)
    fields = dict(state=ServerState.ONLINE, model="tiny", model_digest="00", num_blocks=4, span=Span(0, 4))
    fields |= dict(dtype="float32", cache_tokens=1, free_tokens=1, addresses=(), version="0", started_at=0.0)
    await observer.publish(Announcement(peer=observer.peer_id, **fields))
    server = await HivemindSwarm.join(Identity.generate(), await observer.token())
    await server.publish(Announcement(peer=server.peer_id, **fields))
    assert len((await observer.refresh()).servers) == 2
    print("ready", flush=True)
    await leave.wait()
    await server.withdraw()
    assert list((await observer.refresh()).servers) == [observer.peer_id]
    await server.close()
    await observer.close()
    print("left", flush=True)

(uvloop.run if sys.argv[1] == "uvloop" else asyncio.run)(main())
"""


@contextmanager
def child(loop: str) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A process in its own group with two peers of a swarm, and their daemons."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, loop], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )
    daemons: list[psutil.Process] = []
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        daemons = psutil.Process(process.pid).children()
        assert [daemon.name() for daemon in daemons] == ["p2pd", "p2pd"]
        yield process, daemons
    finally:
        process.kill()
        process.communicate()
        for daemon in daemons:
            if not has_ended(daemon):
                daemon.kill()


def has_ended(process: psutil.Process) -> bool:
    """Whether a process is gone, or dead and waiting for its new parent to notice."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_ctrl_c_at_the_terminal_lets_a_server_leave_in_good_order(loop: str) -> None:
    with child(loop) as (process, daemons):
        assert process.pid not in {os.getpgid(daemon.pid) for daemon in daemons}  # Ctrl-C goes to the whole group
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=20)
        assert (output, errors, process.returncode) == ("left\n", "", 0)
        assert all(map(has_ended, daemons))


def test_a_killed_server_leaves_no_daemon_behind() -> None:
    with child("asyncio") as (process, daemons):
        process.kill()
        process.wait()
        deadline = time.monotonic() + 2.0
        while not all(map(has_ended, daemons)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
