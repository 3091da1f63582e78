"""A client that reads the swarm through its servers: it believes what owners have sealed, whoever passes it on."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from chainserve.errors import JoinError, LinkLostError, SwarmError
from chainserve.runtime.virtual import VirtualLoop
from chainserve.swarm.clock import SwarmClock
from chainserve.swarm.identity import Identity
from chainserve.swarm.light import PATIENCE_S, LightSwarm
from chainserve.swarm.plans import PlanRecord, seal_plan
from chainserve.swarm.records import Announcement, ServerState, seal
from chainserve.swarm.sealed import SealedView
from chainserve.swarm.token import DirectAddress, JoinToken
from chainserve.types import PeerId

SECRET = b"s" * 32
NOW = 1_800_000_000.0
LEASE_S = 30.0
Announce = Callable[..., Announcement]


class FakeServers:
    """Servers that a client may ask, and what each would pass on."""

    def __init__(self, identities: list[Identity], announce: Announce) -> None:
        self.identities = identities
        self.peers = [identity.peer_id for identity in identities]
        self.now = NOW
        self.passed: dict[PeerId, SealedView | bytes | None] = {}  # None: does not answer at all
        self.delay_s: dict[PeerId, float] = {}
        self.ahead_s: dict[PeerId, float] = {}
        self.asked: list[PeerId] = []
        self._announce = announce

    def record(self, number: int, *, expires_in_s: float = LEASE_S, secret: bytes = SECRET, **changes: Any) -> bytes:
        """Sealed by one of them."""
        identity = self.identities[number]
        announcement = self._announce(identity.peer_id, **changes)
        return seal(announcement, identity, secret, expires_at=self.now + expires_in_s)

    def plan(self, number: int, **changes: Any) -> bytes:
        identity = self.identities[number]
        record = PlanRecord(planner=identity.peer_id, epoch=3, model_digest="0123", digest="d", body=None)
        return seal_plan(replace(record, **changes), identity, SECRET, expires_at=self.now + 4 * LEASE_S)

    def all_pass_on(self, *servers: bytes, plans: tuple[bytes, ...] = ()) -> None:
        self.passed = {peer: SealedView(servers, plans) for peer in self.peers}

    async def ask(self, peer: PeerId) -> tuple[bytes, float]:
        self.asked.append(peer)
        delay_s = self.delay_s.get(peer, 0.0)
        if delay_s:
            await asyncio.sleep(delay_s)
        passed = self.passed.get(peer)
        if passed is None:
            raise LinkLostError(peer, "is not there")
        if isinstance(passed, bytes):
            return passed, delay_s
        return passed.to_bytes(now=self.now + self.ahead_s.get(peer, 0.0)), delay_s

    def client(self, *named: int) -> LightSwarm:
        """One whose token names these servers."""
        direct = tuple(DirectAddress(self.peers[number], f"ws://10.0.0.{number}:80/link") for number in named)
        bootstrap = (f"/ip4/10.0.0.1/tcp/1/p2p/{self.peers[0]}",)
        token = JoinToken("home", SECRET, bootstrap, direct=direct)
        clock = SwarmClock(wall=lambda: self.now, steady=lambda: 0.0)
        return LightSwarm(PeerId("client"), token, ask=self.ask, clock=clock)


@pytest.fixture
def servers(identities: list[Identity], announce: Announce) -> FakeServers:
    return FakeServers(identities, announce)


def in_no_time(scenario: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario)


async def test_a_client_sees_what_all_servers_have_sealed(servers: FakeServers, announce: Announce) -> None:
    servers.all_pass_on(servers.record(0), servers.record(1), plans=(servers.plan(0),))
    swarm = servers.client(0)
    await swarm.enter()
    assert dict(swarm.view.servers) == {peer: announce(peer) for peer in sorted(servers.peers[:2])}
    assert swarm.view.plan("0123") == PlanRecord(
        planner=servers.peers[0], epoch=3, model_digest="0123", digest="d", body=None
    )
    assert swarm.view.taken_at == swarm.now() == NOW
    assert swarm.num_refused == 0


async def test_one_that_does_not_answer_or_talks_nonsense_is_passed_over(servers: FakeServers) -> None:
    servers.all_pass_on(servers.record(3))
    servers.passed |= {servers.peers[0]: None, servers.peers[1]: b"nonsense", servers.peers[2]: b""}
    swarm = servers.client(0, 1, 2, 3)
    await swarm.enter()
    assert list(swarm.view.servers) == [servers.peers[3]]
    assert servers.asked == servers.peers


async def test_others_of_the_view_are_asked_when_those_of_the_token_are_gone(servers: FakeServers) -> None:
    servers.all_pass_on(servers.record(0), servers.record(1))
    swarm = servers.client(0)
    await swarm.enter()
    servers.passed[servers.peers[0]] = None
    assert await swarm.refresh()
    servers.asked.clear()
    await swarm.refresh()
    assert servers.asked == [servers.peers[1]]  # which answered last


def test_one_that_is_slow_holds_up_nobody(servers: FakeServers) -> None:
    async def scenario() -> None:
        servers.all_pass_on(servers.record(0))
        servers.delay_s[servers.peers[0]] = 100.0
        swarm = servers.client(0, 1)
        began_s = asyncio.get_running_loop().time()
        await swarm.enter()
        assert asyncio.get_running_loop().time() - began_s == pytest.approx(PATIENCE_S)

    in_no_time(scenario())


def test_one_that_is_slow_is_waited_for_where_there_is_no_other(servers: FakeServers) -> None:
    async def scenario() -> None:
        servers.all_pass_on(servers.record(0))
        servers.delay_s[servers.peers[0]] = 4.0
        await servers.client(0).enter()

    in_no_time(scenario())


async def test_whoever_is_left_is_found_when_many_of_the_view_have_gone_at_once(announce: Announce) -> None:
    servers = FakeServers([Identity.generate() for _ in range(8)], announce)
    servers.all_pass_on(*map(servers.record, range(8)))
    swarm = servers.client(0)
    await swarm.enter()
    for left in servers.peers:  # most are asked in an order by chance
        servers.all_pass_on(*map(servers.record, range(8)))
        servers.passed |= dict.fromkeys(set(servers.peers) - {left})
        await swarm.refresh()
        assert servers.asked[-1] == left


async def test_only_so_many_are_asked_at_a_time(servers: FakeServers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chainserve.swarm.light.MAX_ASKED", 3)
    swarm = servers.client(0, 1, 2, 3)
    with pytest.raises(SwarmError, match=r"no server passes on .*is not there"):
        await swarm.refresh()
    assert servers.asked == servers.peers[:3]


async def test_a_token_of_an_earlier_version_says_what_to_do(servers: FakeServers) -> None:
    with pytest.raises(JoinError, match=r"names no server .* ask a member of the swarm for a new token"):
        await servers.client().enter()


async def test_where_nobody_answers_the_error_says_so(servers: FakeServers) -> None:
    with pytest.raises(JoinError, match=r"none of the servers that the join token names .*is not there"):
        await servers.client(0).enter()


def test_a_swarm_without_servers_has_ended(servers: FakeServers) -> None:
    async def scenario() -> None:
        servers.all_pass_on()
        with pytest.raises(JoinError, match="know no server of swarm 'home'"):
            await servers.client(0).enter()

    in_no_time(scenario())


async def test_what_is_forged_or_expired_or_of_another_swarm_is_not_believed(servers: FakeServers) -> None:
    good = servers.record(0)
    servers.all_pass_on(
        good,
        b"nonsense",
        servers.record(1, secret=b"t" * 32),
        good[:-1] + bytes([good[-1] ^ 1]),
        servers.record(2, expires_in_s=-1.0),
        servers.record(3, expires_in_s=10_000.0),
        plans=(servers.plan(0, epoch=0), servers.record(1)),
    )
    swarm = servers.client(0)
    await swarm.enter()
    assert list(swarm.view.servers) == [servers.peers[0]]
    assert not swarm.view.plans
    assert swarm.num_refused == 6
    assert "10000 s" in swarm.view.refused[servers.peers[3]]


async def test_an_older_record_does_not_replace_a_newer_one(servers: FakeServers) -> None:
    old, new = servers.record(0, free_tokens=1), servers.record(0, expires_in_s=LEASE_S + 1, free_tokens=2)
    servers.all_pass_on(new)
    swarm = servers.client(0)
    await swarm.enter()
    servers.all_pass_on(old, plans=(servers.plan(0),))
    assert (await swarm.refresh()).servers[servers.peers[0]].free_tokens == 2


async def test_what_one_server_leaves_out_stays_until_it_expires(servers: FakeServers) -> None:
    servers.all_pass_on(servers.record(0), servers.record(1))
    swarm = servers.client(0)
    await swarm.enter()
    servers.all_pass_on(servers.record(0, expires_in_s=2 * LEASE_S))
    assert len((await swarm.refresh()).servers) == 2
    swarm._clock._ahead_s += LEASE_S + 1
    assert list((await swarm.refresh()).servers) == [servers.peers[0]]


async def test_a_server_that_has_left_is_gone_at_once(servers: FakeServers) -> None:
    servers.all_pass_on(servers.record(0), servers.record(1))
    swarm = servers.client(0)
    await swarm.enter()
    gone = servers.record(1, expires_in_s=LEASE_S + 1, state=ServerState.OFFLINE)
    servers.all_pass_on(servers.record(0), gone)
    assert list((await swarm.refresh()).servers) == [servers.peers[0]]


async def test_a_record_of_another_kind_hides_nobody(servers: FakeServers) -> None:
    """A plan counts for longer than its planner's record: among servers it must not replace that."""
    servers.all_pass_on(servers.plan(0), servers.record(0))
    swarm = servers.client(0)
    await swarm.enter()
    assert list(swarm.view.servers) == [servers.peers[0]]


