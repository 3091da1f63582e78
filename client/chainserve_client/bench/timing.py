"""Times of requests, and what they come to."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One request, in seconds from when it was to be sent."""

    sent_s: float
    """On the clock of the run."""
    first_s: float | None = None
    total_s: float | None = None
    """Until its last token, or its error."""
    between_s: tuple[float, ...] = ()
    """From each piece of text to the next."""
    waited_s: float | None = None
    """For a place on a chain; None where that is not told."""
    num_tokens: int = 0
    error: str | None = None


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
