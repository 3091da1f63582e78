"""What tests of links share: transports in pairs, and peers that remember what happened to their links."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from chainserve.errors import FrameError
from chainserve.protocol.messages import Activations, Message, Step, WireTensor
from chainserve.transport.direct import DirectTransport
from chainserve.transport.handshake import Credentials
from chainserve.transport.interface import Link, Transport
from chainserve.transport.links import Links, Timing
from chainserve.transport.memory import MemoryNetwork, MemoryTransport, Wire
from chainserve.types import PeerId, SessionId

KINDS = ["memory", "direct", "tls", pytest.param("relayed", marks=pytest.mark.process)]
A, B = PeerId("A"), PeerId("B")
FAST = Timing(heartbeat_s=0.05, keepalive_s=0.02, active_s=0.2, timeout_s=0.5, connect_s=0.5)


def session(number: int) -> SessionId:
    return SessionId(number.to_bytes(16, "little"))


def activations(size: int) -> Activations:
    width = min(size // 2, 1024)
    step = Step(session(1), 0, start=0, num_tokens=size // 2 // width, num_outputs=1)
    return Activations((step,), WireTensor("float16", (step.num_tokens, width), bytes(size)))


class Peer:
    """Links that remember what happened to them."""

    def __init__(self, me: PeerId, ways: Sequence[Transport], directory: dict[PeerId, "Peer"], **options: Any) -> None:
        self.messages: asyncio.Queue[tuple[PeerId, Message]] = asyncio.Queue()
        self.lost: asyncio.Queue[tuple[PeerId, str]] = asyncio.Queue()
        self.refused: asyncio.Queue[tuple[PeerId, FrameError]] = asyncio.Queue()
        self.num_lookups = 0
        self.me = me

        async def lookup(peer: PeerId) -> Sequence[str]:
            self.num_lookups += 1
            return directory[peer].links.addresses if peer in directory else ()

        self.links = Links(
            me,
            ways,
            lookup=lookup,
            on_message=lambda peer, message: self.messages.put_nowait((peer, message)),
            on_lost=lambda peer, reason: self.lost.put_nowait((peer, reason)),
            on_refused=lambda peer, error: self.refused.put_nowait((peer, error)),
            **{"timing": FAST} | options,
        )
        directory[me] = self

    async def send(self, other: "Peer", message: Message) -> None:
        await self.links.send(other.me, message)


@dataclass
class Pair:
    """Two transports of one kind; the first has learnt where the second listens."""

    near: Transport
    far: Transport
    near_id: PeerId
    far_id: PeerId
    accepted: asyncio.Queue[Link] = field(default_factory=asyncio.Queue)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    async def accept(self, link: Link) -> None:
        """What a listener does in these tests: keep the link until the test is over."""
        self.accepted.put_nowait(link)
        await self.done.wait()

    async def connect(self) -> tuple[Link, Link]:
        """Both ends of a new link, the dialling one first."""
        link = await self.near.connect(self.far_id, self.far.addresses)
        return link, await self.accepted.get()


MakePair = Callable[..., Awaitable[Pair]]
MakePeers = Callable[..., Awaitable[tuple[Peer, Peer]]]


@asynccontextmanager
async def transports(
    kind: str, near_of: Credentials, far_of: Credentials, folder: Path, **options: Any
) -> AsyncIterator[tuple[Transport, Transport]]:
    near: Transport
    far: Transport
    async with AsyncExitStack() as stack:
        if kind == "memory":
            network = MemoryNetwork(**options)
            near = MemoryTransport(network, near_of.identity.peer_id)
            far = MemoryTransport(network, far_of.identity.peer_id)
        elif kind == "relayed":
            from chainserve.transport.relayed import RelayedTransport

            near_p2p, far_p2p = await stack.enter_async_context(daemons(near_of, far_of, folder))
            near = RelayedTransport(near_p2p, near_of, **options)
            far = RelayedTransport(far_p2p, far_of, **options)
        else:
            hosts = {"host": "0.0.0.0", "advertised_host": "127.0.0.1"} if kind == "tls" else {}
            near = DirectTransport(near_of, **hosts, **options)
            far = DirectTransport(far_of, **hosts, **options)
        yield near, far
        await near.close()
        await far.close()


@asynccontextmanager
async def daemons(near_of: Credentials, far_of: Credentials, folder: Path) -> AsyncIterator[tuple[Any, Any]]:
    """Two libp2p daemons of which the first has joined the second."""
    from hivemind.p2p import P2P

    started: list[Any] = []
    try:
        for name, peer in (("far", far_of), ("near", near_of)):
            path = folder / name
            path.write_bytes(peer.identity.to_bytes())
            initial = await started[0].get_visible_maddrs() if started else None
            started.append(
                await P2P.create(initial, identity_path=str(path), check_if_identity_free=False, nat_port_map=False)
            )
        yield started[1], started[0]
    finally:
        for p2p in started:
            await p2p.shutdown()


async def memory_peers(
    stack: AsyncExitStack, wire: Wire | None = None, **options: Any
) -> tuple[Peer, Peer, MemoryNetwork]:
    network = MemoryNetwork(lambda a, b: wire or Wire())
    directory: dict[PeerId, Peer] = {}
    a, b = (Peer(name, [MemoryTransport(network, name)], directory, **options) for name in (A, B))
    for peer in (a, b):
        await peer.links.listen()
        stack.push_async_callback(peer.links.close)
    return a, b, network


async def until(condition: Callable[[], object], *, timeout_s: float = 3.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)
