"""Move, resize and exchange spans of a placement while the predicted response time falls: beyond Sun et al. 2026.

GBP-CR places for disjoint chains of one common capacity; what GCA then makes of the placement, and what the last,
incomplete chain's servers add, it does not see. This search looks at just that, one server at a time.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

from chainserve.planning.allocation import allocate
from chainserve.planning.bounds import response_time_bounds
from chainserve.planning.placement import blocks_that_fit, weights_fit
from chainserve.planning.values import (
    ModelSpec,
    PairSeconds,
    Placement,
    PlannedChain,
    ServerProfile,
    by_peer,
    total_rate,
)
from chainserve.types import PeerId, Span

MAX_EVALUATIONS = 5000
LEAST_GAIN = 1e-6
"""Relative: gains below are rounding, and could go back and forth."""

OVERLOAD_S = 600.0
"""Where the queue grows without end, placements are compared by the mean wait in so many seconds from empty."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A placement, the chains it offers, and what it costs."""

    placement: Placement
    chains: tuple[PlannedChain, ...]
    is_stable: bool  # the chains bear the arrival rate
    cost_s: float  # predicted mean response time and what the caller adds; infinite if no chain runs all blocks

    def is_better_than(self, other: "Judged") -> bool:
        """Whether this one bears the load and the other does not or, if both or neither do, costs less."""
        if self.is_stable != other.is_stable:
            return self.is_stable
        return self.cost_s < other.cost_s * (1 - LEAST_GAIN)


def judge(
    profiles: Sequence[ServerProfile],
    model: ModelSpec,
    placement: Placement,
    *,
    arrival_rate: float,
    extra_s: Callable[[Placement], float] | None = None,
    pair_s: PairSeconds | None = None,
) -> Judged:
    """Allocate chains over a placement (GCA) and bound their mean response time from below (Thm. 4).

    `extra_s` of the placement is added to the cost, for example what it takes to move there.
    """
    chains = allocate(profiles, model, placement, pair_s=pair_s)
    if not chains:
        return Judged(placement, chains, is_stable=False, cost_s=math.inf)
    rate = total_rate(chains)
    is_stable = arrival_rate < rate
    if is_stable:
        rates, capacities = [chain.rate for chain in chains], [chain.capacity for chain in chains]
        cost_s = response_time_bounds(rates, capacities, arrival_rate=arrival_rate).lower_s
    else:
        # The queue grows by (lambda - nu) t, which takes 1/nu each to work off; served meanwhile is a mean place.
        mean_service_s = sum(chain.capacity for chain in chains) / rate
        cost_s = mean_service_s + (arrival_rate / rate - 1) * OVERLOAD_S / 2
    return Judged(placement, chains, is_stable, cost_s + (extra_s(placement) if extra_s else 0.0))


def improve(
    profiles: Sequence[ServerProfile],
    model: ModelSpec,
    placement: Placement,
    *,
    arrival_rate: float,
    extra_s: Callable[[Placement], float] | None = None,
    pair_s: PairSeconds | None = None,
    max_evaluations: int = MAX_EVALUATIONS,
) -> Judged:
    """Give one server after the other the span, or another's place, that lowers the cost most.

    It ends when no server can lower it, or the budget is spent. The cost is that of `judge`. Pinned servers stay as
    they are, and servers without blocks stay without.
    """
    servers = by_peer(profiles)

    def judged(placement: Placement) -> Judged:
        return judge(profiles, model, placement, arrival_rate=arrival_rate, extra_s=extra_s, pair_s=pair_s)

    best = judged(placement)
    movable = [peer for peer in placement if servers[peer].pinned is None]
    num_left, num_settled = max_evaluations, 0
    for peer in cycle(movable):
        if num_settled == len(movable):
            break
        before = best
        for neighbour in _neighbours(peer, before.placement, movable, servers, model):
            if num_left == 0:
                return best
            num_left -= 1
            found = judged(neighbour)
            if found.is_better_than(best):
                best = found
        num_settled = num_settled + 1 if best is before else 0
    return best


def _neighbours(
    peer: PeerId,
    placement: Placement,
    movable: Sequence[PeerId],
    servers: Mapping[PeerId, ServerProfile],
    model: ModelSpec,
) -> Iterator[Placement]:
    """Placements in which one server holds another span that fits, or changes places with another server."""
    for span in _other_spans(placement[peer], servers[peer], model):
        yield Placement({**placement.spans, peer: span})
    for other in movable:
        ours, theirs = placement[peer], placement[other]
        if ours != theirs and weights_fit(servers[peer], model, theirs) and weights_fit(servers[other], model, ours):
            yield Placement({**placement.spans, peer: theirs, other: ours})


def _other_spans(span: Span, profile: ServerProfile, model: ModelSpec) -> Iterator[Span]:
    """Spans as long as `span` anywhere else, and shorter or longer ones that start or end where it does."""
    most = blocks_that_fit(profile, model, concurrency=1)
    candidates = {Span(start, start + len(span)) for start in range(model.num_blocks - len(span) + 1)}
    candidates |= {Span(span.start, span.start + num) for num in range(1, min(most, model.num_blocks - span.start) + 1)}
    candidates |= {Span(span.end - num, span.end) for num in range(1, min(most, span.end) + 1)}
    return (other for other in sorted(candidates - {span}) if weights_fit(profile, model, other))
