"""A peer calls who asks for it, at the address that the question came from, and tells how that went."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from chainserve.errors import LinkLostError, ProtocolError
from chainserve.protocol.messages import Message, Topic
from chainserve.transport.calling_back import Called, Door, ask_to_call, call_back
from chainserve.transport.direct import DirectTransport
from chainserve.transport.exchange import Exchange
from chainserve.transport.handshake import Credentials
from chainserve.transport.interface import Link
from chainserve.transport.links import Links
from chainserve.types import PeerId


async def nowhere(_: PeerId) -> tuple[str, ...]:
    return ()


class Peer:
    """A peer that answers who asks."""

    def __init__(
        self, credentials: Credentials, lookup: Callable[[PeerId], Awaitable[tuple[str, ...]]] = nowhere
    ) -> None:
        self.direct = DirectTransport(credentials)
        self.me = credentials.identity.peer_id
        self.links = Links(
            self.me,
            [self.direct],
            lookup=lookup,
            on_message=self._handle,
            on_lost=lambda *_: None,
            on_refused=lambda *_: None,
        )
        self.exchange = Exchange(self.links, try_to_reach=partial(call_back, self.direct))

    def _handle(self, peer: PeerId, message: Message) -> None:
        assert self.exchange.handle(peer, message)


async def asked(credentials: list[Credentials], name: str, *, door_of: Credentials | None = None) -> Called:
    """What a server answers a client that listens, at a door of its own, as `door_of`, and asks to be called at `name`.

    In `name` DOOR stands for that door.
    """
    server = Peer(credentials[0])
    await server.links.listen()

    async def lookup(_: PeerId) -> tuple[str, ...]:
        return server.links.addresses

    client = Peer(credentials[1], lookup)
    door = DirectTransport(door_of or credentials[1])
    called: asyncio.Queue[Link] = asyncio.Queue()

    async def accept(link: Link) -> None:
        called.put_nowait(link)

    await door.listen(accept)
    try:
        name = name.replace("DOOR", Door.of(door.addresses[0]).name)
        answer = Called.read(await client.exchange.ask(server.me, Topic.REACH, name))
        assert called.empty() == bool(answer.error)
        return answer
    finally:
        for closing in (door, client.links, server.links):
            await closing.close()


async def test_who_can_be_called_is_told_where(credentials: list[Credentials]) -> None:
    assert await asked(credentials, "DOOR") == Called("127.0.0.1")


async def test_why_a_call_does_not_get_through_is_told(credentials: list[Credentials]) -> None:
    assert "Connect call failed" in (await asked(credentials, "9")).error
    assert "not a port to call at: '99999'" in (await asked(credentials, "99999")).error
    assert "not a port to call at" in (await asked(credentials, "example.org:80")).error


async def told_by(credentials: list[Credentials], host: str) -> dict[PeerId, Called]:
    """What a server, and one that is gone, tell a client that they are to call at `host`."""
    server, gone = Peer(credentials[0]), PeerId("gone")
    await server.links.listen()

    async def lookup(peer: PeerId) -> tuple[str, ...]:
        return server.links.addresses if peer == server.me else ()

    client = Peer(credentials[1], lookup)
    door = DirectTransport(credentials[1], host=host)
    try:
        told = await ask_to_call(client.exchange, [server.me, gone], door)
        assert told[gone] == Called("", "was not asked: it publishes no address we can use")
        with pytest.raises(LinkLostError):  # the door is closed again
            await server.direct.connect(client.me, door.addresses)
        return told
    finally:
        for closing in (client.links, server.links):
            await closing.close()


async def test_peers_are_asked_to_call_at_a_door_that_is_open_so_long(credentials: list[Credentials]) -> None:
    told = await told_by(credentials, "127.0.0.1")
    assert Called("127.0.0.1") in told.values()


async def test_a_door_elsewhere_than_the_question_comes_from_is_not_found(credentials: list[Credentials]) -> None:
    told = await told_by(credentials, "127.0.0.2")
    [refused] = [called for called in told.values() if called.host]
    assert refused.host == "127.0.0.1"
    assert "Connect call failed" in refused.error


async def test_another_peer_behind_the_door_is_not_taken_for_the_asker(credentials: list[Credentials]) -> None:
    answer = await asked(credentials, "DOOR", door_of=credentials[2])
    assert "another peer, swarm or version is there" in answer.error


async def test_who_has_no_direct_link_is_not_called(credentials: list[Credentials]) -> None:
    body = await call_back(DirectTransport(credentials[0]), PeerId("stranger"), "80")
    assert Called.read(body) == Called("", "no direct link stands to call back along")


@pytest.mark.parametrize("address", ["ws://127.0.0.1:8300/link", f"wss://[::1]:1/link#sha256={'0a' * 32}"])
def test_a_door_is_named_and_found_again(address: str) -> None:
    door = Door.of(address)
    assert Door.parse(door.name) == door
    assert door.address(address.split("//")[1].rsplit(":", 1)[0].strip("[]")) == address


@pytest.mark.parametrize("name", ["", "0", "65536", "80#", "80#12", "80/x", " 80", "-1", "\uff18\uff10"])
def test_what_is_no_door_is_refused(name: str) -> None:
    with pytest.raises(ProtocolError):
        Door.parse(name)


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"a\nb\nc", b"10.0.0.5\n\x1b[2J", b"x" * 10_000])
def test_whatever_a_peer_answers_can_be_read_and_shown(body: bytes) -> None:
    called = Called.read(body)
    assert (called.host + called.error).isprintable()
    assert len(called.body) < 1000
