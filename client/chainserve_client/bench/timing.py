"""Times of requests, and what they come to."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from chainserve.types import Chain
from chainserve_client.token_session import HopTime

DIGITS = 6
"""Of seconds that are written: microseconds."""

Route = tuple[tuple[str, int, int], ...]
"""A chain as it is written: the peer, first block and end of each hop."""


@dataclass(frozen=True, slots=True)
class Change:
    """A server that was lost on the way, and how long its request stood still."""

    peer: str
    reason: str
    stall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One request; seconds count from when it was due, if nothing else is said."""

    index: int = 0
    client: int = 0
    """Number of the client process that sent it."""
    arrival_s: float
    """When it was due, on the clock of the run."""
    late_s: float = 0.0
    """Until it was sent: how busy the client was."""
    waited_s: float | None = None
    """Until it had a place on a chain; None where that is not told."""
    first_s: float | None = None
    between_s: tuple[float, ...] = ()
    """From each token, or piece of text, to the next."""
    total_s: float | None = None
    """Until its last token, or its error."""
    num_input_tokens: int = 0
    num_asked_tokens: int = 0
    """That the answer was to have, at most where it may end early."""
    num_tokens: int = 0
    chain: Route = ()
    """The one it ended on; empty where that is not told."""
    hops: tuple[HopTime, ...] = ()
    retries: int = 0
    """Times that it went on over another chain."""
    changes: tuple[Change, ...] = ()
    error: str | None = None

    @property
    def service_s(self) -> float | None:
        """For how long it had its place."""
        return None if self.total_s is None or self.waited_s is None else self.total_s - self.waited_s

    @property
    def slowdown(self) -> float | None:
        """Response time over service time: 1 if it did not wait, whatever its length."""
        return self.total_s / self.service_s if self.total_s is not None and self.service_s else None

    @property
    def per_token_s(self) -> float | None:
        """Response time over the tokens of prompt and answer."""
        num_tokens = self.num_input_tokens + self.num_tokens
        return self.total_s / num_tokens if self.total_s is not None and num_tokens else None


def route_of(chain: Chain) -> Route:
    """A chain as it is written."""
    return tuple((hop.peer, hop.span.start, hop.span.end) for hop in chain.hops)


def to_plain(timed: Timed) -> dict[str, Any]:
    """As JSON has it, with the service time."""
    content: dict[str, Any] = rounded({**asdict(timed), "service_s": timed.service_s})
    return content


def from_plain(content: Mapping[str, Any]) -> Timed:
    """What `to_plain` has written."""
    given = {key: value for key, value in content.items() if key != "service_s"}
    return Timed(
        **given
        | {
            "between_s": tuple(content["between_s"]),
            "chain": tuple((peer, start, end) for peer, start, end in content["chain"]),
            "hops": tuple(HopTime(**hop) for hop in content["hops"]),
            "changes": tuple(Change(**change) for change in content["changes"]),
        }
    )


def rounded(value: Any) -> Any:
    """The same with all floats to microseconds."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True, slots=True)
class Summary:
    """What many values come to."""

    mean: float
    median: float
    p95: float
    p99: float
    max: float


def summary(values: Sequence[float]) -> Summary | None:
    """None of no values."""
    if not values:
        return None
    ordered = sorted(values)
    return Summary(
        mean=statistics.fmean(ordered),
        median=statistics.median(ordered),
        p95=percentile(ordered, 0.95),
        p99=percentile(ordered, 0.99),
        max=ordered[-1],
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The least of the values that at least this share of them does not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def fairness(values: Sequence[float]) -> float | None:
    """Jain's index, (sum x)^2 / (n sum x^2): 1 if all have the same, 1/n if one has everything; None of nothing."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else None
