"""The nouns everything else speaks in, as frozen values."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NewType

from chainserve.errors import SpanError

PeerId = NewType("PeerId", str)
"""base58 multihash of a peer's public key, as libp2p writes it."""

SessionId = NewType("SessionId", bytes)
"""16 random bytes."""


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Blocks [start, end) of one model."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise SpanError(f"not a span of blocks: {self.start}:{self.end} (start:end, half open, not empty)")

    def __len__(self) -> int:
        return self.end - self.start

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.end))

    def __contains__(self, block: int) -> bool:
        return self.start <= block < self.end

    def __str__(self) -> str:
        return f"{self.start}:{self.end}"

    def covers(self, other: "Span") -> bool:
        """Whether every block of `other` is in this span."""
        return self.start <= other.start and other.end <= self.end

    @classmethod
    def parse(cls, text: str) -> "Span":
        """Read `start:end`; SpanError if it is anything else."""
        start, separator, end = text.partition(":")
        if not (separator and start.isdecimal() and end.isdecimal()):
            raise SpanError(f"not a span of blocks: {text!r} (want start:end, for example 0:10)")
        return cls(int(start), int(end))


@dataclass(frozen=True, slots=True)
class Hop:
    """One server of a chain and the blocks it runs there."""

    peer: PeerId
    span: Span


@dataclass(frozen=True, slots=True)
class Chain:
    """Servers in the order in which they run every block once."""

    hops: tuple[Hop, ...]

    def __post_init__(self) -> None:
        if not self.hops or self.hops[0].span.start != 0:
            raise ValueError(f"a chain starts at block 0: {self}")
        for before, after in zip(self.hops, self.hops[1:], strict=False):
            if before.span.end != after.span.start:
                raise ValueError(f"a chain has neither gaps nor overlaps: {self}")

    @property
    def head(self) -> PeerId:
        return self.hops[0].peer

    @property
    def tail(self) -> PeerId:
        return self.hops[-1].peer

    @property
    def num_blocks(self) -> int:
        return self.hops[-1].span.end

    def __str__(self) -> str:
        return " -> ".join(f"{hop.peer[-6:]}[{hop.span}]" for hop in self.hops)
