"""Peers whose clocks disagree by minutes see each other come, stay and go as if they did not."""

import asyncio
import json
import math
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chainserve.errors import JoinError
from chainserve.swarm.clock import SwarmClock
from chainserve.swarm.hivemind import HivemindSwarm
from chainserve.swarm.identity import Identity
from chainserve.swarm.records import Announcement
from chainserve.swarm.token import JoinToken

pytestmark = pytest.mark.slow

Announce = Callable[..., Announcement]
Enter = Callable[..., Awaitable[HivemindSwarm]]

LEASE_S = 2.0
ROUND_TRIP_S = 2.0  # of busy machines
PEER = """
import asyncio, json, sys
import uvloop
from chainserve.swarm.hivemind import HivemindSwarm
from chainserve.swarm.identity import Identity
from chainserve.swarm.records import Announcement, ServerState
from chainserve.swarm.token import JoinToken
from chainserve.types import Span

LEASE_S = float(sys.argv[1])

async def publish(swarm):
    fields = dict(state=ServerState.ONLINE, model="tiny", model_digest="00", num_blocks=4, span=Span(0, 4))
    fields |= dict(dtype="float32", cache_tokens=1, free_tokens=1, addresses=(), version="0", started_at=swarm.now())
    while True:
        await swarm.publish(Announcement(peer=swarm.peer_id, **fields))
        await asyncio.sleep(LEASE_S / 6)

async def read():
    return (await asyncio.to_thread(sys.stdin.readline)).strip()

async def enter(way):
    match way.split():
        case ["create"]:
            swarm = await HivemindSwarm.create(Identity.generate(), "test", secret=b"s" * 32, lease_s=LEASE_S)
        case ["join", token]:
            swarm = await HivemindSwarm.join(Identity.generate(), JoinToken.decode(token, now=0.0), lease_s=LEASE_S)
    publishing = asyncio.create_task(publish(swarm))
    print(json.dumps([swarm.peer_id, (await swarm.token()).encode()]), flush=True)
    while (command := await read()) not in ("", "leave"):
        if command in ("hush", "withdraw"):
            publishing.cancel()
            await asyncio.wait([publishing])
        if command == "withdraw":
            await swarm.withdraw()
        print(json.dumps([swarm.now(), list((await swarm.refresh()).servers), swarm.num_refused]), flush=True)
    await swarm.close()

async def main():
    while way := await read():
        await enter(way)

uvloop.run(main())
"""


class Peer:
    """A process with a server whose clock is off; it answers each line with one."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, line: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n".encode())
        return json.loads(await self._process.stdout.readline())

    def leave(self) -> None:
        """Leave the swarm, to enter another one."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"leave\n")

    async def servers(self) -> set[str]:
        """Those it sees now."""
        _, servers, num_refused = await self.ask("look")
        assert num_refused == 0
        return set(servers)


@asynccontextmanager
async def started(*, off_s: float) -> AsyncIterator[Peer]:
    """A peer that has not entered a swarm yet."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("skewed.py")),
        *(str(off_s), "-c", PEER, str(LEASE_S)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield Peer(process)
        async with asyncio.timeout(10.0):
            await process.communicate(b"")  # the end of its input ends it
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def comes(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it holds; TimeoutError if it does not within a few leases."""
    async with asyncio.timeout(4 * LEASE_S):
        while not await condition():
            await asyncio.sleep(0.05)


@pytest.mark.process
@pytest.mark.timeout(120)
async def test_processes_whose_clocks_are_two_minutes_apart_are_one_swarm(enter: Enter) -> None:
    async with started(off_s=60.0) as ahead, started(off_s=-60.0) as behind:
        await come_stay_and_go(ahead, behind, enter, ahead_s=60.0)
        ahead.leave()
        behind.leave()
        await come_stay_and_go(behind, ahead, enter, ahead_s=-60.0)


async def come_stay_and_go(creator: Peer, server: Peer, enter: Enter, *, ahead_s: float) -> None:
    """A swarm of three, whose time is that of its creator, `ahead_s` ahead of the client."""
    first, token = await creator.ask("create")
    second, token = await server.ask(f"join {token}")
    through_second = JoinToken.decode(token, now=0.0)
    through_second = replace(through_second, bootstrap=through_second.bootstrap[:1])
    client = await enter(0.0, through_second, host=None)

    async def all_see(*servers: str) -> bool:
        found = [await creator.servers(), await server.servers(), set((await client.refresh()).servers)]
        return found == [set(servers)] * 3

    assert client.now() == pytest.approx(time.time() + ahead_s, abs=ROUND_TRIP_S)
    for peer in (creator, server):
        asked_at = client.now()
        now, *_ = await peer.ask("look")
        assert asked_at - ROUND_TRIP_S < now < client.now() + ROUND_TRIP_S
    await comes(lambda: all_see(first, second))
    await asyncio.sleep(1.2 * LEASE_S)  # processes have no clock to pass in
    await comes(lambda: all_see(first, second))

    await server.ask("withdraw")
    assert second not in (await creator.servers() | await server.servers() | set((await client.refresh()).servers))
    await creator.ask("hush")
    await comes(all_see)
    assert client.num_refused == 0


