"""Links inside one process, for tests and simulations, with delay and rate as on a real network.

Time is the running loop's clock, so a loop with a virtual clock gives virtual links.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chainserve.errors import LinkLostError
from chainserve.transport.interface import AcceptLink
from chainserve.types import PeerId

BUFFER_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Wire:
    """What lies between two peers: seconds one way, bytes per second."""

    delay_s: float = 0.0
    bytes_per_s: float = math.inf

    @property
    def buffer_bytes(self) -> float:
        """What may be under way at once: what the wire itself holds, and a buffer."""
        return BUFFER_BYTES + (self.delay_s * self.bytes_per_s if self.delay_s else 0)


class MemoryNetwork:
    """Peers that can reach each other; `wire(a, b)` says what lies between them, both ways alike."""

    def __init__(self, wire: Callable[[PeerId, PeerId], Wire] = lambda a, b: Wire()) -> None:
        self.wire = wire
        self.listening: dict[PeerId, MemoryTransport] = {}


class MemoryTransport:
    """One peer's way into a network in memory. Nobody has to prove anything."""

    num_strangers = 0

    def __init__(self, network: MemoryNetwork, peer: PeerId) -> None:
        self._network = network
        self._peer = peer
        self._accept: AcceptLink | None = None
        self._links: set[MemoryLink] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def addresses(self) -> tuple[str, ...]:
        return (f"memory:{self._peer}",) if self._accept else ()

    async def listen(self, accept: AcceptLink) -> None:
        self._accept = accept
        self._network.listening[self._peer] = self

    def can_reach(self, addresses: Sequence[str]) -> bool:
        return any(address.startswith("memory:") for address in addresses)

    async def connect(self, peer: PeerId, addresses: Sequence[str]) -> "MemoryLink":
        other = self._network.listening.get(peer)
        if other is None or f"memory:{peer}" not in addresses:
            raise LinkLostError(peer, "nobody listens at " + ", ".join(addresses))
        wire = self._network.wire(self._peer, peer)
        await asyncio.sleep(2 * wire.delay_s)
        out, back = _Direction(wire), _Direction(wire)
        other._take_call(other._link(self._peer, sends=back, receives=out))
        return self._link(peer, sends=out, receives=back)

    def _link(self, peer: PeerId, *, sends: "_Direction", receives: "_Direction") -> "MemoryLink":
        link = MemoryLink(peer, sends=sends, receives=receives, on_close=self._links.discard)
        self._links.add(link)
        return link

    def _take_call(self, link: "MemoryLink") -> None:
        task = asyncio.create_task(self._serve(link))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, link: "MemoryLink") -> None:
        assert self._accept is not None
        try:
            await self._accept(link)
        finally:
            await link.close()

    async def close(self) -> None:
        self._network.listening.pop(self._peer, None)
        for link in list(self._links):
            await link.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class MemoryLink:
    """One end of two directions."""

    kind = "memory"

    def __init__(
        self,
        peer: PeerId,
        *,
        sends: "_Direction",
        receives: "_Direction",
        on_close: Callable[["MemoryLink"], None],
    ) -> None:
        self.peer = peer
        self.num_arrivals = 0
        self._sends = sends
        self._receives = receives
        self._on_close = on_close
        self._closed = False

    async def send(self, frame: bytes) -> None:
        if self._closed or not await self._sends.put(frame):
            raise LinkLostError(self.peer, "the link is closed")

    async def receive(self) -> bytes:
        frame = None if self._closed else await self._receives.get()
        if frame is None or self._closed:
            raise LinkLostError(self.peer, "the link is closed")
        self.num_arrivals += 1
        return frame

    async def close(self) -> None:
        self._closed = True
        await self._sends.end()
        await self._receives.end()
        self._on_close(self)


class _Direction:
    """Frames under way from one end to the other."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._changed = asyncio.Condition()
        self._under_way: deque[tuple[float, bytes]] = deque()  # time of arrival, frame
        self._num_bytes = 0
        self._free_at = 0.0  # when the last byte of the last frame leaves
        self._ended = False

    async def put(self, frame: bytes) -> bool:
        """Send a frame once there is room; False if the link ends before."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._ended or self._num_bytes < self._wire.buffer_bytes)
            if self._ended:
                return False
            self._free_at = max(self._free_at, _now()) + len(frame) / self._wire.bytes_per_s
            self._under_way.append((self._free_at + self._wire.delay_s, frame))
            self._num_bytes += len(frame)
            self._changed.notify_all()
            return True

    async def get(self) -> bytes | None:
        """The next frame once it has arrived; None after the last, if the link has ended."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._ended or self._under_way)
        if not self._under_way:
            return None
        if (wait_s := self._under_way[0][0] - _now()) > 0:
            await asyncio.sleep(wait_s)
        async with self._changed:
            _, frame = self._under_way.popleft()
            self._num_bytes -= len(frame)
            self._changed.notify_all()
            return frame

    async def end(self) -> None:
        async with self._changed:
            self._ended = True
            self._changed.notify_all()


def _now() -> float:
    return asyncio.get_running_loop().time()