def test_the_first_server_tells_the_time(servers: FakeServers) -> None:
    async def scenario() -> None:
        servers.all_pass_on(servers.record(0))
        servers.ahead_s = {servers.peers[0]: 1000.0}
        servers.delay_s[servers.peers[0]] = 0.2
        servers.now += 1000.0
        servers.all_pass_on(servers.record(0))
        servers.now -= 1000.0
        swarm = servers.client(0)
        await swarm.enter()
        assert swarm.now() == pytest.approx(NOW + 1000.1)  # half the round trip has passed since
        servers.ahead_s = {servers.peers[0]: 5000.0}
        await swarm.refresh()
        assert swarm.now() == pytest.approx(NOW + 1000.1)

    in_no_time(scenario())


async def test_a_clock_that_is_days_off_is_named(servers: FakeServers) -> None:
    servers.all_pass_on(servers.record(0))
    servers.ahead_s = {servers.peers[0]: 3 * 86_400.0}
    with pytest.raises(JoinError, match="differ by 3 days"):
        await servers.client(0).enter()


async def test_addresses_are_those_of_the_record_or_else_of_the_token(servers: FakeServers) -> None:
    servers.all_pass_on(servers.record(0, addresses=("ws://192.0.2.1:1/link", "/ip4/1.2.3.4/tcp/1/p2p/x")))
    swarm = servers.client(0, 1)
    assert swarm.addresses_of(servers.peers[0]) == ["ws://10.0.0.0:80/link"]
    await swarm.enter()
    assert swarm.addresses_of(servers.peers[0]) == ("ws://192.0.2.1:1/link", "/ip4/1.2.3.4/tcp/1/p2p/x")
    assert swarm.addresses_of(servers.peers[1]) == ["ws://10.0.0.1:80/link"]
    assert swarm.addresses_of(PeerId("stranger")) == []


async def test_a_client_publishes_nothing(servers: FakeServers, announce: Announce) -> None:
    swarm = servers.client(0)
    with pytest.raises(SwarmError, match="publishes nothing"):
        await swarm.publish(announce(swarm.peer_id))
    await swarm.withdraw()
    await swarm.close()
