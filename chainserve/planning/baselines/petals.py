"""PETALS: servers join where throughput is lowest, clients take the route that looks fastest to them.

Read from its source, last version of August 2024 (github.com/bigscience-workshop/petals). Rates are in tokens per
second; what counts is how those of different servers compare.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from chainserve.planning.baselines.routes import Routes
from chainserve.planning.baselines.windows import blocks_with_cache, free_servers, poorest_window
from chainserve.planning.values import ModelSpec, Placement, ServerProfile, require
from chainserve.types import Hop, PeerId, Span

BALANCE = 0.75
"""A server moves if the lowest throughput of a block is less than this of what it could be."""
PREFERENCE = 1e-3
"""Relative: so much less a server's own blocks seem to have, so that it stays where other windows are as good."""
OVERHEAD_S = 0.018
"""Serialisation of one message."""
UNKNOWN_S = 0.15
"""One way between peers that have not measured their round trip."""
NO_CACHE_S = 10.0
"""Added where a server seems to lack cache."""

BANNED_FOR_S = 15.0
"""For which a client leaves a server out that had no room for its session."""
LONGEST_BACKOFF_S = 16.0
"""The source goes on to 60; the shorter one is kinder to it."""

RoundTrips = Mapping[tuple[PeerId | None, PeerId], float]
"""Seconds from one peer to the other and back; None is the client."""


def announced_throughput(forward_rate: float, num_blocks: int, *, network_rate: float = math.inf) -> float:
    """Tokens per second: the network's or the device's through the (n + 1) / 2 blocks that a request uses on average.

    `forward_rate` is that of one block.
    """
    return min(network_rate, forward_rate / ((num_blocks + 1) / 2))


def place(
    profiles: Sequence[ServerProfile],
    model: ModelSpec,
    *,
    cache_slots: float,
    rng: np.random.Generator,
    forward_rate: Mapping[PeerId, float] | None = None,
    network_rate: Mapping[PeerId, float] | None = None,
    before: Placement | None = None,
) -> Placement:
    """Let the servers join in random order, then move until each has looked once more and none wants to.

    Servers that hold blocks `before`, and no more than they would take, are there already when the others join.

    `cache_slots` is the cache that PETALS allots per block, in slots: 4096 tokens, 16384 with grouped-query attention.
    Rates are of one block and of the network; without them the device does a request in `block_s` and the network
    never limits. Servers without room for a block hold none. ValueError if there are no servers, or rates are missing
    or not positive.
    """
    require("cache_slots", cache_slots)
    throughput: dict[PeerId, float] = {}
    sizes: dict[PeerId, int] = {}
    for peer, server in free_servers(profiles).items():
        num_blocks = blocks_with_cache(server, model, num_slots=cache_slots)
        if num_blocks:
            forward = 1 / server.block_s if forward_rate is None else _rate("forward_rate", forward_rate, peer)
            network = math.inf if network_rate is None else _rate("network_rate", network_rate, peer)
            sizes[peer] = num_blocks
            throughput[peer] = announced_throughput(forward, num_blocks, network_rate=network)
    there = before.spans if before is not None else {}
    spans = {
        peer: span for peer, span in there.items() if len(span) <= sizes.get(peer, 0) and span.end <= model.num_blocks
    }
    for peer in _shuffled({peer: size for peer, size in sizes.items() if peer not in spans}, rng):
        spans[peer] = poorest_window(_per_block(spans, throughput, model.num_blocks), sizes[peer])
    return settle(Placement(spans), throughput, num_blocks=model.num_blocks, rng=rng)


def settle(
    placement: Placement, throughput: Mapping[PeerId, float], *, num_blocks: int, rng: np.random.Generator
) -> Placement:
    """Let servers move one by one, in random order, until a whole turn passes without a move.

    In PETALS each looks about once a minute. Every move makes the sorted throughputs of the blocks lexicographically
    larger, so this ends.
    """
    spans = dict(placement.spans)
    has_moved = True
    while has_moved:
        has_moved = False
        for peer in _shuffled(spans, rng):
            span = better_span(peer, spans, throughput=throughput, num_blocks=num_blocks, rng=rng)
            if span is not None:
                spans[peer] = span
                has_moved = True
    return Placement(spans)