def clock(off_s: float) -> SwarmClock:
    return SwarmClock(wall=lambda: time.time() + off_s)


@pytest.fixture
async def enter(identities: list[Identity], announce: Announce) -> AsyncIterator[Enter]:
    """Create a swarm, or join the one of a token, with a clock that is off; and publish, if it is no client."""
    swarms: list[HivemindSwarm] = []

    async def build(off_s: float, token: JoinToken | None = None, **options: Any) -> HivemindSwarm:
        identity = identities[len(swarms)]
        if token is None:
            swarm = await HivemindSwarm.create(identity, "test", secret=b"s" * 32, clock=clock(off_s), **options)
        else:
            swarm = await HivemindSwarm.join(identity, token, clock=clock(off_s), **options)
        swarms.append(swarm)
        if math.isfinite(off_s) and options.get("host", "") is not None:
            await swarm.publish(announce(swarm.peer_id))
        return swarm

    yield build
    for swarm in reversed(swarms):
        await swarm.close()


async def test_each_swarm_of_one_process_has_its_own_time(enter: Enter) -> None:
    ahead, behind = await enter(90.0), await enter(-90.0)
    for swarm, off_s in ((ahead, 90.0), (behind, -90.0)):
        client = await enter(0.0, await swarm.token(), host=None)
        assert client.now() == pytest.approx(time.time() + off_s, abs=ROUND_TRIP_S)
        assert list(client.view.servers) == [swarm.peer_id]
        assert client.view.taken_at == pytest.approx(time.time() + off_s, abs=ROUND_TRIP_S)
        assert swarm.num_refused == client.num_refused == 0


async def test_a_clock_that_is_set_while_we_run_changes_nothing(
    enter: Enter, announce: Announce, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await enter(0.0)
    second = await enter(60.0, await first.token())
    true_time = time.time
    for step_s in (3600.0, -3600.0):
        monkeypatch.setattr(time, "time", lambda step_s=step_s: true_time() + step_s)
        for swarm in (first, second):
            await swarm.publish(announce(swarm.peer_id, started_at=true_time() + step_s))
        for swarm in (first, second):
            view = await swarm.refresh()
            assert {server.started_at > true_time() for server in view.servers.values()} == {step_s > 0}
            assert list(view.servers) == sorted([first.peer_id, second.peer_id])
            assert view.taken_at == pytest.approx(true_time(), abs=ROUND_TRIP_S)


@pytest.mark.parametrize(
    ("off_s", "says"),
    [
        (400 * 86_400.0, "the clock of this machine and that of the swarm differ by 400 days: set the clock"),
        (-4e9, "differ by 46296.3 days"),
        (math.nan, "no peer there tells the time"),
        (-math.inf, "no peer there tells the time"),
    ],
)
async def test_a_bootstrap_peer_with_a_nonsense_time_is_not_believed(off_s: float, says: str, enter: Enter) -> None:
    creator = await enter(off_s)
    with pytest.raises(JoinError, match=says):
        await enter(0.0, await creator.token(), host=None)


async def test_a_bootstrap_peer_with_a_nonsense_time_keeps_nobody_from_joining_through_others(enter: Enter) -> None:
    honest = await enter(60.0)
    mad = await enter(math.nan)
    token = await honest.token()
    client = await enter(0.0, replace(token, bootstrap=(*await mad.addresses(), *token.bootstrap)), host=None)
    assert client.now() == pytest.approx(honest.now(), abs=ROUND_TRIP_S)
    assert list(client.view.servers) == [honest.peer_id]


async def test_a_bootstrap_peer_that_never_tells_the_time_does_not_hold_us_up_for_long(
    enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, mute = await enter(60.0), await enter(0.0)

    async def never(*_: object) -> None:
        await asyncio.sleep(60.0)

    monkeypatch.setitem(mute.p2p._client.control.unary_handlers, "DHTProtocol.rpc_ping", never)
    token = await honest.token()
    client = await enter(0.0, replace(token, bootstrap=(*await mute.addresses(), *token.bootstrap)), host=None)
    assert client.now() == pytest.approx(honest.now(), abs=ROUND_TRIP_S)
