"""The baselines' placements as plans, so that a live swarm follows them as it follows its own.

What each system does by itself over time is done here in one go, from the same inputs as GBP-CR: nobody is placed by
what it knows alone, and nobody is pinned. In their sources clients hold the ends of the model; here servers do, so
those at an end hold fewer blocks than the rule would give them.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from chainserve.errors import NoPlanError
from chainserve.planning.allocation import allocate
from chainserve.planning.baselines import bprr, petals
from chainserve.planning.baselines.simple import random_placement, whole_model_chains
from chainserve.planning.bounds import response_time_bounds
from chainserve.planning.placement import GreedyPlacement
from chainserve.planning.plan import Plan
from chainserve.planning.rules import BPRR, PETALS, PETALS_TOKENS, RANDOM, WHOLE_MODEL, PlacementRule
from chainserve.planning.tuning import Candidate, choose_concurrency
from chainserve.planning.values import (
    ROUNDING,
    ModelSpec,
    PairSeconds,
    Placement,
    ServerProfile,
    Workload,
    by_peer,
    total_rate,
)
from chainserve.types import Span

NUM_DRAWS = 10
"""Random orders that are tried for one concurrency until one covers the model."""

Placed = tuple[Placement, int]
"""A placement, and the sessions that it reserves cache for beside every block."""


def plan_by(
    rule: PlacementRule,
    profiles: Sequence[ServerProfile],
    model: ModelSpec,
    workload: Workload,
    *,
    slot_tokens: int,
    pair_s: PairSeconds | None = None,
    before: Placement | None = None,
) -> Plan:
    """Place blocks as a baseline does; the chains are those that GCA finds over its placement.

    `slot_tokens` is what a cache slot holds. `before` counts for PETALS alone, whose servers move one by one. The plan
    has no place for a server without room, and none for those that the rule leaves idle. NoPlanError if some block is
    held by nobody, ValueError for pinned servers and for a rule that is no baseline.
    """
    ordered = tuple(by_peer(profiles).values())
    placement, concurrency = _place(rule, ordered, model, workload, slot_tokens=slot_tokens, before=before)
    if missing := placement.missing(model.num_blocks):
        raise NoPlanError(
            missing,
            num_blocks=model.num_blocks,
            missing_bytes=len(missing) * (model.block_bytes + concurrency * model.slot_bytes),
        )
    chains = allocate(ordered, model, placement, pair_s=pair_s)
    if not chains:
        raise NoPlanError(range(model.num_blocks), num_blocks=model.num_blocks, missing_bytes=model.slot_bytes)
    bounds = response_time_bounds(
        [chain.rate for chain in chains],
        [chain.capacity for chain in chains],
        arrival_rate=workload.arrival_rate,
    )
    candidate = Candidate(
        concurrency=concurrency,
        rate=total_rate(chains),
        lower_s=bounds.lower_s,
        upper_s=bounds.upper_s,
        surrogate=math.inf,
    )
    return Plan(
        profiles=ordered,
        model=model,
        workload=workload,
        chosen=candidate,
        candidates=(candidate,),
        before=before,
        greedy=_as_greedy(placement, ordered),
        placement=placement,
        chains=chains,
        bounds=bounds,
    )


def _place(
    rule: PlacementRule,
    profiles: Sequence[ServerProfile],
    model: ModelSpec,
    workload: Workload,
    *,
    slot_tokens: int,
    before: Placement | None,
) -> Placed:
    if rule.name == PETALS:
        num_slots = (rule.cache_tokens or PETALS_TOKENS) / slot_tokens
        rng = np.random.default_rng(rule.seed)

        def make(spec: ModelSpec) -> Placement:
            return petals.place(profiles, spec, cache_slots=num_slots, rng=rng, before=before)

        return _beside_ends(make, profiles, model, num_slots=num_slots), max(1, int(num_slots))
    if rule.name == BPRR:
        return _first_covering(_bprr(profiles, model, workload), model)
    if rule.name == WHOLE_MODEL:
        chains = whole_model_chains(profiles, model)
        return Placement({chain.chain.head: Span(0, model.num_blocks) for chain in chains}), 1
    if rule.name == RANDOM:
        return _first_covering(_random(profiles, model, workload, rng=np.random.default_rng(rule.seed)), model)
    raise ValueError(f"{rule.name} is no baseline")


def _bprr(profiles: Sequence[ServerProfile], model: ModelSpec, workload: Workload) -> Iterator[Placed]:
    """CG-BP for the sessions that it reserves cache for; for fewer, where that leaves blocks to nobody."""
    wanted = bprr.reserved_concurrency(profiles, model, arrival_rate=workload.arrival_rate)
    for concurrency in range(wanted, 0, -1):

        def make(spec: ModelSpec, concurrency: int = concurrency) -> Placement:
            return bprr.place(profiles, spec, concurrency=concurrency)

        yield _beside_ends(make, profiles, model, num_slots=concurrency), concurrency


def _random(
    profiles: Sequence[ServerProfile], model: ModelSpec, workload: Workload, *, rng: np.random.Generator
) -> Iterator[Placed]:
    """Orders drawn for the concurrency that GBP-CR would choose; for a smaller one, where none covers the model."""
    choice = choose_concurrency(profiles, model, workload)
    wanted = choice.chosen.concurrency if choice.chosen is not None else 1
    for concurrency in range(wanted, 0, -1):

        def make(spec: ModelSpec, concurrency: int = concurrency) -> Placement:
            return random_placement(profiles, spec, concurrency=concurrency, rng=rng)

        for _ in range(NUM_DRAWS):
            yield _beside_ends(make, profiles, model, num_slots=concurrency), concurrency


def _beside_ends(
    make: Callable[[ModelSpec], Placement], profiles: Sequence[ServerProfile], model: ModelSpec, *, num_slots: float
) -> Placement:
    """A placement of equal blocks, cut where an end of the model does not fit beside them.

    If that leaves a block to nobody: one for which every server keeps room for both ends.
    """
    servers = by_peer(profiles)
    placed = make(replace(model, embedding_bytes=0, head_bytes=0))
    cut = {peer: _cut(servers[peer], model, span, num_slots=num_slots) for peer, span in placed.spans.items()}
    placement = Placement({peer: span for peer, span in cut.items() if span is not None})
    return make(model) if placement.missing(model.num_blocks) else placement


def _cut(profile: ServerProfile, model: ModelSpec, span: Span, *, num_slots: float) -> Span | None:
    """The span without blocks far from its end of the model, so that it fits with its cache; None if no block does."""

    def fits(span: Span) -> bool:
        num_bytes = model.weight_bytes_on(profile, span) + len(span) * num_slots * model.slot_bytes
        return num_bytes <= profile.memory_bytes * (1 + ROUNDING)

    while not fits(span):
        if len(span) == 1:
            return None
        span = Span(span.start, span.end - 1) if span.start == 0 else Span(span.start + 1, span.end)
    return span


def _first_covering(tried: Iterable[Placed], model: ModelSpec) -> Placed:
    """The first that leaves no block to nobody; if all do, the last."""
    placed: Placed = Placement({}), 1
    for placed in tried:
        if not placed[0].missing(model.num_blocks):
            break
    return placed


def _as_greedy(placement: Placement, profiles: Sequence[ServerProfile]) -> GreedyPlacement:
    """The same in the words of GBP-CR: no disjoint chains, and nobody left over."""
    unfit = tuple(profile.peer for profile in profiles if profile.peer not in placement.spans)
    return GreedyPlacement(
        placement=placement, chains=(), num_needed=None, num_chains_needed=None, incomplete=(), unfit=unfit
    )
