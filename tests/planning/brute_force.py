"""What planning finds cleverly, found by trying everything."""

from collections.abc import Iterator, Mapping, Sequence

from chainserve.planning.allocation import residual_slots
from chainserve.planning.values import ModelSpec, Placement, PlannedChain, ServerProfile
from chainserve.types import Chain, Hop, PeerId, Span

PairSeconds = Mapping[tuple[PeerId, PeerId], float]


def all_chains(placement: Placement, num_blocks: int, *, start: int = 0) -> Iterator[tuple[Hop, ...]]:
    """Every way through the blocks from `start` on: a hop runs from where the last one ended to its span's end."""
    if start == num_blocks:
        yield ()
        return
    for peer, span in placement.spans.items():
        if start in span:
            for rest in all_chains(placement, num_blocks, start=span.end):
                yield (Hop(peer, Span(start, span.end)), *rest)


def service_s(hops: Sequence[Hop], profiles: Sequence[ServerProfile], pair_s: PairSeconds | None = None) -> float:
    """Seconds of one request on a chain (Eq. 2)."""
    by_id = {profile.peer: profile for profile in profiles}
    befores = [None, *(hop.peer for hop in hops)]
    return sum(
        (pair_s or {}).get((before, hop.peer), by_id[hop.peer].communication_s)
        + by_id[hop.peer].block_s * len(hop.span)
        for before, hop in zip(befores, hops, strict=False)
    )


def room(hops: Sequence[Hop], slots: Mapping[PeerId, int]) -> int:
    """Sessions that have a slot for every block of the chain."""
    return min(slots[hop.peer] // len(hop.span) for hop in hops)


def allocated(
    profiles: Sequence[ServerProfile], model: ModelSpec, placement: Placement, *, pair_s: PairSeconds | None = None
) -> tuple[PlannedChain, ...]:
    """GCA (Alg. 2) with every chain tried in every round."""
    slots = residual_slots(profiles, model, placement)
    candidates = sorted(
        (service_s(hops, profiles, pair_s), [(-hop.span.end, hop.peer) for hop in hops], hops)
        for hops in all_chains(placement, model.num_blocks)
    )
    chains = []
    for seconds, _, hops in candidates:  # slots only ever shrink: a chain without room never has any again
        if (capacity := room(hops, slots)) > 0:
            chains.append(PlannedChain(Chain(hops), capacity, seconds))
            for hop in hops:
                slots[hop.peer] -= capacity * len(hop.span)
    return tuple(chains)


def can_be_covered(profiles: Sequence[ServerProfile], model: ModelSpec, *, concurrency: int, start: int = 0) -> bool:
    """Whether some servers, in some order, have room for all blocks from `start` on with cache for such sessions."""
    if start == model.num_blocks:
        return True
    return any(
        model.weight_bytes_on(profile, Span(start, end)) + concurrency * (end - start) * model.slot_bytes
        <= profile.memory_bytes * (1 + 1e-9)
        and can_be_covered(
            [other for other in profiles if other is not profile], model, concurrency=concurrency, start=end
        )
        for profile in profiles
        for end in range(start + 1, model.num_blocks + 1)
    )


def disjoint_groups(profiles: Sequence[ServerProfile]) -> Iterator[list[list[ServerProfile]]]:
    """Every choice of groups of servers that share none."""
    if not profiles:
        yield []
        return
    first, rest = profiles[0], profiles[1:]
    for groups in disjoint_groups(rest):
        yield groups
        yield [[first], *groups]
        for index, group in enumerate(groups):
            yield [*groups[:index], [first, *group], *groups[index + 1 :]]
