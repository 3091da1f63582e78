"""Is a model whole, where is it weakest, and what would be missing without a server: from who holds what, no more."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from chainserve.swarm.records import ServerState
from chainserve.types import PeerId, Span
from chainserve_client.health.snapshot import Snapshot

Holding = Sequence[tuple[PeerId, Span]]


class Health(StrEnum):
    """How a model stands."""

    HEALTHY = "healthy"  # every block is online, on two servers at least
    AT_RISK = "at_risk"  # every block is online, some on one server only
    LOADING = "loading"  # blocks are missing that servers load now
    BROKEN = "broken"  # blocks are missing
    UNKNOWN = "unknown"  # nothing has been heard of the swarm for longer than a lease


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One model's health."""

    health: Health
    missing: tuple[Span, ...]  # nobody serves these
    weakest: tuple[Span, ...]  # held by the fewest servers
    num_to_break: int  # servers that have to go, chosen badly, until a block is missing
    weakest_servers: tuple[PeerId, ...]  # those who hold the weakest blocks


def coverage(holding: Holding, num_blocks: int) -> list[int]:
    """By how many servers each block is served."""
    return [sum(block in span for _, span in holding) for block in range(num_blocks)]


def judge(snapshot: Snapshot, digest: str) -> Verdict:
    """How a model of the view stands."""
    servers = snapshot.view.models()[digest]
    holding, num_blocks = snapshot.serving(digest), servers[0].num_blocks
    counts = coverage(holding, num_blocks)
    least = min(counts)
    weakest = [block for block, count in enumerate(counts) if count == least]
    missing = [block for block, count in enumerate(counts) if not count]
    loading = {
        block
        for server in servers
        if server.state is ServerState.LOADING and server.span and server.peer not in snapshot.silent
        for block in server.span
    }
    if not snapshot.is_current:
        health = Health.UNKNOWN
    elif missing:
        health = Health.LOADING if loading.issuperset(missing) else Health.BROKEN
    else:
        health = Health.HEALTHY if least > 1 else Health.AT_RISK
    return Verdict(
        health=health,
        missing=ranges(missing),
        weakest=ranges(weakest),
        num_to_break=least,
        weakest_servers=tuple(peer for peer, span in holding if any(block in span for block in weakest)),
    )


def missing_without(peer: PeerId, holding: Holding, num_blocks: int) -> tuple[Span, ...]:
    """Blocks that would go missing, at once, if a server left; those that are missing anyway are not among them."""
    before = coverage(holding, num_blocks)
    after = coverage([held for held in holding if held[0] != peer], num_blocks)
    return ranges(block for block in range(num_blocks) if before[block] and not after[block])


def ranges(blocks: Iterable[int]) -> tuple[Span, ...]:
    """Blocks in order as the fewest spans."""
    spans: list[Span] = []
    for block in blocks:
        if spans and spans[-1].end == block:
            spans[-1] = Span(spans[-1].start, block + 1)
        else:
            spans.append(Span(block, block + 1))
    return tuple(spans)
