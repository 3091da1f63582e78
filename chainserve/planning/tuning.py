"""How many sessions each chain reserves cache for: the choice of c (Sun et al. 2026, section 3.2.3).

A larger c means more sessions at once, on longer chains: servers give up blocks for cache.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from chainserve.planning.allocation import allocate, c_max
from chainserve.planning.bounds import response_time_bounds
from chainserve.planning.placement import GreedyPlacement, greedy_placement
from chainserve.planning.values import (
    ModelSpec,
    PairSeconds,
    PlannedChain,
    ResponseTimeBounds,
    ServerProfile,
    Workload,
    total_rate,
)

Method = Literal["surrogate", "lower", "upper"]

CHEAP = 100_000
"""Servers times values of c up to which every c is tried: some seconds of one core at most."""

NUM_GRID = 32
"""Values of c in the coarse grid of a search that does not try all."""

NUM_BEST = 3
"""How many of the best it looks around, again and again: the bounds have more than one valley."""

NUM_REFINED = 8
"""Steps into which it cuts the neighbourhood of each."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one concurrency gives: GBP-CR for it, then GCA."""

    concurrency: int  # c
    rate: float  # sessions per second of all chains when full (nu); 0 if no chain runs all blocks
    lower_s: float  # Thm. 4; infinite where the arrival rate is not below `rate`
    upper_s: float
    surrogate: float  # c * K(c) (Eq. 9); infinite where GBP-CR does not reach the target load


@dataclass(frozen=True)
class ConcurrencyChoice:
    """The concurrency chosen and what it was chosen from; no chosen one and no placement if no chain can be made."""

    method: Method
    chosen: Candidate | None
    candidates: tuple[Candidate, ...]  # those tried, by concurrency
    placement: GreedyPlacement | None
    chains: tuple[PlannedChain, ...]

    @property
    def is_stable(self) -> bool:
        """Whether the chains bear the arrival rate; if not, they are those with the greatest total rate."""
        return self.chosen is not None and math.isfinite(self.chosen.lower_s)


class _Trial(NamedTuple):
    candidate: Candidate
    placement: GreedyPlacement
    chains: tuple[PlannedChain, ...]


def choose_concurrency(
    profiles: Sequence[ServerProfile],
    model: ModelSpec,
    workload: Workload,
    *,
    method: Method = "lower",
    exhaustive: bool = False,
    place_all: bool = True,
    pair_s: PairSeconds | None = None,
    only: Sequence[int] | None = None,
) -> ConcurrencyChoice:
    """Take the c with the least lower (or upper) bound on the mean response time (section 3.2.3), or surrogate (Eq. 9).

    Of equals it is the smallest. Where the method finds no c to be enough, it is the c with the greatest total rate.
    Small swarms try every c from 1 to `c_max`. Large ones try a coarse grid, and then refine it around the best:
    the bounds jump where servers gain or lose a block, so this may miss the best c; `exhaustive` never does. With
    `only` these values are tried and no others, the closest possible for those below 1 or beyond `c_max`.
    `place_all` and `pair_s` are those of `greedy_placement` and `allocate`, and so are the errors; ValueError if
    `only` is empty.
    """

    def attempt(concurrency: int, before: _Trial | None) -> _Trial:
        required_rate = workload.arrival_rate / (workload.target_load * concurrency)
        greedy = greedy_placement(
            profiles, model, concurrency=concurrency, required_rate=required_rate, place_all=place_all
        )
        if before is not None and greedy.placement == before.placement.placement:  # chains hang on nothing else
            chains = before.chains
            rate, lower_s, upper_s = before.candidate.rate, before.candidate.lower_s, before.candidate.upper_s
        else:
            chains = allocate(profiles, model, greedy.placement, pair_s=pair_s)
            rate, bounds = total_rate(chains), _bounds(chains, arrival_rate=workload.arrival_rate)
            lower_s, upper_s = bounds.lower_s, bounds.upper_s
        surrogate = math.inf if greedy.num_chains_needed is None else concurrency * greedy.num_chains_needed
        return _Trial(Candidate(concurrency, rate, lower_s, upper_s, surrogate), greedy, chains)

    def cost(candidate: Candidate) -> tuple[float, float, int]:
        figures = {"lower": candidate.lower_s, "upper": candidate.upper_s, "surrogate": candidate.surrogate}
        figure = figures[method]
        return (figure, 0.0 if math.isfinite(figure) else -candidate.rate, candidate.concurrency)

    largest = max(1, c_max(profiles, model))
    tries_all = exhaustive or len(profiles) * largest <= CHEAP
    if only is not None:
        if not only:
            raise ValueError("there is no concurrency to try")
        fresh = sorted({max(1, min(concurrency, largest)) for concurrency in only})
    else:
        fresh = list(range(1, largest + 1)) if tries_all else _grid(largest)
    tried: dict[int, Candidate] = {}
    while fresh:
        trial = None
        for concurrency in fresh:
            trial = attempt(concurrency, trial)
            tried[concurrency] = trial.candidate
        fresh = [] if only is not None else _around_best(tried, cost)
    candidates = tuple(tried[concurrency] for concurrency in sorted(tried))
    chosen = min(candidates, key=cost)
    if chosen.rate == 0:
        return ConcurrencyChoice(method, None, candidates, None, ())
    _, placement, chains = attempt(chosen.concurrency, None)
    return ConcurrencyChoice(method, chosen, candidates, placement, chains)


def _bounds(chains: Sequence[PlannedChain], *, arrival_rate: float) -> ResponseTimeBounds:
    if not chains:
        return ResponseTimeBounds(math.inf, math.inf)
    rates, capacities = [chain.rate for chain in chains], [chain.capacity for chain in chains]
    return response_time_bounds(rates, capacities, arrival_rate=arrival_rate)


def _grid(largest: int) -> list[int]:
    """Whole numbers from 1 to `largest` in about equal proportions."""
    return sorted({round(largest ** (step / (NUM_GRID - 1))) for step in range(NUM_GRID)})


def _around_best(tried: dict[int, Candidate], cost: Callable[[Candidate], tuple[float, float, int]]) -> list[int]:
    """Values not yet tried between the best ones and their neighbours."""
    ordered = sorted(tried)
    fresh: set[int] = set()
    for concurrency in sorted(tried, key=lambda concurrency: cost(tried[concurrency]))[:NUM_BEST]:
        place = ordered.index(concurrency)
        low, high = ordered[max(place - 1, 0)], ordered[min(place + 1, len(ordered) - 1)]
        fresh.update(low + (high - low) * step // NUM_REFINED for step in range(NUM_REFINED + 1))
    return sorted(fresh.difference(tried))
