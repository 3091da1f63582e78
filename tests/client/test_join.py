"""A client that joins over direct links alone, and what it does where it cannot."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from live_swarms import server

from chainserve.errors import JoinError, TokenError
from chainserve.protocol.messages import Topic
from chainserve.swarm.identity import Identity
from chainserve.swarm.records import Announcement, seal
from chainserve.swarm.sealed import SealedView
from chainserve.swarm.token import DirectAddress, JoinToken
from chainserve.transport.direct import DirectTransport
from chainserve.transport.exchange import Exchange
from chainserve.transport.handshake import Credentials
from chainserve.transport.links import Links
from chainserve.types import PeerId, Span
from chainserve_client import join as joining
from chainserve_client.join import join, join_light
from chainserve_client.network import Network

SECRET = b"s" * 32


class FakeServer:
    """Takes direct links, with or without TLS, and passes on its own record."""

    def __init__(self, identity: Identity, host: str) -> None:
        self.identity = identity
        self.num_asked = 0
        transport = DirectTransport(Credentials(identity, SECRET), host=host, advertised_host="127.0.0.1")

        async def lookup(_: PeerId) -> list[str]:
            return []

        self.links = Links(
            identity.peer_id,
            [transport],
            lookup=lookup,
            on_message=lambda peer, message: self.exchange.handle(peer, message) and None,
            on_lost=lambda *_: None,
            on_refused=lambda *_: None,
        )
        self.exchange = Exchange(self.links, answers={Topic.VIEW: self.view})

    async def view(self, _: str) -> bytes:
        self.num_asked += 1
        record = seal(self.announcement(), self.identity, SECRET, expires_at=time.time() + 30)
        return SealedView((record,)).to_bytes(now=time.time())

    def announcement(self) -> Announcement:
        return replace(server("a", Span(0, 8)), peer=self.identity.peer_id, addresses=self.links.addresses)

    def token(self, *, secret: bytes = SECRET, direct: bool = True) -> JoinToken:
        peer = self.identity.peer_id
        named = tuple(DirectAddress(peer, address) for address in self.links.addresses) if direct else ()
        return JoinToken("home", secret, (f"/ip4/127.0.0.1/tcp/1/p2p/{peer}",), direct=named)


@pytest.fixture(params=["127.0.0.1", "0.0.0.0"], ids=["plain", "tls"])
async def fake(request: pytest.FixtureRequest) -> AsyncIterator[FakeServer]:
    made = FakeServer(Identity.generate(), request.param)
    await made.links.listen()
    yield made
    await made.links.close()


async def test_a_client_joins_over_a_direct_link(fake: FakeServer) -> None:
    network = await join(fake.token().encode())
    assert list(network.swarm.view.servers) == [fake.identity.peer_id]
    assert network.links.kind(fake.identity.peer_id) == "direct"
    assert network.swarm.now() == pytest.approx(time.time(), abs=1.0)
    num_asked = fake.num_asked
    await network.swarm.refresh()
    assert fake.num_asked > num_asked
    await network.close()


async def test_where_no_direct_link_can_be_made_the_client_joins_the_dht(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[JoinToken] = []

    async def join_dht(invitation: JoinToken) -> Network:
        joined.append(invitation)
        raise JoinError("no DHT in this test")

    monkeypatch.setattr(joining, "join_dht", join_dht)
    old = fake.token(direct=False)
    with pytest.raises(JoinError, match="no DHT"):
        await join(old.encode())
    assert joined == [old]

    monkeypatch.setattr(joining, "find_spec", lambda name: None)
    with pytest.raises(JoinError, match=r"of an earlier version.*ask a member of the swarm for a new token"):
        await join(old.encode())
    with pytest.raises(TokenError):
        await join("nonsense")


async def test_who_cannot_join_leaves_nothing_behind(fake: FakeServer) -> None:
    before = asyncio.all_tasks()
    for token in (fake.token(secret=b"t" * 32), fake.token(direct=False)):
        with pytest.raises(JoinError):
            await join_light(token)
    await fake.links.close()
    with pytest.raises(JoinError, match="none of the servers that the join token names can be asked"):
        await join_light(fake.token())
    if left := asyncio.all_tasks() - before:
        await asyncio.wait(left, timeout=5)
    assert {task for task in left if not task.done()} == set()
