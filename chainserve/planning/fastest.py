"""The fastest chain with room, found again and again while slots are taken.

A chain is a path over nodes, numbered so that every hop leads to a smaller one and node 0 is the end of the model.
Where a hop costs the same whoever comes before it, a node is a boundary between blocks, and of the servers that lead
from one boundary to another only the fastest matters. Where it depends on the server before, every server is a node
of its own: it has run its last block. A dynamic program gives each node its seconds to the end. As slots are taken
these only rise, and only at nodes whose best way led over a server that ran short: nothing else is computed again.
"""

import math
from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

from chainserve.planning.values import PlannedChain, ServerProfile, require
from chainserve.types import Chain, Hop, PeerId, Span

Numbers = NDArray[np.intp]
Seconds = NDArray[np.float64]
Arriving = dict[int, tuple[list[int], list[float]]]
"""Per node of a server: the servers whose communication time from there is known, and these times."""


class ChainFinder:
    """Finds the fastest chain whose servers all have a free slot for each block they run on it.

    Of equals it is the one whose first hop reaches furthest, then whose first peer id is smallest; then likewise from
    the next hop on.
    """

    def __init__(
        self,
        servers: Sequence[tuple[ServerProfile, Span, int]],
        *,
        num_blocks: int,
        pair_s: Mapping[tuple[PeerId, PeerId], float] | None = None,
    ) -> None:
        """`servers`: by rising peer id, each with its blocks and its free slots; `pair_s`: as in `allocate`."""
        self._peers = [profile.peer for profile, _, _ in servers]
        self._index_of = {peer: index for index, peer in enumerate(self._peers)}
        self._slots = [num_slots for _, _, num_slots in servers]
        ends = np.array([span.end for _, span, _ in servers], dtype=np.intp)
        arriving: Arriving = {}
        if not pair_s:
            boundaries = np.unique([0, num_blocks, *ends])[::-1]
            node_of = np.searchsorted(-boundaries, -ends)
        else:
            order = np.argsort(-ends, kind="stable")
            node_of = np.empty_like(ends)
            node_of[order] = np.cumsum(ends[order] < num_blocks)
            boundaries = np.array([num_blocks, *(end for end in ends[order] if end < num_blocks), 0])
            arriving = _by_node(pair_s, self._index_of, node_of)
        self._boundaries: list[int] = boundaries.tolist()
        self._source = len(boundaries) - 1
        self._collect(*_hops(servers, node_of, boundaries, arriving))
        self._solve()

    def find(self) -> PlannedChain | None:
        """The fastest chain, with as many sessions as fit on it; None if none has room for one."""
        service_s = float(self._to_end[self._source])
        if math.isinf(service_s):
            return None
        hops, capacities, node = [], [], self._source
        while node:
            following = self._next[node]
            edge = self._edges[node, following]
            server, num_blocks = self._hop_servers[self._first_hop[edge]], self._num_blocks[edge]
            start = self._boundaries[node]
            hops.append(Hop(self._peers[server], Span(start, start + num_blocks)))
            capacities.append(self._slots[server] // num_blocks)
            node = following
        return PlannedChain(Chain(tuple(hops)), min(capacities), service_s)

    def take(self, chain: PlannedChain) -> None:
        """Give a chain just found the slots of all its sessions; where too few are left for a hop, it is gone."""
        stale = []
        for hop in chain.chain.hops:
            server = self._index_of[hop.peer]
            self._slots[server] -= chain.capacity * len(hop.span)
            hops = self._hops_of[server]
            while hops and hops[-1][0] > self._slots[server]:
                _, edge = hops.pop()
                if self._hop_servers[self._first_hop[edge]] == server and self._go_on(edge):
                    stale.append(self._edge_ends[edge][0])
        self._repair(stale)

    def _collect(self, hops: Numbers, costs: Seconds) -> None:
        """Sort the hops into edges: all servers that lead from one node to another, by rising cost and peer id."""
        from_node, to_node, server, _ = hops
        order = np.lexsort((server, costs, to_node, from_node))
        hops, costs = hops[:, order], costs[order]
        is_first = np.append(True, (hops[:2, 1:] != hops[:2, :-1]).any(axis=0))[: len(costs)]
        firsts = np.flatnonzero(is_first)

        self._cost = np.full((self._source + 1, self._source + 1), np.inf)
        self._cost[hops[0, firsts], hops[1, firsts]] = costs[firsts]
        self._edge_ends: list[tuple[int, int]] = list(zip(*hops[:2, firsts].tolist(), strict=True))
        self._edges = {ends: edge for edge, ends in enumerate(self._edge_ends)}
        self._num_blocks: list[int] = hops[3, firsts].tolist()
        self._first_hop: list[int] = firsts.tolist()  # per edge: its fastest hop with room
        self._past_hops: list[int] = [*firsts[1:].tolist(), len(costs)]
        self._hop_servers: list[int] = hops[2].tolist()
        self._hop_costs: list[float] = costs.tolist()
        # Per server its hops as (blocks, edge), the longest last: that one is the first to run short of slots.
        self._hops_of: list[list[tuple[int, int]]] = [[] for _ in self._slots]
        edge_of_hop = np.cumsum(is_first) - 1
        by_length = np.argsort(hops[3], kind="stable")
        for server, length, edge in zip(*(a[by_length].tolist() for a in (hops[2], hops[3], edge_of_hop)), strict=True):
            self._hops_of[server].append((length, edge))

    def _solve(self) -> None:
        """Seconds from every node to the end of the model, and the node that the best way goes to next."""
        num_nodes = self._source + 1
        self._to_end = np.full(num_nodes, np.inf)
        self._to_end[0] = 0
        sums = np.empty(num_nodes)
        self._views = [(self._cost[node, :node], self._to_end[:node], sums[:node]) for node in range(num_nodes)]
        self._next = [0] * num_nodes
        self._led_here: list[set[int]] = [set() for _ in range(num_nodes)]
        self._led_here[0].update(range(1, num_nodes))
        self._repair(list(range(1, num_nodes)))

    def _repair(self, stale: list[int]) -> None:
        """Compute the nodes in `stale` again, and those whose best way went over one of them that has changed."""
        heapify(stale)
        done = 0
        while stale:
            node = heappop(stale)
            if node == done:
                continue
            done = node
            costs, to_end, sums = self._views[node]
            np.add(costs, to_end, out=sums)
            following = int(sums.argmin())  # the smallest of equals, which is the end that reaches furthest
            if following != self._next[node]:
                self._led_here[self._next[node]].remove(node)
                self._led_here[following].add(node)
                self._next[node] = following
            if sums[following] != self._to_end[node]:
                self._to_end[node] = sums[following]
                for before in self._led_here[node]:
                    heappush(stale, before)

    def _go_on(self, edge: int) -> bool:
        """Put the next fastest server with room on an edge; whether the best way went over the edge."""
        num_blocks, past = self._num_blocks[edge], self._past_hops[edge]
        hop = self._first_hop[edge] + 1
        while hop < past and self._slots[self._hop_servers[hop]] < num_blocks:
            hop += 1
        start, end = self._edge_ends[edge]
        self._cost[start, end] = self._hop_costs[hop] if hop < past else np.inf
        self._first_hop[edge] = hop
        return self._next[start] == end


def _by_node(
    pair_s: Mapping[tuple[PeerId, PeerId], float], index_of: Mapping[PeerId, int], node_of: Numbers
) -> Arriving:
    """The known times by node, checked; servers that are not here are left out."""
    arriving: Arriving = {}
    for (before, after), seconds in pair_s.items():
        require(f"pair_s of {before} and {after}", seconds, positive=False)
        if before in index_of and after in index_of:
            indices, times = arriving.setdefault(int(node_of[index_of[before]]), ([], []))
            indices.append(index_of[after])
            times.append(seconds)
    return arriving


def _hops(
    servers: Sequence[tuple[ServerProfile, Span, int]],
    node_of: Numbers,
    boundaries: Numbers,
    arriving: Arriving,
) -> tuple[Numbers, Seconds]:
    """Every hop with room for a session (the edges of Alg. 2), shape (4, hops): from node, to node, server, blocks run;
    and their seconds."""
    starts = np.array([span.start for _, span, _ in servers], dtype=np.intp)
    ends = np.array([span.end for _, span, _ in servers], dtype=np.intp)
    lowest = np.maximum(starts, ends - np.array([min(num_slots, len(span)) for _, span, num_slots in servers]))
    communication_s = np.array([profile.communication_s for profile, _, _ in servers], dtype=np.float64)
    block_s = np.array([profile.block_s for profile, _, _ in servers], dtype=np.float64)
    parts, costs = [], []
    for node, boundary in enumerate(boundaries):
        to = np.flatnonzero((lowest <= boundary) & (boundary < ends))
        num_blocks = ends[to] - boundary
        parts.append(np.stack([np.full_like(to, node), node_of[to], to, num_blocks]))
        hop_s = communication_s
        if node in arriving:
            hop_s = communication_s.copy()
            indices, times = arriving[node]
            hop_s[indices] = times
        costs.append(hop_s[to] + block_s[to] * num_blocks)
    return np.concatenate(parts, axis=1), np.concatenate(costs)
