"""What a server offers to the plan: its memory, its measured speed, and what it has seen of links and load."""

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field
from types import MappingProxyType
from typing import Any, Self

from chainserve.planning.fields import number, text, whole
from chainserve.planning.profile import BlockProfile
from chainserve.types import PeerId

MAX_BYTES = 2**46
"""64 TiB: no device has more."""
LEAST_STEP_S = 1e-12
MAX_STEP_S = 3600.0
MAX_SIZE = 10**9
"""Tokens, sessions or requests."""
MAX_POINTS = 64
"""Sizes at which a profile was measured."""
LEAST_BYTES_PER_S = 1.0
LEAST_WINDOW_S, MAX_WINDOW_S = 1e-3, 1e7
MAX_REACH = 32
"""Peers a record names the way to: about 70 bytes each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """The way to another peer, smoothed over what was measured."""

    round_trip_s: float
    bytes_per_s: float | None = None  # None: nothing large has gone that way yet

    def __post_init__(self) -> None:
        _require("round_trip_s", self.round_trip_s, most=MAX_STEP_S)
        if self.bytes_per_s is not None:
            _require("bytes_per_s", self.bytes_per_s, least=LEAST_BYTES_PER_S, most=MAX_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCheck:
    """What the profile predicted for recent steps beside what they took: means of one step, in seconds."""

    predicted_s: float
    observed_s: float

    def __post_init__(self) -> None:
        _require("predicted_s", self.predicted_s, least=LEAST_STEP_S, most=MAX_STEP_S)
        _require("observed_s", self.observed_s, least=LEAST_STEP_S, most=MAX_STEP_S)

    @property
    def ratio(self) -> float:
        """By how much steps take longer than predicted: 1.2 is a fifth longer."""
        return self.observed_s / self.predicted_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Requests that one head, or all of them, saw arrive within a window."""

    num_requests: int
    window_s: float
    input_tokens: float  # of a mean request
    output_tokens: float

    def __post_init__(self) -> None:
        _require("num_requests", self.num_requests, most=MAX_SIZE)
        _require("window_s", self.window_s, least=LEAST_WINDOW_S, most=MAX_WINDOW_S)
        _require("input_tokens", self.input_tokens, most=MAX_SIZE)
        _require("output_tokens", self.output_tokens, most=MAX_SIZE)

    @property
    def arrival_rate(self) -> float:
        """Requests per second."""
        return self.num_requests / self.window_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One server, as planning needs to know it."""

    memory_bytes: int  # for weights, activations and cache
    profile: BlockProfile  # as measured at its first start; the checks say how true it is
    prefill: StepCheck | None = None  # None: no such step has run yet
    decode: StepCheck | None = None
    reach: Mapping[PeerId, Reach] = field(default_factory=lambda: MappingProxyType({}))
    demand: Demand | None = None  # None: no request had its head here

    def __post_init__(self) -> None:
        if not 0 < self.memory_bytes <= MAX_BYTES:
            raise ValueError(f"memory of {self.memory_bytes} bytes: more than 0 and at most {MAX_BYTES}")
        for name in ("block_bytes", "embedding_bytes", "head_bytes", "token_bytes", "activation_bytes"):
            _require(name, getattr(self.profile, name), most=MAX_BYTES)
        times = self.profile.times
        _require("forward_s", times.forward_s, most=MAX_STEP_S)
        for points in (times.prefill, times.decode, times.head):
            if len(points) > MAX_POINTS:
                raise ValueError(f"a profile of {len(points)} sizes, at most {MAX_POINTS}")
            for size, seconds in points:
                _require("size of a step", size, most=MAX_SIZE)
                _require("seconds of a step", seconds, least=LEAST_STEP_S, most=MAX_STEP_S)
        if len(self.reach) > MAX_REACH:
            raise ValueError(f"the way to {len(self.reach)} peers, at most {MAX_REACH}")

    def to_fields(self) -> dict[str, Any]:
        """The offer as msgpack takes it."""
        return {
            "memory_bytes": self.memory_bytes,
            "profile": asdict(self.profile),
            "prefill": self.prefill and astuple(self.prefill),
            "decode": self.decode and astuple(self.decode),
            "reach": {peer: astuple(reach) for peer, reach in self.reach.items()},
            "demand": self.demand and astuple(self.demand),
        }

    @classmethod
    def from_fields(cls, fields: object) -> Self:
        """The offer whose `to_fields` came from a peer; ValueError if these are not its fields."""
        try:
            values: dict[str, Any] = dict(fields)  # type: ignore[call-overload]
            prefill, decode, demand = values["prefill"], values["decode"], values["demand"]
            return cls(
                memory_bytes=whole(values["memory_bytes"]),
                profile=BlockProfile.from_fields(values["profile"]),
                prefill=None if prefill is None else _check(*prefill),
                decode=None if decode is None else _check(*decode),
                reach=MappingProxyType({PeerId(text(peer)): _reach(*way) for peer, way in values["reach"].items()}),
                demand=None if demand is None else _demand(*demand),
            )
        except (TypeError, KeyError, AttributeError, OverflowError) as error:
            raise ValueError(f"not an offer: {error!r}") from None


def _require(name: str, value: float, *, least: float = 0.0, most: float) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name} is {value}: it has to be from {least:g} to {most:g}")


def _check(predicted_s: object, observed_s: object) -> StepCheck:
    return StepCheck(predicted_s=number(predicted_s), observed_s=number(observed_s))


def _reach(round_trip_s: object, bytes_per_s: object) -> Reach:
    return Reach(round_trip_s=number(round_trip_s), bytes_per_s=None if bytes_per_s is None else number(bytes_per_s))


def _demand(num_requests: object, window_s: object, input_tokens: object, output_tokens: object) -> Demand:
    return Demand(
        num_requests=whole(num_requests),
        window_s=number(window_s),
        input_tokens=number(input_tokens),
        output_tokens=number(output_tokens),
    )
