"""What a link does to a packet: when it arrives, or that it is lost. Decisions only; the router carries them out."""

from collections.abc import Callable
from random import Random

from network.topology import Link

QUEUE_S = 0.2
"""A packet that would wait longer than this for its turn is dropped, as by a router whose buffer is full."""
FRAME_BYTES = 38
"""Of Ethernet, per packet: preamble, header, checksum and gap."""
SEGMENT_HEADER_BYTES = 40
"""IP and TCP headers that each further segment of a large packet would carry."""


class Lane:
    """One direction of a link: packets leave one after another at its rate, and none overtakes another."""

    def __init__(self, link: Link, *, chance: Random) -> None:
        self._link = link
        self._chance = chance
        self._is_plain = not link.jitter_ms and not link.loss
        self._delay_s = link.one_way_s
        self._s_per_byte = 1 / link.bytes_per_s
        self._free_at = 0.0
        self._last_due = 0.0
        self.num_lost = 0
        self.num_dropped = 0

    def due(self, now: float, *, num_bytes: int) -> float | None:
        """When a packet that is sent now arrives; None if it does not. `num_bytes` are those on the wire."""
        if not self._is_plain and self._link.loss and self._chance.random() < self._link.loss:
            self.num_lost += 1
            return None
        begins_at = max(now, self._free_at)
        if begins_at - now > QUEUE_S:
            self.num_dropped += 1
            return None
        self._free_at = begins_at + num_bytes * self._s_per_byte
        arrives_at = self._free_at + self._delay_s
        if not self._is_plain and self._link.jitter_ms:
            jitter_s = self._link.jitter_ms / 1000
            arrives_at = max(self._last_due, arrives_at + self._chance.uniform(-jitter_s, jitter_s))
            self._last_due = arrives_at
        return arrives_at


def wire_bytes(num_bytes: int, *, segment_bytes: int) -> int:
    """Bytes on the wire of a packet that stands for segments of so many bytes; 0: it is one."""
    num_segments = -(-num_bytes // segment_bytes) if segment_bytes else 1
    return num_bytes + num_segments * FRAME_BYTES + (num_segments - 1) * SEGMENT_HEADER_BYTES


MakeLane = Callable[[int, int], Lane]
"""The lane from one host to another, by their numbers."""
