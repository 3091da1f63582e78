"""Servers that go away, politely or not: named errors in time, and the others go on."""

import asyncio
import signal
import time
from collections.abc import Callable

import pytest
from bundled import MakeSwarm

from chainserve.errors import NoChainError, PeerError, SessionLostError
from chainserve.swarm.view import View
from chainserve_client import AsyncClient
from chainserve_server.local import LocalServer

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]

PROMPT = "Once upon a time"
NOTICE_S = 10.0
LEAVE_S = 5.0


def children_of(pid: int) -> list[int]:
    """Process ids of a server's children: libp2p's daemon."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until(condition: Callable[[], bool], *, timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


async def see(client: AsyncClient, condition: Callable[[View], bool], *, timeout_s: float) -> None:
    await client.network.swarm.wait_for(condition, timeout_s=timeout_s)


async def break_mid_answer(client: AsyncClient, act: Callable[[], object]) -> tuple[SessionLostError, float]:
    """Run `act` after five tokens; the error that comes of it, and after how many seconds."""
    stream = client.stream(PROMPT, max_new_tokens=2000)
    for _ in range(5):
        await anext(stream)
    act()
    acted = time.monotonic()
    with pytest.raises(SessionLostError) as caught:
        async for _ in stream:
            pass
    return caught.value, time.monotonic() - acted


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
@pytest.mark.parametrize("position", [0, 1, 2], ids=["head", "middle", "tail"])
async def test_a_server_lost_mid_answer_is_named_in_time_and_the_others_serve_on(
    how: signal.Signals, position: int, make_swarm: MakeSwarm
) -> None:
    swarm = await asyncio.to_thread(make_swarm, "0:10", "10:20", "20:30")
    lost = swarm.servers[position]
    daemons = children_of(lost.process.pid)
    async with await AsyncClient.connect(swarm.token) as client:
        error, took_s = await break_mid_answer(client, lambda: lost.process.send_signal(how))
        assert error.peer == lost.peer
        assert took_s < NOTICE_S
        for server in swarm.servers:
            assert server is lost or server.process.poll() is None

        with pytest.raises((PeerError, NoChainError)):
            await client.generate(PROMPT, max_new_tokens=4)
        if how is signal.SIGKILL:
            await until(lambda: not any(map(is_alive, daemons)), timeout_s=10)
        if position == 0:
            return  # others cannot join through it any more
        [spare] = await asyncio.to_thread(swarm.start, lost.blocks)
        await see(client, lambda view: spare.peer in view.servers, timeout_s=20)
        answer = await client.generate(PROMPT, max_new_tokens=4)
        assert spare.peer in {hop.peer for hop in answer.chain.hops}


async def test_ctrl_c_drains_and_is_gone_from_the_view_at_once(make_swarm: MakeSwarm) -> None:
    swarm = await asyncio.to_thread(make_swarm, "0:15", "15:30")
    leaving = swarm.servers[1]
    daemons = children_of(leaving.process.pid)
    async with await AsyncClient.connect(swarm.token) as client:
        stream = client.stream(PROMPT, max_new_tokens=12)
        await anext(stream)
        began = time.monotonic()
        leaving.process.send_signal(signal.SIGINT)
        await see(client, lambda view: leaving.peer not in view.servers, timeout_s=2)
        async for _ in stream:
            pass
        assert len(stream.result.tokens) == 12  # what ran was given the time to finish
        await until(lambda: leaving.process.poll() is not None, timeout_s=LEAVE_S)
        assert time.monotonic() - began < LEAVE_S
        assert leaving.process.returncode == 0
        assert not any(map(is_alive, daemons))
        with pytest.raises(NoChainError, match="blocks 15:30 of 30"):
            await client.generate(PROMPT)


async def test_what_does_not_finish_while_draining_is_ended_with_a_reason(make_swarm: MakeSwarm) -> None:
    swarm = await asyncio.to_thread(make_swarm, "0:15", "15:30")
    leaving = swarm.servers[1]
    async with await AsyncClient.connect(swarm.token) as client:
        error, took_s = await break_mid_answer(client, lambda: leaving.process.send_signal(signal.SIGINT))
        assert error.peer == leaving.peer
        assert "left the swarm" in error.reason
        assert took_s < NOTICE_S  # after it has looked for another chain for a while


async def test_a_client_that_goes_away_leaves_no_cache_behind(make_swarm: MakeSwarm) -> None:
    swarm = await asyncio.to_thread(make_swarm, "0:15", "15:30")
    async with await AsyncClient.connect(swarm.token) as watcher:

        def all_free(view: View) -> bool:
            return len(view.servers) == 2 and all(s.free_tokens == s.cache_tokens for s in view.servers.values())

        client = await AsyncClient.connect(swarm.token)
        stream = client.stream(PROMPT, max_new_tokens=2000)
        await anext(stream)
        await see(watcher, lambda view: not all_free(view), timeout_s=10)
        await stream.aclose()
        await see(watcher, all_free, timeout_s=10)

        stream = client.stream(PROMPT, max_new_tokens=2000)
        await anext(stream)
        await see(watcher, lambda view: not all_free(view), timeout_s=10)
        await client.network.links.close()  # as if it had died: nothing is said to the servers
        await see(watcher, all_free, timeout_s=10)
        await stream.aclose()
        await client.close()


async def test_a_restarted_server_is_the_same_peer(make_swarm: MakeSwarm) -> None:
    swarm = await asyncio.to_thread(make_swarm, "0:15", "15:30")
    async with await AsyncClient.connect(swarm.token) as client:
        before = swarm.servers[1]
        before.process.kill()
        before.process.wait()
        key = before.log.with_suffix(".key")
        restarted: LocalServer = await asyncio.to_thread(swarm.launch, "15:30", ["--identity", str(key)])
        await asyncio.to_thread(restarted.wait_for, "is online")
        assert restarted.peer == before.peer
        answer = await client.generate(PROMPT, max_new_tokens=4)
        assert [hop.peer for hop in answer.chain.hops] == [swarm.servers[0].peer, before.peer]
