"""Compose a chain of the servers that are there now.

Dispatch over planned chains (JFFC) needs a plan; until a swarm has one, a client takes the chain with the fewest
hops, as every hop costs a round trip per token.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from chainserve.errors import NoChainError
from chainserve.types import Chain, Hop, PeerId, Span


@dataclass(frozen=True, slots=True)
class Holding:
    """What one server holds: its blocks, and how many tokens its cache has free for them."""

    peer: PeerId
    span: Span
    free_tokens: int


def fewest_hops(holdings: Iterable[Holding], *, num_blocks: int) -> Chain:
    """Find a chain with the fewest hops over blocks 0:num_blocks; NoChainError names blocks nobody holds.

    From each boundary it goes on with the server that reaches furthest, which no other choice beats. Of equals
    it takes the one with the most cache free, then the smallest peer id, so equal inputs give equal chains.
    """
    servers = list(holdings)
    missing = set(range(num_blocks)).difference(*(server.span for server in servers))
    if missing:
        raise NoChainError(sorted(missing), num_blocks=num_blocks)
    hops: list[Hop] = []
    start = 0
    while start < num_blocks:
        best = min(
            (server for server in servers if start in server.span),
            key=lambda server: (-server.span.end, -server.free_tokens, server.peer),
        )
        end = min(best.span.end, num_blocks)
        hops.append(Hop(best.peer, Span(start, end)))
        start = end
    return Chain(tuple(hops))
