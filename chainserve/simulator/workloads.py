"""Requests to come: when they arrive, how many tokens they have, how much work they are.

Poisson and Gamma arrivals, rates that change over time, and the replay of a trace. Every maker takes a numpy
Generator, or none where nothing is random.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chainserve.planning.values import require
from chainserve.simulator.trace import read_rows


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Requests:
    """Requests in the order of their arrival, as read-only arrays of one length.

    `size` scales the service time: 1, or exponential with mean 1 as in the paper's model. ValueError for arrivals that
    are not sorted or not finite, less than one token, sizes that are not positive, or different lengths.
    """

    arrival_s: NDArray[np.float64]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    size: NDArray[np.float64]

    def __post_init__(self) -> None:
        for name, dtype in (
            ("arrival_s", np.float64),
            ("input_tokens", np.int64),
            ("output_tokens", np.int64),
            ("size", np.float64),
        ):
            array = np.array(getattr(self, name), dtype=dtype)
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        num = len(self.arrival_s)
        if num == 0:
            raise ValueError("there are no requests")
        if not len(self.input_tokens) == len(self.output_tokens) == len(self.size) == num:
            raise ValueError("requests need as many arrivals as token numbers and sizes")
        if not np.isfinite(self.arrival_s).all() or self.arrival_s[0] < 0 or (np.diff(self.arrival_s) < 0).any():
            raise ValueError("arrivals have to be finite, not negative and in order")
        if min(self.input_tokens.min(), self.output_tokens.min()) < 1:
            raise ValueError("a request has at least one token in and one out")
        if not (np.isfinite(self.size) & (self.size > 0)).all():
            raise ValueError("sizes have to be finite and positive")

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def rate(self) -> float:
        """Requests per second: 1 / the mean gap; ValueError if they all arrive at once."""
        first_s, last_s = self.arrival_s[[0, -1]].tolist()
        if first_s == last_s:
            raise ValueError("requests that arrive at one time have no rate")
        return float((len(self) - 1) / (last_s - first_s))


def make_requests(
    arrival_s: ArrayLike, *, input_tokens: ArrayLike = 1, output_tokens: ArrayLike = 1, size: ArrayLike = 1.0
) -> Requests:
    """Requests at these times; what is given as one number holds for all of them."""
    arrivals = np.asarray(arrival_s, dtype=np.float64)
    return Requests(
        arrival_s=arrivals,
        input_tokens=np.broadcast_to(np.asarray(input_tokens), arrivals.shape),
        output_tokens=np.broadcast_to(np.asarray(output_tokens), arrivals.shape),
        size=np.broadcast_to(np.asarray(size), arrivals.shape),
    )


def paper_requests(
    num_requests: int, *, rate: float, rng: np.random.Generator, input_tokens: int = 1, output_tokens: int = 1
) -> Requests:
    """The paper's model: Poisson arrivals, exponential sizes of mean 1, tokens the same for all."""
    arrival_s = poisson_arrivals(num_requests, rate=rate, rng=rng)
    size = rng.exponential(size=num_requests)
    return make_requests(arrival_s, input_tokens=input_tokens, output_tokens=output_tokens, size=size)


def poisson_arrivals(num_requests: int, *, rate: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Arrival times in seconds, `rate` per second, each independent of the others."""
    require("rate", rate)
    return np.cumsum(rng.exponential(1 / rate, size=num_requests))


def gamma_arrivals(
    num_requests: int, *, rate: float, variation: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Arrival times whose gaps are Gamma distributed with this coefficient of variation: 1 is Poisson, above is in
    bursts, below is regular."""
    require("rate", rate)
    require("variation", variation)
    shape = variation**-2
    return np.cumsum(rng.gamma(shape, 1 / (rate * shape), size=num_requests))


def varying_arrivals(
    num_requests: int, *, pieces: Sequence[tuple[float, float]], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Arrival times of a Poisson process whose rate changes: `pieces` of (duration in seconds, rate), over and over.

    Exact: a process of rate 1 on the axis of expected arrivals, brought back to the axis of time. ValueError if no
    piece has a positive rate.
    """
    for duration_s, rate in pieces:
        require("duration of a piece", duration_s)
        require("rate of a piece", rate, positive=False)
    ends_s = np.cumsum([0.0, *(duration_s for duration_s, _ in pieces)])
    expected = np.cumsum([0.0, *(duration_s * rate for duration_s, rate in pieces)])
    if expected[-1] == 0:
        raise ValueError("no piece has a positive rate")
    cycles, rest = np.divmod(np.cumsum(rng.exponential(size=num_requests)), expected[-1])
    arrival_s: NDArray[np.float64] = cycles * ends_s[-1] + np.interp(rest, expected, ends_s)
    return arrival_s


def read_trace(lines: Iterable[str]) -> Requests:
    """Requests of a trace (see `trace`), the first at 0 s, all of size 1; ValueError names the line that is none."""
    rows = read_rows(lines)
    return make_requests(
        [row.arrival_s for row in rows],
        input_tokens=[row.input_tokens for row in rows],
        output_tokens=[row.output_tokens for row in rows],
    )


def at_rate(requests: Requests, rate: float) -> Requests:
    """The same requests, time stretched or squeezed to a mean of `rate` requests per second."""
    require("rate", rate)
    return replace(requests, arrival_s=requests.arrival_s * (requests.rate / rate))


def part(requests: Requests, *, start: int, num_requests: int) -> Requests:
    """Requests [start, start + num_requests), the first of them at 0 s."""
    chosen = slice(start, start + num_requests)
    arrival_s = requests.arrival_s[chosen]
    return Requests(
        arrival_s=arrival_s - arrival_s[:1],
        input_tokens=requests.input_tokens[chosen],
        output_tokens=requests.output_tokens[chosen],
        size=requests.size[chosen],
    )
