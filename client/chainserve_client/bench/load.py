"""What is sent when: the times and lengths of requests, from a trace or drawn. Equal seeds give equal loads."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from pathlib import Path

from chainserve.errors import UsageError
from chainserve.simulator.trace import TraceRow, read_rows


class Arrivals(StrEnum):
    """When requests come."""

    TRACE = "trace"
    POISSON = "poisson"
    GAMMA = "gamma"


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """One request that is to be sent, at `arrival_s` from the beginning of the run."""

    index: int
    arrival_s: float
    num_input_tokens: int
    num_output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How lengths of a trace become those that are sent."""

    scale: float = 1.0
    min_output: int = 1
    max_input: int | None = None
    max_output: int | None = None

    def of(self, num_input: int, num_output: int) -> tuple[int, int]:
        """Tokens in and out: scaled, halves rounded up, then at least and at most what is allowed."""
        return (
            _within(self._scaled(num_input), at_least=1, at_most=self.max_input),
            _within(self._scaled(num_output), at_least=self.min_output, at_most=self.max_output),
        )

    def _scaled(self, number: int) -> int:
        return math.floor(self.scale * number + 0.5)


def _within(number: int, *, at_least: int, at_most: int | None) -> int:
    number = max(number, at_least)
    return number if at_most is None else min(number, at_most)


def random_times(num_requests: int, *, rate: float, chance: random.Random, shape: float = 1.0) -> list[float]:
    """Seconds at which requests come, `rate` per second, the first at once.

    The gaps between them are Gamma distributed: with a `shape` of 1 it is a Poisson process, below 1 they come in
    bursts, above more regularly.
    """
    gaps = (chance.gammavariate(shape, 1 / (rate * shape)) for _ in range(num_requests - 1))
    return list(accumulate(gaps, initial=0.0))


def slice_of(rows: Sequence[TraceRow], *, first: int, num_requests: int) -> list[TraceRow]:
    """So many requests from the one at `first` on, in the order of arrival; UsageError if the trace has not as many."""
    ordered = sorted(rows, key=lambda row: row.arrival_s)
    if first + num_requests > len(ordered):
        raise UsageError(
            f"the trace has {len(ordered)} requests, {num_requests} from {first} on are wanted: lower --requests or "
            f"--first"
        )
    return ordered[first : first + num_requests]


def trace_times(rows: Sequence[TraceRow], *, rate: float | None) -> list[float]:
    """When the requests of a slice come, the first at once: as recorded, or at a mean of `rate` per second."""
    times = [row.arrival_s - rows[0].arrival_s for row in rows]
    if rate is None or times[-1] == 0:
        return times
    factor = (len(times) - 1) / times[-1] / rate
    return [time_s * factor for time_s in times]


def read_trace(path: Path) -> list[TraceRow]:
    """The requests of a file; UsageError if it cannot be read or is no trace."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return read_rows(file)
    except OSError as error:
        raise UsageError(f"--trace {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"--trace {path}: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What load is asked for."""

    num_requests: int
    arrivals: Arrivals
    rate: float | None
    """Per second on average; None: as the trace was recorded."""
    shape: float = 1.0
    seed: int = 0
    lengths: Lengths
    num_input_tokens: int
    num_output_tokens: int
    """Of all requests, where there is no trace."""
    first: int = 0


def make_load(wanted: Wanted, rows: Sequence[TraceRow] | None) -> list[Due]:
    """The requests to send, in the order of arrival; `rows` are a whole trace."""
    chosen = None if rows is None else slice_of(rows, first=wanted.first, num_requests=wanted.num_requests)
    times = _times(wanted, chosen)
    return [
        Due(index=index, arrival_s=arrival_s, num_input_tokens=num_input, num_output_tokens=num_output)
        for index, (arrival_s, (num_input, num_output)) in enumerate(zip(times, _lengths(wanted, chosen), strict=True))
    ]


def _times(wanted: Wanted, rows: Sequence[TraceRow] | None) -> list[float]:
    if wanted.arrivals is Arrivals.TRACE:
        if rows is None:
            raise UsageError("--arrivals trace needs --trace FILE")
        return trace_times(rows, rate=wanted.rate)
    shape = wanted.shape if wanted.arrivals is Arrivals.GAMMA else 1.0
    chance = random.Random(wanted.seed)
    return random_times(wanted.num_requests, rate=wanted.rate or 1.0, chance=chance, shape=shape)


def _lengths(wanted: Wanted, rows: Sequence[TraceRow] | None) -> Iterator[tuple[int, int]]:
    if rows is None:
        for _ in range(wanted.num_requests):
            yield wanted.num_input_tokens, wanted.num_output_tokens
    else:
        for row in rows:
            yield wanted.lengths.of(row.input_tokens, row.output_tokens)
