"""What planning starts from and ends in, as frozen values in bytes and seconds.

The names of Sun et al. 2026 (arXiv 2604.14993, section 2) beside ours: L `num_blocks`, s_m `block_bytes`, s_c
`slot_bytes`, M_j `memory_bytes`, tau_c_j `communication_s`, tau_p_j `block_s`, lambda `arrival_rate`, rho_bar
`target_load`, T_k `service_s`, mu_k `rate`, c_k `capacity`. Blocks count from 0 here, from 1 there.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from chainserve.types import Chain, PeerId, Span

ROUNDING = 1e-9
"""Relative: 2.9999999999 blocks fit where 3 do."""

SPARE_SLOWDOWN = 0.01
"""A server counts as a spare if requests take less than this share longer without it."""

PairSeconds = Mapping[tuple[PeerId, PeerId], float]
"""Seconds of communication of one request from one server to the next."""


def how_many(space: float, size: float) -> int:
    """floor(space / size), where a quotient within ROUNDING below an integer counts as that integer; 0 if negative."""
    return max(0, math.floor(space / size * (1 + ROUNDING)))


def require(name: str, value: float, *, positive: bool = True) -> None:
    """ValueError unless `value` is finite, and positive or at least not negative."""
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise ValueError(f"{name} is {value}: it has to be finite and {'positive' if positive else 'not negative'}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What a model costs in memory: L equal blocks, and both ends."""

    num_blocks: int
    block_bytes: float
    slot_bytes: float  # cache of one session for one block, at the longest length agreed
    embedding_bytes: float = 0  # on whoever holds the first block
    head_bytes: float = 0  # on whoever holds the last block: final norm and language model head
    is_tied: bool = False  # embedding and head share their weights: who holds both keeps the larger only

    def __post_init__(self) -> None:
        if self.num_blocks < 1:
            raise ValueError(f"a model has at least one block, not {self.num_blocks}")
        require("block_bytes", self.block_bytes)
        require("slot_bytes", self.slot_bytes)
        require("embedding_bytes", self.embedding_bytes, positive=False)
        require("head_bytes", self.head_bytes, positive=False)

    def weight_bytes(self, span: Span) -> float:
        """Bytes of the span's blocks, with embedding and head where the span touches the model's ends."""
        return len(span) * self.block_bytes + self.end_bytes(span)

    def block_bytes_on(self, profile: "ServerProfile") -> float:
        """Weights of one block as this server holds them."""
        return self.block_bytes if profile.block_bytes is None else profile.block_bytes

    def weight_bytes_on(self, profile: "ServerProfile", span: Span) -> float:
        """Bytes of the span as `weight_bytes`, with its blocks as this server holds them."""
        return len(span) * self.block_bytes_on(profile) + self.end_bytes(span)

    def end_bytes(self, span: Span) -> float:
        """Bytes of the embedding and the head that come with the span."""
        embedding = self.embedding_bytes if span.start == 0 else 0
        head = self.head_bytes if span.end == self.num_blocks else 0
        return max(embedding, head) if self.is_tied else embedding + head


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerProfile:
    """What one server brings: memory, and the mean times of one request there."""

    peer: PeerId
    memory_bytes: float  # for weights and cache
    communication_s: float  # of all tokens of a request to this server
    block_s: float  # of all tokens of a request through one block
    pinned: Span | None = None  # blocks its owner chose
    block_bytes: float | None = None  # weights of one block as it holds them, quantized perhaps; None: the model's
    turn_s: float = 0.0  # of block_s, for which a request keeps the others there waiting; 0 as in the paper

    def __post_init__(self) -> None:
        require(f"memory_bytes of {self.peer}", self.memory_bytes)
        require(f"communication_s of {self.peer}", self.communication_s, positive=False)
        require(f"block_s of {self.peer}", self.block_s)
        require(f"turn_s of {self.peer}", self.turn_s, positive=False)
        if self.block_bytes is not None:
            require(f"block_bytes of {self.peer}", self.block_bytes)

    def span_s(self, num_blocks: int) -> float:
        """Seconds of one request for the hop to this server and `num_blocks` blocks on it."""
        return self.communication_s + self.block_s * num_blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What the swarm has to bear."""

    arrival_rate: float  # requests per second
    target_load: float = 0.7  # arrival rate over total service rate that placement aims at

    def __post_init__(self) -> None:
        require("arrival_rate", self.arrival_rate)
        if not 0 < self.target_load < 1:
            raise ValueError(f"target_load is {self.target_load}: it has to be between 0 and 1")


@dataclass(frozen=True)
class Placement:
    """Which server holds which blocks; servers that hold none are not in it."""

    spans: Mapping[PeerId, Span]

    def __post_init__(self) -> None:
        object.__setattr__(self, "spans", MappingProxyType(dict(sorted(self.spans.items()))))

    def __len__(self) -> int:
        return len(self.spans)

    def __iter__(self) -> Iterator[PeerId]:
        return iter(self.spans)

    def __getitem__(self, peer: PeerId) -> Span:
        return self.spans[peer]

    def __hash__(self) -> int:
        return hash(tuple(self.spans.items()))

    def missing(self, num_blocks: int) -> tuple[int, ...]:
        """Blocks that nobody holds."""
        return tuple(sorted(set(range(num_blocks)).difference(*self.spans.values())))


@dataclass(frozen=True)
class PlannedChain:
    """A chain, how many sessions it may hold at once (Eq. 3), and the mean time of one (Eq. 2)."""

    chain: Chain
    capacity: int
    service_s: float

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise ValueError(f"a planned chain holds at least one session, not {self.capacity}")
        require("service_s", self.service_s)

    @cached_property
    def rate(self) -> float:
        """Sessions per second of one place on the chain: mu_k."""
        return 1 / self.service_s


@dataclass(frozen=True, slots=True)
class ResponseTimeBounds:
    """Seconds from arrival to the end of a session, on average, lie between these; infinite where nothing is stable."""

    lower_s: float
    upper_s: float


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What becomes of a swarm that is planned without one of its servers."""

    slowdown: float  # by which share a mean request takes longer: 0.01 is 1 %, below 0 is faster; may be infinite
    missing: tuple[int, ...] = ()  # blocks that the other servers have no room for

    @property
    def is_spare(self) -> bool:
        """Whether the server is hardly missed."""
        return self.slowdown < SPARE_SLOWDOWN


def total_rate(chains: Iterable[PlannedChain]) -> float:
    """Sessions per second of all chains when full: nu (Eq. 4)."""
    return math.fsum(chain.capacity * chain.rate for chain in chains)


def by_peer(profiles: Sequence[ServerProfile]) -> dict[PeerId, ServerProfile]:
    """Profiles in the order of their peer ids, so that the order of the input never matters; ValueError if there are
    none or two of one id."""
    if not profiles:
        raise ValueError("there are no servers")
    ordered = {profile.peer: profile for profile in sorted(profiles, key=lambda profile: profile.peer)}
    if len(ordered) < len(profiles):
        peers = [profile.peer for profile in profiles]
        twice = sorted({peer for peer in peers if peers.count(peer) > 1})
        raise ValueError(f"two profiles of one server: {', '.join(twice)}")
    return ordered


def check_pinned(profiles: Iterable[ServerProfile], model: ModelSpec) -> None:
    """ValueError for a pinned span that leaves the model."""
    for profile in profiles:
        if profile.pinned is not None and profile.pinned.end > model.num_blocks:
            raise ValueError(
                f"{profile.peer} is pinned to blocks {profile.pinned}, the model has {model.num_blocks} blocks"
            )
