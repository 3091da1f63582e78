"""All records of a swarm as their owners sealed them: how they come to peers that are no part of the DHT.

Whoever passes them on need not be believed, but for the time.
"""

import math
from dataclasses import dataclass
from typing import Self

import msgpack

from chainserve.errors import RecordError
from chainserve.swarm.records import MAX_RECORD_BYTES

MAX_RECORDS = 4096


@dataclass(frozen=True, slots=True)
class SealedView:
    """Records that counted when they were read, each by the peer that sealed it."""

    servers: tuple[bytes, ...] = ()
    plans: tuple[bytes, ...] = ()

    def to_bytes(self, *, now: float) -> bytes:
        """The records, and swarm time (unix seconds)."""
        packed: bytes = msgpack.packb([float(now), self.servers[:MAX_RECORDS], self.plans[:MAX_RECORDS]])
        return packed

    @classmethod
    def from_bytes(cls, data: bytes) -> tuple[Self, float]:
        """Records that a peer passed on, not yet looked into, and the time it told; RecordError if these are none."""
        try:
            fields = msgpack.unpackb(
                data,
                max_array_len=MAX_RECORDS,
                max_bin_len=MAX_RECORD_BYTES,
                max_str_len=0,
                max_map_len=0,
                max_ext_len=0,
            )
        except ValueError as error:
            raise RecordError(f"view is not msgpack within its limits: {error}") from None
        match fields:
            case [float(now), [*servers], [*plans]] if math.isfinite(now):
                if all(type(record) is bytes for record in (*servers, *plans)):
                    return cls(tuple(servers), tuple(plans)), now
        raise RecordError("view is not [time, servers, plans]")
