"""What a plan is worked out from: servers as they describe themselves, the links between them, and the load."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import permutations

from chainserve.planning.times import BlockTimes, ServerTimes
from chainserve.planning.values import ModelSpec, Placement
from chainserve.swarm.offers import MAX_SIZE, Demand, Offer, StepCheck
from chainserve.swarm.orders import Orders, filled
from chainserve.swarm.plans import Membership, PlanInputs, PlannedServer, SwarmPlan, Way
from chainserve.swarm.records import Announcement
from chainserve.types import PeerId, Span

SLOT_TOKENS = 2048
"""Cache that planning counts per session, at least: what one chat takes. Requests that are longer make it more."""

DEFAULT_DEMAND = Demand(num_requests=60, window_s=600.0, input_tokens=512.0, output_tokens=128.0)
"""What is planned for until enough requests have been seen: one every ten seconds."""
MIN_REQUESTS = 10
"""Fewer say nothing about a rate."""

MAX_SESSIONS = 1000
"""Nobody is planned with cache for more sessions through the whole model, whatever memory it claims."""

MAX_RATIO = 20.0
"""By so much live traffic may correct a profile, either way."""

MAX_SERVERS_WITH_WAYS = 64
"""In larger swarms hops cost what is usual for their server: times per pair make planning take the square of it."""

LARGE = 100
"""Servers from which on a plan looks for the concurrency only near the one before, and searches no further."""
NEARBY = (0.85, 1.0, 1.2)

SEARCH_EFFORT = 6_000
"""Of the local search: a second of one core at most in small swarms."""

S_PER_BYTE = 0.01 / 200e6
"""Price of loading: a second of it, at 200 MB/s, has to lower the mean response time by 10 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What of a model no server has to measure."""

    num_blocks: int
    longest_tokens: int  # of a sequence that it can hold
    wire_bytes: int  # activations of one token


def inputs_of(
    members: Mapping[PeerId, Announcement],
    model: ModelFacts,
    current: SwarmPlan | None,
    *,
    orders: Orders | None = None,
) -> PlanInputs:
    """What is to be planned: these servers, as they describe themselves; `current` is the plan that they follow."""
    orders = orders or Orders()
    offers = {peer: server.offer for peer, server in members.items() if server.offer is not None}
    demand = orders.demand or total_demand(offer.demand for offer in offers.values())
    reference = offers[min(offers)].profile
    slot_tokens = orders.slot_tokens or SLOT_TOKENS
    while slot_tokens < demand.input_tokens + demand.output_tokens and orders.slot_tokens is None:
        slot_tokens *= 2
    slot_tokens = min(slot_tokens, model.longest_tokens)
    spec = ModelSpec(
        num_blocks=model.num_blocks,
        block_bytes=reference.block_bytes,
        slot_bytes=reference.token_bytes * slot_tokens,
        embedding_bytes=reference.embedding_bytes,
        head_bytes=reference.head_bytes,
        is_tied=reference.is_tied,
    )
    own_bytes = {peer: _block_bytes(offer, token_bytes=reference.token_bytes) for peer, offer in offers.items()}
    trips_s = round_trips(offers)
    usual_s = {peer: _usual_round_trip_s(peer, trips_s) for peer in offers}
    ways: dict[tuple[PeerId, PeerId], Way] = {}
    if len(offers) <= MAX_SERVERS_WITH_WAYS:
        for first, second in permutations(sorted(offers), 2):
            if (round_trip_s := trips_s.get((first, second))) is not None:
                reach = offers[first].reach.get(second)
                prompt_bytes = demand.input_tokens * model.wire_bytes
                ways[first, second] = Way(
                    hop_s=round_trip_s / 2 + offers[second].profile.times.forward_s,
                    prompt_s=prompt_bytes / reach.bytes_per_s if reach and reach.bytes_per_s else 0.0,
                )
    where = {peer: span for peer, server in members.items() if (span := whereabouts(server, current)) is not None}
    concurrencies = None
    if current is not None and current.concurrency and len(members) > LARGE:
        concurrencies = tuple(sorted({max(1, round(current.concurrency * factor)) for factor in NEARBY}))
    return PlanInputs(
        model=spec,
        servers=tuple(
            PlannedServer(
                peer=peer,
                offered_bytes=offers[peer].memory_bytes,
                memory_bytes=_memory_bytes(members[peer], offers[peer], spec, token_bytes=reference.token_bytes),
                block_bytes=None if (block_bytes := own_bytes[peer]) == spec.block_bytes else block_bytes,
                times=_times(offers[peer], usual_s[peer]),
                pinned=members[peer].span if members[peer].pinned else None,
            )
            for peer in sorted(offers)
        ),
        arrival_rate=demand.arrival_rate,
        input_tokens=demand.input_tokens,
        output_tokens=demand.output_tokens,
        slot_tokens=slot_tokens,
        ways=ways,
        before=Placement(where) if where else None,
        s_per_byte=S_PER_BYTE,
        search_effort=SEARCH_EFFORT if len(offers) <= LARGE else 0,
        concurrencies=concurrencies,
        rule=filled(orders.rule, shares_heads=reference.token_bytes < 2 * model.wire_bytes),
    )


def membership_of(members: Mapping[PeerId, Announcement]) -> frozenset[Membership]:
    """As `PlanInputs.membership`, of the servers that there are."""
    return frozenset(
        (peer, server.span if server.pinned else None, server.offer.memory_bytes if server.offer else 0)
        for peer, server in members.items()
    )


def total_demand(seen: Iterable[Demand | None]) -> Demand:
    """What all heads together saw, or what is planned for until that says something."""
    demands = [demand for demand in seen if demand is not None and demand.num_requests]
    num_requests = sum(demand.num_requests for demand in demands)
    if num_requests < MIN_REQUESTS:
        return DEFAULT_DEMAND
    window_s = max(demand.window_s for demand in demands)
    rate = math.fsum(demand.arrival_rate for demand in demands)
    return Demand(
        num_requests=min(round(rate * window_s), MAX_SIZE),
        window_s=window_s,
        input_tokens=max(1.0, _weighted((d.input_tokens, d.num_requests) for d in demands)),
        output_tokens=max(1.0, _weighted((d.output_tokens, d.num_requests) for d in demands)),
    )


def corrected(offer: Offer) -> BlockTimes:
    """A server's measured times, as live traffic has corrected them."""
    block = offer.profile.times.block
    prefill, decode = _ratio(offer.prefill), _ratio(offer.decode)
    return BlockTimes(
        overhead_s=block.overhead_s * prefill,
        prefill_s=block.prefill_s * prefill,
        decode_s=block.decode_s * decode,
        session_s=block.session_s * decode,
    )


