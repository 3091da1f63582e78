"""Two plain baselines: the whole model on every server that can hold it, and servers in random order."""

from collections.abc import Sequence

import numpy as np

from chainserve.planning.baselines.windows import blocks_with_cache, free_servers
from chainserve.planning.values import ModelSpec, Placement, PlannedChain, ServerProfile, how_many
from chainserve.types import Chain, Hop, Span


def whole_model_chains(profiles: Sequence[ServerProfile], model: ModelSpec) -> tuple[PlannedChain, ...]:
    """A chain of one server for each that holds the model and a session's cache, fastest first; the others idle.

    Capacity is floor((M_j - s_m L) / (s_c L)). Empty if no server is large enough.
    """
    whole = Span(0, model.num_blocks)
    chains = []
    for peer, server in free_servers(profiles).items():
        cache_bytes = server.memory_bytes - model.weight_bytes(whole)
        capacity = how_many(cache_bytes, model.slot_bytes * model.num_blocks)
        if capacity:
            chains.append(PlannedChain(Chain((Hop(peer, whole),)), capacity, server.span_s(model.num_blocks)))
    return tuple(sorted(chains, key=lambda chain: (chain.service_s, chain.chain.head)))


def random_placement(
    profiles: Sequence[ServerProfile], model: ModelSpec, *, concurrency: int, rng: np.random.Generator
) -> Placement:
    """Servers in random order, each after the one before it, from the first block again once a group covers the model.

    Blocks per server by Eq. 6, as in Alg. 1, of which this differs in the order alone. ValueError if there are no
    servers or `concurrency` is below 1.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}: it has to be at least 1")
    servers = list(free_servers(profiles).values())
    spans, cursor = {}, 0
    for index in rng.permutation(len(servers)):
        size = blocks_with_cache(servers[index], model, num_slots=concurrency)
        if size:
            start = min(cursor, model.num_blocks - size)
            spans[servers[index].peer] = Span(start, start + size)
            cursor = (start + size) % model.num_blocks
    return Placement(spans)
