"""What the requests of a run come to, as values that the reports show."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from chainserve.types import PeerId
from chainserve_client.bench.timing import Route, Summary, Timed, fairness, summary
from chainserve_client.tables import short

K = TypeVar("K")

KINDS: dict[str, str] = {
    "response": "total_s",
    "waiting": "waited_s",
    "service": "service_s",
    "first token": "first_s",
    "between tokens": "between_s",
    "slowdown": "slowdown",
    "response per token": "per_token_s",
    "sent late": "late_s",
}
"""What is summed up: its name for people, and the field of a request."""


FAIR = ("slowdown", "per_token_s")
"""What fairness is judged by: waiting whatever the length, and time for the same amount of work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a benchmark has seen."""

    results: Sequence[Timed]
    """Requests that were answered, failed or interrupted, in the order of arrival."""
    num_due: int
    """How many were to be sent."""
    is_interrupted: bool = False
    began_s: float = 0.0
    """In seconds of Unix time, when times of requests are 0: to set beside logs of servers."""

    @property
    def answered(self) -> list[Timed]:
        return [result for result in self.results if result.error is None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one chain, or one client, had of the requests that were answered."""

    num_requests: int
    num_input_tokens: int
    num_tokens: int
    response_s: float
    """Means, None where that is not told."""
    service_s: float | None
    slowdown: float | None
    per_token_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """All that is said of a run; times and throughput are of the requests that were answered."""

    began_s: float
    num_due: int
    num_sent: int
    num_answered: int
    is_interrupted: bool
    took_s: float
    """From the first arrival to the end of the last request."""
    requests_per_s: float
    tokens_per_s: float
    input_tokens_per_s: float
    summary: dict[str, Summary | None]
    """By the field of a request."""
    fairness_of_requests: dict[str, float | None]
    """Jain's index of what requests met, by its field."""
    fairness_of_clients: dict[str, float | None]
    """The same of the means of clients; None of one client."""
    num_retried: int
    chains: dict[Route, Share]
    clients: dict[int, Share]
    errors: dict[str, int]


def figures_of(run: Run) -> Figures:
    """Sum up a run."""
    answered = run.answered
    took_s = max((result.arrival_s + (result.total_s or 0.0) for result in run.results), default=0.0)

    def per_s(number: float) -> float:
        return number / took_s if took_s else 0.0

    clients = _shares(answered, key=lambda result: result.client)
    return Figures(
        began_s=run.began_s,
        num_due=run.num_due,
        num_sent=len(run.results),
        num_answered=len(answered),
        is_interrupted=run.is_interrupted,
        took_s=took_s,
        requests_per_s=per_s(len(answered)),
        tokens_per_s=per_s(sum(result.num_tokens for result in answered)),
        input_tokens_per_s=per_s(sum(result.num_input_tokens for result in answered)),
        summary={field: summary(values_of(answered, field)) for field in KINDS.values()},
        fairness_of_requests={field: fairness(values_of(answered, field)) for field in FAIR},
        fairness_of_clients={field: _between(clients.values(), field) for field in FAIR},
        num_retried=sum(result.retries > 0 for result in run.results),
        chains=_shares([result for result in answered if result.chain], key=lambda result: result.chain),
        clients=clients,
        errors=dict(Counter(result.error for result in run.results if result.error is not None)),
    )


def values_of(results: Sequence[Timed], field: str) -> list[float]:
    """All values of one kind; what is not told is left out."""
    values: list[float] = []
    for result in results:
        value = getattr(result, field)
        values += value if isinstance(value, tuple) else [] if value is None else [value]
    return values


def _between(shares: Iterable[Share], field: str) -> float | None:
    means = [mean for share in shares if (mean := getattr(share, field)) is not None]
    return fairness(means) if len(means) > 1 else None


def chain_name(route: Route) -> str:
    """'SC9uo8 0:16 > usnkow 16:30'."""
    return " > ".join(f"{short(PeerId(peer))} {start}:{end}" for peer, start, end in route)


def _shares(results: Sequence[Timed], *, key: Callable[[Timed], K]) -> dict[K, Share]:
    """By chain or client, those with most requests first."""
    groups: dict[K, list[Timed]] = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return {name: _share(group) for name, group in ordered}


def _share(results: Sequence[Timed]) -> Share:
    def mean(field: str) -> float | None:
        values = values_of(results, field)
        return statistics.fmean(values) if values else None

    return Share(
        num_requests=len(results),
        num_input_tokens=sum(result.num_input_tokens for result in results),
        num_tokens=sum(result.num_tokens for result in results),
        response_s=mean("total_s") or 0.0,
        service_s=mean("service_s"),
        slowdown=mean("slowdown"),
        per_token_s=mean("per_token_s"),
    )
