"""The cheapest route through a placement, for systems that choose one for every request.

A hop runs from the current block to the end of the server's span: PETALS forces this to keep its graph small, and BPRR
defines it so, as do Sun et al. 2026. So the servers reached are all that a route has to remember, and in the order of
the blocks at which hops start every server is final before any hop leaves it.
"""

import math
from collections.abc import Callable, Sequence

from chainserve.errors import NoChainError
from chainserve.planning.values import Placement
from chainserve.types import Chain, Hop, PeerId, Span

HopCost = Callable[[PeerId | None, Hop], float]
"""Seconds of a hop after the server named first, or after the client where it is None."""


class Routes:
    """All hops that routes through one placement can have, and what they cost before load is looked at."""

    def __init__(
        self,
        placement: Placement,
        num_blocks: int,
        *,
        hop_s: HopCost,
        return_s: Callable[[PeerId], float] = lambda peer: 0.0,
    ) -> None:
        """`return_s`: seconds from the last server back to the client; NoChainError names blocks that nobody holds."""
        missing = placement.missing(num_blocks)
        if missing:
            raise NoChainError(missing, num_blocks=num_blocks)
        self._hop_s, self._return_s = hop_s, return_s
        self._peers = tuple(placement)
        starts = sorted({0} | {span.end for span in placement.spans.values() if span.end < num_blocks})
        self.hops = tuple(
            Hop(peer, Span(start, span.end))
            for start in starts
            for peer, span in placement.spans.items()
            if start in span
        )
        number = {peer: index for index, peer in enumerate(self._peers)}
        ending: dict[int, list[PeerId | None]] = {0: [None]}
        for peer, span in placement.spans.items():
            ending.setdefault(span.end, []).append(peer)
        # For each hop its server, and the servers it can follow (the client is the last number) at which cost.
        client = len(self._peers)
        self._into = [
            (
                number[hop.peer],
                [
                    (client if before is None else number[before], hop_s(before, hop))
                    for before in ending[hop.span.start]
                ],
            )
            for hop in self.hops
        ]
        self._last = [(number[peer], return_s(peer)) for peer in ending[num_blocks] if peer is not None]

    def cheapest(self, extra_s: Sequence[float]) -> Chain | None:
        """The route of least cost if hop i of `hops` takes `extra_s[i]` seconds more; None if all take forever.

        Ties go to the smaller id, from the last server to the first, and to the server entered at the earlier block.
        """
        client = len(self._peers)
        reached_s = [math.inf] * client + [0.0]
        through = [(-1, -1)] * client  # the hop taken to each server, and the server before it
        for index, (server, before) in enumerate(self._into):
            cost_s, previous = min((reached_s[number] + hop_s, number) for number, hop_s in before)
            cost_s += extra_s[index]
            if cost_s < reached_s[server]:
                reached_s[server] = cost_s
                through[server] = index, previous
        total_s, server = min((reached_s[number] + return_s, number) for number, return_s in self._last)
        if total_s == math.inf:
            return None
        hops = []
        while server != client:
            index, server = through[server]
            hops.append(self.hops[index])
        return Chain(tuple(reversed(hops)))

    def cost_s(self, route: Chain) -> float:
        """Seconds of a route, without anything extra."""
        before = (None, *(hop.peer for hop in route.hops))
        hops_s = sum(self._hop_s(peer, hop) for peer, hop in zip(before, route.hops, strict=False))
        return hops_s + self._return_s(route.tail)
