"""What to expect of a plan, in words and as JSON: the same for swarms that are planned and for those that run."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from chainserve.errors import describe_blocks
from chainserve.planning.prediction import Prediction
from chainserve.planning.sharing import Turns, rate_when_full
from chainserve.planning.values import LeftOut, PlannedChain, ResponseTimeBounds
from chainserve.types import PeerId
from chainserve_client.tables import count, table, wrapped
from chainserve_client.units import format_seconds

MAX_CHAINS = 15
"""Shown in text: slower ones follow, of which there can be very many."""

SAME = 0.0005
"""Shares of time below are shown as none."""

Name = Callable[[PeerId], str]


@dataclass(frozen=True)
class Outlook:
    """Chains, what a user sees of each, and what requests take that come at a rate."""

    chains: tuple[PlannedChain, ...]  # fastest first
    predictions: tuple[Prediction, ...]  # of these chains
    bounds: ResponseTimeBounds
    arrival_rate: float  # requests per second
    turn_s: Turns  # of mean requests

    @cached_property
    def total_rate(self) -> float:
        """Requests per second of all chains when full."""
        return rate_when_full(self.chains, self.turn_s)

    @property
    def load(self) -> float:
        """Arrival rate over total rate; infinite without chains."""
        return self.arrival_rate / self.total_rate if self.chains else math.inf

    @property
    def is_stable(self) -> bool:
        """Whether the chains bear the arrival rate."""
        return math.isfinite(self.bounds.upper_s) and self.arrival_rate < self.total_rate


def chains_text(outlook: Outlook, *, name: Name) -> Iterator[str]:
    """A table of the fastest chains, and what it leaves out."""
    pairs = zip(outlook.chains[:MAX_CHAINS], outlook.predictions, strict=False)
    yield from table(
        ("chain", "sessions", "first token", "tokens/s", "request", "way"),
        [_chain_row(number, *pair, name=name) for number, pair in enumerate(pairs, 1)],
        right=("chain", "sessions", "first token", "tokens/s", "request"),
    )
    if hidden := outlook.chains[MAX_CHAINS:]:
        num_sessions = sum(chain.capacity for chain in hidden)
        yield f"and {count(len(hidden), 'slower chain')} for {count(num_sessions, 'session')}"
    yield "times of a request that has its servers to itself, where these reach the speeds given"


def _chain_row(number: int, chain: PlannedChain, prediction: Prediction, *, name: Name) -> tuple[str, ...]:
    return (
        str(number),
        f"{chain.capacity:,}",
        format_seconds(prediction.first_token_s),
        f"{prediction.tokens_per_s:,.1f}",
        format_seconds(chain.service_s),
        " > ".join(f"{name(hop.peer)} {hop.span}".replace(" ", "\N{NO-BREAK SPACE}") for hop in chain.chain.hops),
    )


def expectations_text(outlook: Outlook) -> Iterator[str]:
    """How many sessions and requests the chains bear together, and how long requests take."""
    rate, num_sessions = outlook.arrival_rate, sum(chain.capacity for chain in outlook.chains)
    yield f"together {count(num_sessions, 'session')} at once, at most {outlook.total_rate:.3g} requests per second"
    if outlook.is_stable:
        took = bounds_text(outlook.bounds)
        yield f"at {rate:.3g} per second (load {outlook.load:.2g}) a request takes {took} on average, waiting included"
    else:
        missing = rate - outlook.total_rate
        yield f"{rate:.3g} per second are {missing:.3g} more than that: the queue would grow without end"


def bounds_text(bounds: ResponseTimeBounds) -> str:
    """'2.1 s to 3.4 s', or '2.1 s' if both are the same."""
    lower, upper = format_seconds(bounds.lower_s), format_seconds(bounds.upper_s)
    return lower if lower == upper else f"{lower} to {upper}"


def verdict(left_out: LeftOut, *, is_placed: bool) -> str:
    """What becomes of the swarm without a server, in a few words."""
    if not is_placed:
        return "no room for a block: a spare"
    if left_out.missing:
        return f"no room for {describe_blocks(left_out.missing)}"
    if math.isinf(left_out.slowdown):
        return "the load is too high"
    change = "same time" if abs(left_out.slowdown) < SAME else f"{left_out.slowdown:+.1%} time"
    return change + (": a spare" if left_out.is_spare else "")


def spares_text(left_out: Mapping[PeerId, LeftOut], placed: Sequence[PeerId], *, name: Name) -> Iterator[str]:
    """Which of the servers that are placed had better not be."""
    spares = [name(peer) for peer in placed if peer in left_out and left_out[peer].is_spare]
    if spares:
        yield from wrapped(f"better left as a spare: {'one of ' if len(spares) > 1 else ''}{', '.join(spares)}")


def chains_json(outlook: Outlook) -> list[dict[str, Any]]:
    """All chains, with whole names."""
    return [
        {
            "hops": [[hop.peer, hop.span.start, hop.span.end] for hop in chain.chain.hops],
            "sessions": chain.capacity,
            "first_token_s": prediction.first_token_s,
            "tokens_per_s": finite(prediction.tokens_per_s),
            "request_s": chain.service_s,
        }
        for chain, prediction in zip(outlook.chains, outlook.predictions, strict=True)
    ]


def expectations_json(outlook: Outlook) -> dict[str, Any]:
    """What the chains bear together; what is not finite is null."""
    return {
        "max_requests_per_s": outlook.total_rate,
        "load": finite(outlook.load),
        "is_stable": outlook.is_stable,
        "response_s": bounds_json(outlook.bounds),
    }


def bounds_json(bounds: ResponseTimeBounds) -> dict[str, float | None]:
    return {"lower": finite(bounds.lower_s), "upper": finite(bounds.upper_s)}


def left_out_json(left_out: LeftOut | None) -> dict[str, Any] | None:
    """What becomes of the swarm without a server; null if it was not examined."""
    if left_out is None:
        return None
    return {
        "slowdown": finite(left_out.slowdown),
        "missing_blocks": list(left_out.missing),
        "is_spare": left_out.is_spare,
    }


def finite(value: float) -> float | None:
    """JSON knows no other numbers."""
    return value if math.isfinite(value) else None
