"""Figures of a run: means and percentiles of response, waiting and service, and how sure the mean is."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chainserve.simulator.engine import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Seconds of one kind: of all requests, half, 95 and 99 of 100 are within."""

    mean_s: float
    median_s: float
    p95_s: float
    p99_s: float

    @classmethod
    def of(cls, values_s: NDArray[np.float64]) -> "Summary":
        """Of at least one value; ValueError if there is none."""
        if len(values_s) == 0:
            raise ValueError("there are no requests to sum up")
        median_s, p95_s, p99_s = np.percentile(values_s, [50, 95, 99]).tolist()
        return cls(mean_s=float(values_s.mean()), median_s=median_s, p95_s=p95_s, p99_s=p99_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean, and how far from it the true one lies at the confidence asked for."""

    mean_s: float
    half_width_s: float

    def __contains__(self, value_s: float) -> bool:
        return abs(value_s - self.mean_s) <= self.half_width_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What users of the simulated system met; `num_refused` of the `num_requests` have no part in the times."""

    num_requests: int
    num_refused: int
    response: Summary
    waiting: Summary
    service: Summary


def summarize(outcome: Outcome, *, warm_up: float = 0.0) -> Report:
    """The figures of a run without its first requests, the share `warm_up` in [0, 1) of all; ValueError if every
    request left was refused."""
    first = num_warm_up(len(outcome.requests), warm_up=warm_up)
    served = ~outcome.is_refused[first:]
    return Report(
        num_requests=len(served),
        num_refused=int((~served).sum()),
        response=Summary.of(outcome.response_s[first:][served]),
        waiting=Summary.of(outcome.waiting_s[first:][served]),
        service=Summary.of(outcome.service_s[first:][served]),
    )


def batch_means(
    values_s: NDArray[np.float64], *, num_batches: int = 20, warm_up: float = 0.0, deviations: float = 3.0
) -> Interval:
    """Confidence interval for the mean of values that depend on their neighbours, from the means of equal batches.

    `deviations` is in standard deviations of the mean: 3 holds the true mean 993 times in 1,000 with 20 batches (t
    distribution with 19 degrees of freedom). ValueError for less than 2 batches or 10 values per batch.
    """
    values_s = values_s[num_warm_up(len(values_s), warm_up=warm_up) :]
    length = len(values_s) // max(num_batches, 1)
    if num_batches < 2 or length < 10:
        raise ValueError(f"{len(values_s)} values do not fill {num_batches} batches: it takes 2 batches of 10")
    means = values_s[len(values_s) - num_batches * length :].reshape(num_batches, length).mean(axis=1)
    deviation_s = float(means.std(ddof=1)) / math.sqrt(num_batches)
    return Interval(mean_s=float(means.mean()), half_width_s=deviations * deviation_s)


def num_warm_up(num_requests: int, *, warm_up: float) -> int:
    """How many requests the share `warm_up` is; ValueError unless it is in [0, 1)."""
    if not 0 <= warm_up < 1:
        raise ValueError(f"warm_up is {warm_up}: it is a share of the requests, at least 0 and below 1")
    return int(num_requests * warm_up)
