"""Which chains a placement offers, and how many sessions each may hold: greedy cache allocation (GCA; Sun et al. 2026,
Alg. 2)."""

from collections.abc import Mapping, Sequence

from chainserve.planning.fastest import ChainFinder
from chainserve.planning.placement import slots_beside
from chainserve.planning.values import ModelSpec, PairSeconds, Placement, PlannedChain, ServerProfile, by_peer, how_many
from chainserve.types import PeerId, Span


def c_max(profiles: Sequence[ServerProfile], model: ModelSpec) -> int:
    """The largest concurrency worth a try: beyond it no server has room for one block and its cache (section 3.2.3).

    0 if none has room for a single session.
    """
    lightest = min(model.end_bytes(Span(block, block + 1)) for block in range(model.num_blocks))
    space = max(profile.memory_bytes - model.block_bytes_on(profile) for profile in by_peer(profiles).values())
    return how_many(space - lightest, model.slot_bytes)


def residual_slots(profiles: Sequence[ServerProfile], model: ModelSpec, placement: Placement) -> dict[PeerId, int]:
    """Cache slots left on each placed server beside its weights: R_j.

    ValueError if a server's weights do not fit, or if it is unknown or holds blocks that the model does not have.
    """
    servers = by_peer(profiles)
    for peer in placement:
        if peer not in servers:
            raise ValueError(f"{peer} is placed but has no profile")
        if placement[peer].end > model.num_blocks:
            raise ValueError(f"{peer} holds blocks {placement[peer]}, the model has {model.num_blocks} blocks")
    return {peer: slots_beside(servers[peer], model, placement[peer]) for peer in placement}


def allocate(
    profiles: Sequence[ServerProfile],
    model: ModelSpec,
    placement: Placement,
    *,
    pair_s: PairSeconds | None = None,
) -> tuple[PlannedChain, ...]:
    """Find the fastest chain with room, give it all sessions that fit, and again until no path has room (Alg. 2).

    The chains come in the order in which they were found, which is that of rising service time. `pair_s[i, j]`
    replaces the communication time of j where i comes before it; heads, and pairs that are not in it, keep that of
    their profiles. Memory and time grow with the square of the servers then. ValueError as in `residual_slots`, and
    for times in `pair_s` that are negative or not finite.
    """
    finder = _finder(profiles, model, placement, residual_slots(profiles, model, placement), pair_s)
    chains = []
    while (chain := finder.find()) is not None:
        chains.append(chain)
        finder.take(chain)
    return tuple(chains)


def fastest_chain(
    profiles: Sequence[ServerProfile],
    model: ModelSpec,
    placement: Placement,
    *,
    slots: Mapping[PeerId, int] | None = None,
    pair_s: PairSeconds | None = None,
) -> PlannedChain | None:
    """Find the fastest chain with room for a session, and how many it has room for; None if no chain has any.

    `slots`: free cache slots per server, none where it is absent from them; if not given, all of `residual_slots`.
    Errors as in `allocate`.
    """
    residual = residual_slots(profiles, model, placement)
    return _finder(profiles, model, placement, residual if slots is None else slots, pair_s).find()


def _finder(
    profiles: Sequence[ServerProfile],
    model: ModelSpec,
    placement: Placement,
    slots: Mapping[PeerId, int],
    pair_s: PairSeconds | None,
) -> ChainFinder:
    servers = by_peer(profiles)
    table = [(servers[peer], span, slots.get(peer, 0)) for peer, span in placement.spans.items()]
    return ChainFinder(table, num_blocks=model.num_blocks, pair_s=pair_s)
