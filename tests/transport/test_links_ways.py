"""Which way to a peer is taken, and what the way in memory is like."""

import asyncio
import socket
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from pairs import FAST, A, B, Peer, session, transports

from chainserve.protocol.messages import Opened
from chainserve.transport.handshake import Credentials
from chainserve.transport.interface import Link, Transport
from chainserve.transport.links import Timing
from chainserve.transport.memory import MemoryNetwork, MemoryTransport, Wire
from chainserve.types import PeerId


class Unanswering(MemoryTransport):
    """Publishes an address at which nothing answers."""

    num_tries = 0

    def can_reach(self, addresses: Sequence[str]) -> bool:
        return True

    async def connect(self, peer: PeerId, addresses: Sequence[str]) -> Any:
        self.num_tries += 1
        await asyncio.Event().wait()


async def test_the_second_way_is_taken_where_the_first_does_not_answer_and_remembered(stack: AsyncExitStack) -> None:
    network = MemoryNetwork()
    first = Unanswering(MemoryNetwork(), A)
    directory: dict[PeerId, Peer] = {}
    a = Peer(A, [first, MemoryTransport(network, A)], directory)
    b = Peer(B, [MemoryTransport(network, B)], directory)
    await b.links.listen()
    stack.push_async_callback(a.links.close)
    started = time.monotonic()
    await a.links.connect(B)
    assert FAST.connect_s <= time.monotonic() - started < FAST.connect_s + 0.5
    await b.links.close()
    await a.lost.get()
    again = Peer(B, [MemoryTransport(network, B)], directory)
    await again.links.listen()
    stack.push_async_callback(again.links.close)
    started = time.monotonic()
    await a.links.connect(B)
    assert time.monotonic() - started < FAST.connect_s
    assert first.num_tries == 1


@pytest.mark.process
async def test_a_relayed_link_is_made_where_the_direct_address_does_not_answer(
    stack: AsyncExitStack, credentials: list[Credentials], tmp_path: Path
) -> None:
    near, far = await stack.enter_async_context(transports("relayed", credentials[0], credentials[1], tmp_path))
    direct, _ = await stack.enter_async_context(transports("direct", credentials[0], credentials[1], tmp_path))
    silent = stack.enter_context(socket.socket())
    silent.bind(("127.0.0.1", 0))
    silent.listen()  # the kernel takes the connection, nobody answers
    address = f"ws://127.0.0.1:{silent.getsockname()[1]}/link"

    directory: dict[PeerId, Peer] = {}
    timing = Timing(connect_s=1.0)
    a = Peer(credentials[0].identity.peer_id, [direct, near], directory, timing=timing)
    b = Peer(credentials[1].identity.peer_id, [Published(far, address)], directory, timing=timing)
    await b.links.listen()
    stack.push_async_callback(b.links.close)
    stack.push_async_callback(a.links.close)
    await a.links.connect(b.me)
    assert a.links.kind(b.me) == "relayed"
    await a.send(b, Opened(session(1)))
    assert await b.messages.get() == (a.me, Opened(session(1)))


class Published:
    """A transport that publishes one address more."""

    def __init__(self, inner: Transport, address: str) -> None:
        self._inner = inner
        self._address = address

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._address, *self._inner.addresses


async def test_the_wire_in_memory_has_delay_and_rate(stack: AsyncExitStack) -> None:
    network = MemoryNetwork(lambda a, b: Wire(delay_s=0.1, bytes_per_s=1e6))
    near, far = MemoryTransport(network, A), MemoryTransport(network, B)
    accepted: asyncio.Queue[Link] = asyncio.Queue()
    done = asyncio.Event()

    async def accept(link: Link) -> None:
        accepted.put_nowait(link)
        await done.wait()

    await far.listen(accept)
    link = await near.connect(B, far.addresses)
    other = await accepted.get()
    started = time.monotonic()
    await link.send(bytes(100_000))
    await link.send(b"x")
    await other.receive()
    assert 0.19 < time.monotonic() - started < 0.3
    await other.receive()
    assert time.monotonic() - started < 0.3  # the second was right behind
    done.set()
    await near.close()
    await far.close()
