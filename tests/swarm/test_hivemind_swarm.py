"""Peers over a real DHT on the loopback: who is there, who may say so, and how it ends."""

import asyncio
import gc
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import replace
from pkgutil import resolve_name
from typing import Any

import msgpack
import psutil
import pytest
import uvloop

from chainserve.errors import AddressError, JoinError, SwarmError
from chainserve.swarm.hivemind import HivemindSwarm
from chainserve.swarm.identity import Identity
from chainserve.swarm.interface import PLAN_LEASES
from chainserve.swarm.light import LightSwarm
from chainserve.swarm.plans import PlanRecord, seal_plan
from chainserve.swarm.records import SCHEMA, Announcement, ServerState, seal, seal_payload
from chainserve.swarm.token import DirectAddress, JoinToken, swarm_secret
from chainserve.types import PeerId

pytestmark = pytest.mark.slow  # hivemind alone takes seconds to import

Announce = Callable[..., Announcement]
Enter = Callable[..., Awaitable[HivemindSwarm]]


async def found(identity: Identity, **options: Any) -> HivemindSwarm:
    return await HivemindSwarm.create(identity, "test", secret=swarm_secret(identity, "test"), **options)


@pytest.fixture
async def enter() -> AsyncIterator[Enter]:
    """Start a swarm, or join the one of a token; all are left when the test is over."""
    swarms: list[HivemindSwarm] = []

    async def build(identity: Identity, token: JoinToken | None = None, **options: Any) -> HivemindSwarm:
        swarm = await (HivemindSwarm.join(identity, token, **options) if token else found(identity, **options))
        swarms.append(swarm)
        return swarm

    yield build
    for swarm in reversed(swarms):
        await swarm.close()
    assert daemons() == []


def daemons() -> list[int]:
    """Process ids of our libp2p daemons, zombies included."""
    return [child.pid for child in psutil.Process().children() if child.name() == "p2pd"]


async def three_peers(identities: list[Identity], announce: Announce) -> None:
    first = await found(identities[0])
    await first.publish(announce(first.peer_id))
    second = await HivemindSwarm.join(identities[1], await first.token())
    assert list(second.view.servers) == [first.peer_id]  # joining has read once
    await second.publish(announce(second.peer_id, state=ServerState.LOADING))
    client = await HivemindSwarm.join(identities[2], await second.token(), host=None)

    view = await client.refresh()
    assert view.servers == {
        first.peer_id: announce(first.peer_id),
        second.peer_id: announce(second.peer_id, state=ServerState.LOADING),
    }
    await second.publish(announce(second.peer_id, free_tokens=7))
    assert (await first.refresh()).servers[second.peer_id].free_tokens == 7
    await second.withdraw()
    assert [list((await swarm.refresh()).servers) for swarm in (first, second, client)] == [[first.peer_id]] * 3
    await second.publish(announce(second.peer_id))
    assert second.peer_id in (await client.refresh()).servers

    for swarm in (client, second, first):
        await swarm.close()
        await swarm.close()
    assert daemons() == []


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_peers_see_each_other_come_change_and_go(
    run: Callable[[Coroutine[Any, Any, None]], None], identities: list[Identity], announce: Announce
) -> None:
    run(three_peers(identities, announce))


async def test_a_client_gives_tokens_of_the_peers_it_came_by(
    enter: Enter, identities: list[Identity], announce: Announce
) -> None:
    server = await enter(identities[0])
    await server.publish(announce(server.peer_id))
    await server.refresh()
    token = await server.token(expires_at=2e9, direct=announce(server.peer_id).addresses)
    assert token.direct == (DirectAddress(server.peer_id, "ws://127.0.0.1:8300/link"),)
    client = await enter(identities[1], token, host=None)
    assert await client.addresses() == ()
    assert await client.token(expires_at=2e9) == token
    assert str(client.p2p.peer_id) == client.peer_id


async def test_what_others_have_sealed_can_be_passed_on(
    enter: Enter, identities: list[Identity], announce: Announce
) -> None:
    server = await enter(identities[0])
    await server.publish(announce(server.peer_id))
    other = await enter(identities[1], await server.token())
    await other.publish(announce(other.peer_id))
    await server.refresh()
    token = await server.token(direct=announce(server.peer_id).addresses)

    async def ask(peer: PeerId) -> tuple[bytes, float]:
        assert peer == server.peer_id
        return server.sealed.to_bytes(now=server.now()), 0.0

    client = LightSwarm(PeerId("client"), token, ask=ask)
    await client.enter()
    assert client.view.servers == server.view.servers
    await other.withdraw()
    await server.refresh()
    assert list((await client.refresh()).servers) == [server.peer_id]


