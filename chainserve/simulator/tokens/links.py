"""Messages on their way: in order on each link, one after the other, then the delay."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from chainserve.simulator.tokens.values import Link
from chainserve.types import PeerId

LinkOf = Callable[[PeerId, PeerId], Link]


class _Wire:
    """The state of one direction between two peers."""

    __slots__ = ("delay_s", "free_s", "link", "s_per_byte", "used_s", "window_bytes")

    def __init__(self, link: Link) -> None:
        self.link = link
        self.delay_s = link.delay_s
        self.s_per_byte = 1 / link.bytes_per_s
        self.free_s = 0.0
        self.used_s = -math.inf
        self.window_bytes = link.window_bytes

    def starting_s(self, now_s: float, num_bytes: float) -> float:
        """Seconds that the sender waits for acknowledgements: its window doubles with each round trip.

        It takes a message that is larger than the window in 1, 2, 4... windows.
        """
        link = self.link
        if math.isinf(link.window_bytes):
            return 0.0
        if now_s - self.used_s > link.idle_s:
            self.window_bytes = link.window_bytes
        self.used_s = now_s
        num_windows = math.ceil(math.log2(num_bytes / self.window_bytes + 1)) if num_bytes else 0
        num_waits = max(0, num_windows - 1)
        self.window_bytes *= 2**num_waits
        return num_waits * 2 * link.delay_s


class Wires:
    """All links of a swarm, each made when it is first used."""

    def __init__(self, link_of: LinkOf) -> None:
        self._link_of = link_of
        self._wires: dict[tuple[PeerId, PeerId], _Wire] = {}

    def send(self, sender: PeerId, receiver: PeerId, *, now_s: float, num_bytes: float) -> float:
        """When a message that is posted now arrives."""
        wire = self._wire(sender, receiver)
        starting_s = wire.starting_s(now_s, num_bytes)
        wire.free_s = max(now_s, wire.free_s) + num_bytes * wire.s_per_byte + starting_s
        return wire.free_s + wire.delay_s

    def trip_s(self, peers: Sequence[PeerId]) -> float:
        """Delay of a small message from peer to peer, which waits for nothing on its way."""
        return sum(self._wire(sender, receiver).delay_s for sender, receiver in pairwise(peers))

    def _wire(self, sender: PeerId, receiver: PeerId) -> _Wire:
        wire = self._wires.get((sender, receiver))
        if wire is None:
            wire = self._wires[sender, receiver] = _Wire(self._link_of(sender, receiver))
        return wire
