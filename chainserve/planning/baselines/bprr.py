"""BPRR: blocks placed for a number of concurrent sessions, routes chosen by expected waiting and service.

Source: Sun et al. 2025, "Optimizing Resource Allocation for Geographically-Distributed Inference by Large Language
Models", arXiv 2512.21884: CG-BP for the placement, WS-RR for the routes.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from chainserve.planning.baselines.routes import Routes
from chainserve.planning.baselines.windows import blocks_with_cache, free_servers, poorest_window, spare_bytes
from chainserve.planning.values import ROUNDING, ModelSpec, Placement, ServerProfile, how_many, require
from chainserve.types import Hop, PeerId, Span

VIRTUAL_SLOWNESS = 2
"""The virtual server takes so many times as long as the slowest; the source asks only that it is slower than all."""


def mean_service_s(profiles: Sequence[ServerProfile], model: ModelSpec) -> float:
    """Seconds of a request if each block took as long as on the average server, which holds all it can for one session.

    A guess that needs no placement. ValueError if no server has room for a block.
    """
    times = []
    for server in free_servers(profiles).values():
        num_blocks = blocks_with_cache(server, model, num_slots=1)
        if num_blocks:
            times.append(server.span_s(num_blocks) / num_blocks)
    if not times:
        raise ValueError("no server has room for one block and its cache")
    return model.num_blocks * math.fsum(times) / len(times)


def reserved_concurrency(
    profiles: Sequence[ServerProfile], model: ModelSpec, *, arrival_rate: float, service_s: float | None = None
) -> int:
    """Sessions R to reserve cache for: mean + one standard deviation of those in service, if memory allows so many.

    By Little's law with a server for everyone (Poisson: the variance is the mean). The memory's limit covers every
    block R times even if each server loses one block to rounding. At least 1. `service_s` is the mean service time,
    `mean_service_s` if not given.
    """
    require("arrival_rate", arrival_rate)
    if service_s is None:
        service_s = mean_service_s(profiles, model)
    require("service_s", service_s)
    mean = arrival_rate * service_s
    servers = free_servers(profiles)
    num_shares = model.num_blocks + len(servers)
    memory_bytes = math.fsum(spare_bytes(server, model) for server in servers.values())
    limit = how_many(memory_bytes - model.block_bytes * num_shares, model.slot_bytes * num_shares)
    return max(1, math.ceil(min(mean + math.sqrt(mean), limit)))


def place(profiles: Sequence[ServerProfile], model: ModelSpec, *, concurrency: int) -> Placement:
    """CG-BP for `concurrency` sessions (R): where requests gain most while a block serves less than R, then evenly.

    Servers come by rising time per block. ValueError if there are no servers or `concurrency` is below 1.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}: it has to be at least 1")
    servers = free_servers(profiles)
    sizes = {peer: blocks_with_cache(server, model, num_slots=concurrency) for peer, server in servers.items()}
    per_block_s = {peer: servers[peer].span_s(size) / size for peer, size in sizes.items() if size}
    virtual_s = VIRTUAL_SLOWNESS * max(per_block_s.values(), default=0)
    served = np.zeros(model.num_blocks)  # C_b: sessions that the servers of each block can hold
    amortized_s = np.full(model.num_blocks, concurrency * virtual_s)  # T_b: of R sessions, where the rest is virtual
    spans = {}
    for peer in sorted(per_block_s, key=lambda peer: (per_block_s[peer], peer)):
        size = sizes[peer]
        if (served < concurrency).any():
            start = _neediest_start(served < concurrency, amortized_s, size)
            span = Span(start, start + size)
        else:
            span = poorest_window(served, size)
        blocks = slice(span.start, span.end)
        sessions = _own_sessions(servers[peer], model, num_blocks=size)
        gained = np.minimum(np.maximum(concurrency - served[blocks], 0), sessions)
        amortized_s[blocks] -= (virtual_s - per_block_s[peer]) * gained
        served[blocks] += sessions
        spans[peer] = span
    return Placement(spans)


def routes(
    placement: Placement,
    profiles: Sequence[ServerProfile],
    model: ModelSpec,
    *,
    pair_s: Mapping[tuple[PeerId, PeerId], float] | None = None,
) -> Routes:
    """Routes at the mean seconds of a request, without waiting: communication and computation (Eq. 2).

    `pair_s` replaces the communication time of its second server where the first precedes it. NoChainError names
    blocks that nobody holds.
    """
    servers, pairs = free_servers(profiles), pair_s or {}

    def hop_s(before: PeerId | None, hop: Hop) -> float:
        server = servers[hop.peer]
        communication_s = server.communication_s
        if before is not None:
            communication_s = pairs.get((before, hop.peer), communication_s)
        return communication_s + server.block_s * len(hop.span)

    return Routes(placement, model.num_blocks, hop_s=hop_s)


def expected_waiting_s(needed: int, free_slots: int, endings: Sequence[tuple[float, int]], *, now_s: float) -> float:
    """Seconds until a server has `needed` slots free: until enough of the sessions there are believed to have ended.

    `endings`: when each is believed to end and its slots, in that order; `free_slots` is what they leave, negative if
    some wait themselves. Infinite if the server has not as many slots.
    """
    if free_slots >= needed:
        return 0.0
    for end_s, num_slots in endings:
        free_slots += num_slots
        if free_slots >= needed:
            return max(0.0, end_s - now_s)
    return math.inf


def _own_sessions(profile: ServerProfile, model: ModelSpec, *, num_blocks: int) -> int:
    """Sessions that fit on a server if each runs all its blocks there."""
    cache_bytes = spare_bytes(profile, model) - num_blocks * model.block_bytes
    return how_many(cache_bytes, num_blocks * model.slot_bytes)


def _neediest_start(is_needy: NDArray[np.bool_], amortized_s: NDArray[np.float64], size: int) -> int:
    """The first of the windows with the largest sum of amortized time among those with a block in need."""
    windows = np.lib.stride_tricks.sliding_window_view
    sums = np.where(windows(is_needy, size).any(axis=1), windows(amortized_s, size).sum(axis=1), -math.inf)
    return int(np.argmax(sums >= sums.max() * (1 - ROUNDING)))
