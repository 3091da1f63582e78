"""One call from what the servers are to who holds which blocks, which chains there are, and what to expect of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from chainserve.errors import NoPlanError
from chainserve.planning import explanation
from chainserve.planning.allocation import residual_slots
from chainserve.planning.bounds import response_time_bounds
from chainserve.planning.improve import Judged, improve
from chainserve.planning.moves import overlap
from chainserve.planning.placement import GreedyPlacement, greedy_placement, weights_fit
from chainserve.planning.sharing import rate_when_full, turns_of
from chainserve.planning.tuning import Candidate, ConcurrencyChoice, choose_concurrency
from chainserve.planning.values import (
    ModelSpec,
    PairSeconds,
    Placement,
    PlannedChain,
    ResponseTimeBounds,
    ServerProfile,
    Workload,
    by_peer,
    require,
)
from chainserve.types import PeerId

SEARCH_EFFORT = 20_000
"""Placements tried by the local search, times servers: some seconds of one core."""


@dataclass(frozen=True)
class Plan:
    """Who holds what and how requests run through it, with what that was worked out from."""

    profiles: tuple[ServerProfile, ...]  # by peer id
    model: ModelSpec
    workload: Workload
    chosen: Candidate  # the concurrency GBP-CR reserved cache for
    candidates: tuple[Candidate, ...]  # and those it was chosen from
    before: Placement | None  # where servers were
    greedy: GreedyPlacement  # GBP-CR's placement
    placement: Placement  # the same after the local search
    chains: tuple[PlannedChain, ...]  # by service time, fastest first
    bounds: ResponseTimeBounds  # infinite if the chains cannot bear the arrival rate

    @cached_property
    def total_rate(self) -> float:
        """Requests per second of all chains when full: nu, less what sharing servers costs."""
        return rate_when_full(self.chains, turns_of(self.profiles))

    @property
    def load(self) -> float:
        """Arrival rate over total rate: rho."""
        return self.workload.arrival_rate / self.total_rate

    @property
    def is_stable(self) -> bool:
        """Whether the chains bear the arrival rate."""
        return math.isfinite(self.bounds.upper_s) and self.workload.arrival_rate < self.total_rate

    @property
    def missing_rate(self) -> float:
        """Requests per second that arrive beyond what the chains can ever do; 0 if stable."""
        return 0.0 if self.is_stable else self.workload.arrival_rate - self.total_rate

    @cached_property
    def slots(self) -> Mapping[PeerId, int]:
        """Cache slots of every placed server: R_j."""
        return residual_slots(self.profiles, self.model, self.placement)

    def explain(self) -> str:
        """Say per server and chain what was decided and why, what to expect, and what is missing."""
        return explanation.explain(self)


def plan(
    profiles: Sequence[ServerProfile],
    model: ModelSpec,
    workload: Workload,
    *,
    pair_s: PairSeconds | None = None,
    search_effort: int = SEARCH_EFFORT,
    before: Placement | None = None,
    s_per_byte: float = 0.0,
    concurrencies: Sequence[int] | None = None,
) -> Plan:
    """Place blocks (GBP-CR), choose c by the lower bound, improve single spans, allocate cache to chains (GCA).

    Equal inputs give equal plans, in whatever order the profiles come. Pinned servers keep their spans; every other
    server with room for a block is placed. `pair_s` holds communication times that depend on both servers, as in
    `allocate`. With `search_effort` 0 and nothing before, the plan is the paper's, and all servers are placed.

    With a placement `before`, servers stay where they are unless moving pays: every byte that a server which holds
    blocks already has to load costs `s_per_byte` seconds of predicted mean response time (delta of the switching
    cost). If the servers cannot bear the arrival rate, the plan is the one whose queue grows slowest. `concurrencies`
    are the values of c to try, if not all or a search: what a large swarm needs that plans every few minutes. If none
    of them makes a chain, others are tried after all.

    NoPlanError if the servers have no room for all blocks; ValueError for bad numbers, two profiles of one server, and
    pinned spans outside the model or too large for their servers.
    """
    require("s_per_byte", s_per_byte, positive=False)
    ordered = tuple(by_peer(profiles).values())

    def switching_s(placement: Placement) -> float:
        return s_per_byte * moved_bytes(before, placement, model) if before is not None else 0.0

    starts = [ordered] if before is None else [_staying(ordered, model, before), ordered]
    pinned = {profile.peer: profile.pinned for profile in ordered if profile.pinned is not None}
    if 0 < len(pinned) < len(ordered):  # woven into every chain they meet, slow ones would hold up the others
        starts.append(tuple(profile for profile in ordered if profile.peer not in pinned))
    best: tuple[Judged, ConcurrencyChoice] | None = None
    for start in starts:
        choice = choose_concurrency(start, model, workload, pair_s=pair_s, only=concurrencies)
        if choice.placement is None:
            continue
        improved = improve(
            ordered,
            model,
            Placement({**choice.placement.placement.spans, **pinned}),
            arrival_rate=workload.arrival_rate,
            extra_s=switching_s,
            pair_s=pair_s,
            max_evaluations=search_effort // len(ordered),
        )
        if best is None or improved.is_better_than(best[0]):
            best = improved, choice
    if best is None and concurrencies is not None:
        return plan(
            ordered,
            model,
            workload,
            pair_s=pair_s,
            search_effort=search_effort,
            before=before,
            s_per_byte=s_per_byte,
        )
    if best is None:
        raise _no_plan(ordered, model)
    judged, choice = best
    assert choice.chosen is not None
    assert choice.placement is not None
    return Plan(
        profiles=ordered,
        model=model,
        workload=workload,
        chosen=choice.chosen,
        candidates=choice.candidates,
        before=before,
        greedy=choice.placement,
        placement=judged.placement,
        chains=judged.chains,
        bounds=response_time_bounds(
            [chain.rate for chain in judged.chains],
            [chain.capacity for chain in judged.chains],
            arrival_rate=workload.arrival_rate,
        ),
    )


def moved_bytes(before: Placement, after: Placement, model: ModelSpec) -> float:
    """Bytes that servers which hold blocks already have to load to get from one placement to the other.

    What a new server loads does not count: it serves nobody meanwhile, and loads in any case.
    """
    stayed = [(after[peer], overlap(before[peer], after[peer])) for peer in after if peer in before.spans]
    return sum(model.weight_bytes(span) - (model.weight_bytes(keep) if keep else 0) for span, keep in stayed)


def _staying(profiles: Sequence[ServerProfile], model: ModelSpec, before: Placement) -> tuple[ServerProfile, ...]:
    """The profiles with those servers pinned where they are that can stay there."""

    def stays(profile: ServerProfile) -> bool:
        span = before.spans.get(profile.peer)
        return span is not None and span.end <= model.num_blocks and weights_fit(profile, model, span)

    return tuple(
        replace(profile, pinned=before[profile.peer]) if profile.pinned is None and stays(profile) else profile
        for profile in profiles
    )


def _no_plan(profiles: Sequence[ServerProfile], model: ModelSpec) -> NoPlanError:
    """Name the blocks that nobody can run, and the memory these take with cache for one session."""
    placement = greedy_placement(profiles, model, concurrency=1).placement
    slots = residual_slots(profiles, model, placement)
    # A hop runs to the end of its server's span, so a server with fewer slots than blocks runs the last ones only.
    runnable = {block for peer in placement for block in list(placement[peer])[-slots[peer] :] if slots[peer]}
    missing = [block for block in range(model.num_blocks) if block not in runnable]
    ends = (model.embedding_bytes if 0 in missing else 0) + (model.head_bytes if model.num_blocks - 1 in missing else 0)
    missing_bytes = len(missing) * (model.block_bytes + model.slot_bytes) + ends
    return NoPlanError(missing, num_blocks=model.num_blocks, missing_bytes=missing_bytes)