async def test_a_record_that_is_not_published_again_expires(
    enter: Enter, identities: list[Identity], announce: Announce
) -> None:
    server = await enter(identities[0], lease_s=3.0)
    await server.publish(announce(server.peer_id))
    other = await enter(identities[1], await server.token(), host=None)
    assert server.peer_id in other.view.servers
    await other.wait_for(lambda view: not view.servers, timeout_s=5.0)


async def test_a_restarted_peer_is_the_same_peer_and_its_new_record_counts(
    enter: Enter, identities: list[Identity], announce: Announce
) -> None:
    first = await enter(identities[0])
    await first.publish(announce(first.peer_id))
    token = await first.token()
    before = await enter(identities[1], token, lease_s=60.0)
    await before.publish(announce(before.peer_id, free_tokens=1))
    await before.withdraw()
    await before.close()
    after = await enter(identities[1], token, lease_s=5.0)  # expires before the record it replaces
    await after.publish(announce(after.peer_id, free_tokens=2))
    assert after.peer_id == before.peer_id
    assert (await first.refresh()).servers[after.peer_id].free_tokens == 2


async def test_nobody_overwrites_the_record_of_another_peer(
    enter: Enter, identities: list[Identity], announce: Announce
) -> None:
    first = await enter(identities[0])
    await first.publish(announce(first.peer_id))
    honest = await enter(identities[1], await first.token())
    rogue = await enter(identities[2], await first.token())
    rogue._node.protocol.record_validator = None  # it takes and tells whatever it wants
    expires_at = time.time() + 100
    forged = [
        seal(announce(rogue.peer_id), identities[2], rogue._secret, expires_at=expires_at),
        seal(announce(first.peer_id), identities[0], b"x" * 32, expires_at=expires_at),
        b"garbage",
        "text",
    ]
    for record in forged:
        await rogue._node.store(rogue._keys.servers, record, expires_at, subkey=first.peer_id)
    await rogue._node.store(rogue._keys.servers, "no dictionary", expires_at + 1)
    assert first.num_refused > 0
    assert honest.num_refused > 0
    for swarm in (first, honest):
        assert (await swarm.refresh()).servers == {first.peer_id: announce(first.peer_id)}
    await first.publish(announce(first.peer_id, free_tokens=5))
    assert (await honest.refresh()).servers[first.peer_id].free_tokens == 5


async def test_nothing_is_stored_for_strangers_under_other_keys(
    enter: Enter, identities: list[Identity], announce: Announce
) -> None:
    first = await enter(identities[0])
    await first.publish(announce(first.peer_id))
    rogue = await enter(identities[1], await first.token())
    rogue._node.protocol.record_validator = None
    await rogue._node.store("their own key", b"data", time.time() + 100, exclude_self=True)
    assert first.num_refused == 1
    assert len(first._node.protocol.storage) == 1


def plan_of(planner: PeerId, *, epoch: int = 1) -> PlanRecord:
    return PlanRecord(planner=planner, epoch=epoch, model_digest="0123456789abcdef", digest="d", body=b"plan")


async def test_a_plan_is_seen_by_others_and_replaces_the_one_before(
    enter: Enter, identities: list[Identity], announce: Announce
) -> None:
    first = await enter(identities[0])
    await first.publish(announce(first.peer_id))
    token = await first.token()
    second, client = await enter(identities[1], token), await enter(identities[2], token, host=None)
    assert first.view.plan("0123456789abcdef") is None
    await first.publish_plan(plan_of(first.peer_id))
    views = [await swarm.refresh() for swarm in (first, second, client)]
    assert [view.plans for view in views] == [{first.peer_id: plan_of(first.peer_id)}] * 3
    await first.publish_plan(plan_of(first.peer_id, epoch=2))
    await second.publish_plan(plan_of(second.peer_id, epoch=3))
    for swarm in (first, second, client):
        view = await swarm.refresh()
        assert view.plans == {
            first.peer_id: plan_of(first.peer_id, epoch=2),
            second.peer_id: plan_of(second.peer_id, epoch=3),
        }
        assert view.plan("0123456789abcdef") == plan_of(second.peer_id, epoch=3)
        assert view.refused == {}
        assert list(view.servers) == [first.peer_id]  # plans are no announcements
    with pytest.raises(ValueError, match="cannot seal a plan of"):
        await second.publish_plan(plan_of(first.peer_id))