def _ratio(check: StepCheck | None) -> float:
    return 1.0 if check is None else min(max(check.ratio, 1 / MAX_RATIO), MAX_RATIO)


def _times(offer: Offer, round_trip_s: float) -> ServerTimes:
    times = offer.profile.times
    return ServerTimes(
        hop_s=round_trip_s / 2 + times.forward_s,
        block=corrected(offer),
        head_s=times.head_s * _ratio(offer.decode),
    )


def _memory_bytes(server: Announcement, offer: Offer, model: ModelSpec, *, token_bytes: float) -> float:
    """Memory for weights and cache, in bytes in which the cache of a token takes `token_bytes` here too.

    So caches and ends of another dtype compare, while weights of blocks differ between servers (`_block_bytes`): what
    is quantized has smaller blocks beside the same cache. The least ratio counts, so that whatever fits by the model's
    bytes does by the server's own.
    """
    most_bytes = MAX_SESSIONS * model.slot_bytes
    block_bytes = _block_bytes(offer, token_bytes=token_bytes)
    if server.pinned and server.span:
        cache_bytes = min(server.cache_tokens * token_bytes, most_bytes)
        return len(server.span) * (block_bytes + cache_bytes) + model.end_bytes(server.span)
    profile, whole = offer.profile, Span(0, model.num_blocks)
    sizes = (
        (token_bytes, profile.token_bytes),
        (model.embedding_bytes, profile.embedding_bytes),
        (model.head_bytes, profile.head_bytes),
    )
    memory_bytes = (offer.memory_bytes - profile.activation_bytes) * min(ours / own for ours, own in sizes if own)
    return max(1.0, min(memory_bytes, model.num_blocks * (block_bytes + most_bytes) + model.end_bytes(whole)))


def _block_bytes(offer: Offer, *, token_bytes: float) -> float:
    """Weights of one block, in the bytes of `_memory_bytes`."""
    return offer.profile.block_bytes * (token_bytes / offer.profile.token_bytes)


def whereabouts(server: Announcement, current: SwarmPlan | None) -> Span | None:
    """The blocks that a server holds, or will when it has moved."""
    if server.pinned or current is None:
        return server.span
    return current.placement.spans.get(server.peer, server.span)


def round_trips(offers: Mapping[PeerId, Offer]) -> dict[tuple[PeerId, PeerId], float]:
    """Seconds there and back between two servers, where either of them has measured it: the shorter, both ways."""
    found: dict[tuple[PeerId, PeerId], float] = {}
    for peer, offer in offers.items():
        for other, reach in offer.reach.items():
            if other in offers and other != peer:
                for pair in ((peer, other), (other, peer)):
                    found[pair] = min(found.get(pair, math.inf), reach.round_trip_s)
    return found


def _usual_round_trip_s(peer: PeerId, round_trips: Mapping[tuple[PeerId, PeerId], float]) -> float:
    """The median over the others; 0 if none is known."""
    return statistics.median([seconds for (first, _), seconds in round_trips.items() if first == peer] or [0.0])


def _weighted(pairs: Iterable[tuple[float, int]]) -> float:
    values = list(pairs)
    return sum(value * weight for value, weight in values) / sum(weight for _, weight in values)