def better_span(
    peer: PeerId,
    spans: Mapping[PeerId, Span],
    *,
    throughput: Mapping[PeerId, float],
    num_blocks: int,
    rng: np.random.Generator,
) -> Span | None:
    """Where a server moves when it looks: None if it stays.

    It moves in thought, then lets everyone in turn move until nobody wants to, and really moves if that raises the
    lowest throughput of a block enough. It stays where only it holds some block.
    """
    lowest = _per_block(spans, throughput, num_blocks).min()
    if lowest > 0 and _without(peer, spans, throughput=throughput, num_blocks=num_blocks).min() <= 0:
        return None
    span = _favourite(peer, spans, throughput=throughput, num_blocks=num_blocks)
    if span == spans[peer]:
        return None
    imagined = {**spans, peer: span}
    has_moved = True
    while has_moved:
        has_moved = False
        for other in _shuffled(imagined, rng):
            favourite = _favourite(other, imagined, throughput=throughput, num_blocks=num_blocks)
            has_moved |= favourite != imagined[other]
            imagined[other] = favourite
    return span if lowest < BALANCE * _per_block(imagined, throughput, num_blocks).min() else None


def routes(
    placement: Placement, num_blocks: int, *, round_trip_s: RoundTrips, step_s: Mapping[PeerId, float]
) -> Routes:
    """Routes at the cost of one decoding step as a client sees it, without load.

    A hop costs half a round trip and OVERHEAD_S, a block `step_s` of its server (1 / its inference rate), the way back
    half a round trip. NoChainError names blocks that nobody holds.
    """

    def one_way_s(before: PeerId | None, peer: PeerId) -> float:
        round_trip = round_trip_s.get((before, peer))
        return UNKNOWN_S if round_trip is None else round_trip / 2

    def hop_s(before: PeerId | None, hop: Hop) -> float:
        return one_way_s(before, hop.peer) + OVERHEAD_S + step_s[hop.peer] * len(hop.span)

    return Routes(placement, num_blocks, hop_s=hop_s, return_s=lambda peer: one_way_s(None, peer))


def retry_delay_s(num_failures: int) -> float:
    """Seconds before the next try after so many failures: 0, 1, 2, 4, 8, and 16 from then on."""
    return 0.0 if num_failures == 1 else min(2.0 ** (num_failures - 2), LONGEST_BACKOFF_S)


def seems_to_lack_cache(span: Span, free_slots: int) -> bool:
    """Whether a server's whole span, used or not, needs more slots than it announced.

    PETALS counts tokens, keys and values apart: 2 x session length x span > tokens free. A slot holds both.
    """
    return len(span) > free_slots


def _rate(name: str, rates: Mapping[PeerId, float], peer: PeerId) -> float:
    if peer not in rates:
        raise ValueError(f"no {name} of {peer}")
    require(f"{name} of {peer}", rates[peer])
    return rates[peer]


def _shuffled(peers: Mapping[PeerId, object], rng: np.random.Generator) -> list[PeerId]:
    ordered = sorted(peers)
    return [ordered[index] for index in rng.permutation(len(ordered))]


def _per_block(
    spans: Mapping[PeerId, Span], throughput: Mapping[PeerId, float], num_blocks: int
) -> NDArray[np.float64]:
    """Sum of the throughputs of the servers that hold each block."""
    total = np.zeros(num_blocks)
    for peer in sorted(spans):  # equal servers give equal sums whatever the order in which they came
        total[spans[peer].start : spans[peer].end] += throughput[peer]
    return total


def _without(
    peer: PeerId, spans: Mapping[PeerId, Span], *, throughput: Mapping[PeerId, float], num_blocks: int
) -> NDArray[np.float64]:
    """Throughput per block as a server sees it that thinks of moving."""
    total = _per_block(spans, throughput, num_blocks)
    total[spans[peer].start : spans[peer].end] -= throughput[peer] * (1 + PREFERENCE)
    return total


def _favourite(
    peer: PeerId, spans: Mapping[PeerId, Span], *, throughput: Mapping[PeerId, float], num_blocks: int
) -> Span:
    """The window that a server would take now, if its own blocks were free."""
    return poorest_window(_without(peer, spans, throughput=throughput, num_blocks=num_blocks), len(spans[peer]))