async def test_a_plan_outlives_the_announcement_of_its_planner_by_leases(
    enter: Enter, identities: list[Identity], announce: Announce
) -> None:
    first = await enter(identities[0])
    await first.publish(announce(first.peer_id))
    planner = await enter(identities[1], await first.token(), lease_s=1.0)
    await planner.publish(announce(planner.peer_id))
    await planner.publish_plan(plan_of(planner.peer_id))
    begin_s = first.now()
    await planner.close()
    view = await first.wait_for(lambda view: planner.peer_id not in view.servers, timeout_s=10.0)
    assert view.plan("0123456789abcdef") == plan_of(planner.peer_id)
    view = await first.wait_for(lambda view: not view.plans, timeout_s=10.0)
    assert view.taken_at - begin_s > (PLAN_LEASES - 1) * planner.lease_s  # its clock may be a little behind


async def test_a_forged_plan_is_not_believed_and_its_maker_is_named(
    enter: Enter, identities: list[Identity], announce: Announce
) -> None:
    first = await enter(identities[0])
    await first.publish(announce(first.peer_id))
    await first.publish_plan(plan_of(first.peer_id))
    honest = await enter(identities[1], await first.token())
    rogue = await enter(identities[2], await first.token())
    rogue._node.protocol.record_validator = None  # it takes and tells whatever it wants
    expires_at = time.time() + 100
    forged = [
        seal_plan(plan_of(rogue.peer_id, epoch=9), identities[2], rogue._secret, expires_at=expires_at),
        seal_plan(plan_of(first.peer_id, epoch=9), identities[0], b"x" * 32, expires_at=expires_at),
        b"garbage",
    ]
    for name in (first.peer_id, "nobody"):
        for record in forged:
            await rogue._node.store(rogue._keys.plans, record, expires_at, subkey=name)
    nonsense = seal_payload(
        msgpack.packb({"schema": SCHEMA, "epoch": -9}), identities[2], rogue._secret, expires_at=expires_at
    )
    await rogue._node.store(rogue._keys.plans, nonsense, expires_at, subkey=rogue.peer_id)
    for swarm in (first, honest):
        view = await swarm.refresh()
        assert view.plans == {first.peer_id: plan_of(first.peer_id)}
        assert view.plan("0123456789abcdef") == plan_of(first.peer_id)
        assert view.servers == {first.peer_id: announce(first.peer_id)}
        assert view.refused[rogue.peer_id] == "plan is of epoch -9"
        assert "record is" in view.refused[PeerId("nobody")]
        assert first.peer_id not in view.refused  # whoever is in the swarm is not to blame for what bears its name
        assert swarm.num_refused > 0
    await first.publish_plan(plan_of(first.peer_id, epoch=2))
    assert (await honest.refresh()).plan("0123456789abcdef") == plan_of(first.peer_id, epoch=2)


async def test_a_server_whose_record_cannot_be_read_is_named_until_it_can(
    enter: Enter, identities: list[Identity], announce: Announce
) -> None:
    first = await enter(identities[0])
    await first.publish(announce(first.peer_id))
    newer = await enter(identities[1], await first.token())
    expires_at = time.time() + 5
    newest = seal_payload(msgpack.packb({"schema": SCHEMA + 1}), identities[1], newer._secret, expires_at=expires_at)
    await newer._node.store(newer._keys.servers, newest, expires_at, subkey=newer.peer_id)
    view = await first.refresh()
    assert list(view.servers) == [first.peer_id]
    assert f"schema {SCHEMA + 1}, this version reads {SCHEMA}" in view.refused[newer.peer_id]
    await newer.publish(announce(newer.peer_id))
    view = await first.refresh()
    assert (list(view.servers), view.refused) == (sorted([first.peer_id, newer.peer_id]), {})


async def test_others_are_read_when_one_of_them_has_died(
    enter: Enter, identities: list[Identity], announce: Announce
) -> None:
    first = await enter(identities[0])
    await first.publish(announce(first.peer_id))
    token = await first.token()
    second, third = await enter(identities[1], token), await enter(identities[2], token)
    for swarm in (second, third):
        await swarm.publish(announce(swarm.peer_id))
    first._daemon._process.kill()
    await first._daemon._process.wait()
    assert len((await third.refresh()).servers) == 3  # until the dead one's lease is over
    with pytest.raises(SwarmError, match="daemon has ended"):
        await first.refresh()
    with pytest.raises(SwarmError, match="daemon has ended"):
        await first.publish(announce(first.peer_id))
    started = time.monotonic()
    await first.close()
    assert time.monotonic() - started < 1.0


async def test_the_token_of_another_swarm_does_not_let_one_in(
    enter: Enter, identities: list[Identity], announce: Announce
) -> None:
    server = await enter(identities[0])
    await server.publish(announce(server.peer_id))
    foreign = replace(await server.token(), secret=b"x" * 32)
    with pytest.raises(JoinError, match="know no server of swarm 'test'"):
        await HivemindSwarm.join(identities[1], foreign, host=None)
    assert len(daemons()) == 1


async def test_an_address_where_nobody_listens_is_named(identities: list[Identity]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"/ip4/127.0.0.1/tcp/{closed.getsockname()[1]}/p2p/{identities[1].peer_id}"
        with pytest.raises(JoinError, match=f"cannot join through {address}: .*failed to connect"):
            await HivemindSwarm.join(identities[0], JoinToken("test", b"x" * 32, (address,)))
    assert daemons() == []


async def test_an_address_that_never_answers_is_given_up_in_time(identities: list[Identity]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"/ip4/127.0.0.1/tcp/{mute.getsockname()[1]}/p2p/{identities[1].peer_id}"
        started = time.monotonic()
        with pytest.raises(JoinError, match="no answer within 1 s"):
            await HivemindSwarm.join(identities[0], JoinToken("test", b"x" * 32, (address,)), timeout_s=1.0)
        assert time.monotonic() - started < 4.0
    assert daemons() == []


async def test_nobody_joins_through_itself(enter: Enter, identities: list[Identity]) -> None:
    server = await enter(identities[0])
    with pytest.raises(JoinError, match="leads to this peer itself"):
        await HivemindSwarm.join(identities[0], await server.token())


async def test_the_port_of_another_swarm_is_in_use(enter: Enter, identities: list[Identity]) -> None:
    server = await enter(identities[0])
    port = int((await server.addresses())[0].split("/")[4])
    with pytest.raises(AddressError, match=f"port {port} of 127.0.0.1 is in use"):
        await found(identities[1], port=port)


async def test_a_swarm_on_all_interfaces_names_addresses_that_others_can_reach(
    enter: Enter, identities: list[Identity], announce: Announce
) -> None:
    server = await enter(identities[0], host="0.0.0.0")
    await server.publish(announce(server.peer_id))
    addresses = await server.addresses()
    assert addresses
    assert not [address for address in addresses if "/0.0.0.0/" in address]
    if any(family.address for name in psutil.net_if_addrs() if name != "lo" for family in psutil.net_if_addrs()[name]):
        assert not [address for address in addresses if "/127.0.0.1/" in address]
    assert server.peer_id in (await enter(identities[1], await server.token(), host=None)).view.servers


@pytest.mark.parametrize(
    "step",
    [
        "chainserve.swarm.hivemind.Daemon.start",
        "chainserve.swarm.daemon._read",
        "hivemind.p2p.p2p_daemon_bindings.control.read_pbmsg_safe",
        "chainserve.swarm.hivemind.DHTNode.create",
    ],
)
def test_a_start_that_is_cancelled_leaves_nothing_behind(
    step: str, identities: list[Identity], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = resolve_name(step)
    starts: list[asyncio.Task[HivemindSwarm]] = []

    async def cancelled_on_the_way(*args: Any, **options: Any) -> Any:
        starts[0].cancel()
        await asyncio.sleep(0)  # here, with all open that is open at this step
        return await original(*args, **options)

    async def start() -> None:
        starts.append(asyncio.create_task(found(identities[0])))
        await asyncio.wait(starts)
        assert starts[0].cancelled()
        assert daemons() == []

    monkeypatch.setattr(step, cancelled_on_the_way)
    asyncio.run(start())
    starts.clear()
    gc.collect()  # connections left open complain now that their loop is closed


async def test_leaving_that_is_cancelled_still_ends_the_daemon(identities: list[Identity]) -> None:
    swarm = await found(identities[0])
    task = asyncio.create_task(swarm.close())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert daemons() == []
