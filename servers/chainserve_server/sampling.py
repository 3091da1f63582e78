"""How far it is to other servers: of links that stand at no cost, and of one more peer each turn by a link of its own.

A plan needs the way between any two servers, not only between those that work together now.
"""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType

from chainserve.errors import LinkLostError, SwarmError
from chainserve.swarm.offers import MAX_BYTES, MAX_REACH, MAX_STEP_S, Reach
from chainserve.transport.links import Links
from chainserve.types import PeerId

PROBE_BYTES = 256 * 2**10
NUM_BEATS = 8
"""Of a new link: the least of their round trips counts."""
NUM_PROBES = 2
"""The first finds TCP starting slowly, and widens its window for the next."""
SMOOTHING = 0.3
"""Weight of what a turn sees against what was known; links have smoothed it over some beats and frames already."""


class LinkSampler:
    """Keeps the ways from here to at most MAX_REACH of the other servers.

    `peers` tells who they are. A turn takes no longer than `deadline_s`, however slow a peer answers. `chance` decides
    who is measured first: servers that started together should not all measure the same one.
    """

    def __init__(
        self,
        links: Links,
        peers: Callable[[], Sequence[PeerId]],
        *,
        interval_s: float = 10.0,
        deadline_s: float = 10.0,
        chance: random.Random | None = None,
    ) -> None:
        self._links = links
        self._peers = peers
        self._interval_s = interval_s
        self._deadline_s = deadline_s
        self._chance = chance or random.Random()
        self._num_turns = 0
        self._tried: dict[PeerId, int] = {}  # in which turn last
        self._reach: Mapping[PeerId, Reach] = MappingProxyType({})

    @property
    def reach(self) -> Mapping[PeerId, Reach]:
        """What is known now: a snapshot that does not change, another one after each turn."""
        return self._reach

    async def run(self) -> None:
        """Take turns until cancelled."""
        while True:
            await self.sample()
            await asyncio.sleep(self._interval_s)

    async def sample(self) -> None:
        """One turn: measure one peer that needs it, then take what all links know by now."""
        self._num_turns += 1
        if (peer := self._next_peer()) is not None:
            self._tried[peer] = self._num_turns
            await self._measure(peer)
        self._take()

    def _next_peer(self) -> PeerId | None:
        """Of the peers with no link, or an idle one that has carried nothing large, the one tried longest ago."""
        peers = set(self._peers())
        self._tried = {peer: turn for peer, turn in self._tried.items() if peer in peers}
        if len(peers & self._reach.keys()) >= MAX_REACH:
            peers &= self._reach.keys()
        links = self._links
        wanting = [p for p in sorted(peers) if links.bytes_per_s(p) is None and not links.is_active(p)]
        return min(wanting, key=lambda peer: (self._tried.get(peer, 0), self._chance.random()), default=None)

    async def _measure(self, peer: PeerId) -> None:
        """Have round trip and rate of the link to `peer` measured, if that can be done in time."""
        links = self._links
        with suppress(LinkLostError, SwarmError, TimeoutError):
            async with asyncio.timeout(self._deadline_s):
                await links.connect(peer)
                for _ in range(NUM_BEATS):
                    await links.next_beat(peer)
                for _ in range(NUM_PROBES):
                    await links.probe(peer, PROBE_BYTES)

    def _take(self) -> None:
        """Keep what links know now, and what was known of peers without a link as far as there is room."""
        peers = set(self._peers())
        known = {peer: way for peer, way in self._reach.items() if peer in peers}
        seen = {peer: way for peer in sorted(peers) if (way := self._way(peer))}
        ways = known | seen  # those known before come first, so that the choice stays the same
        kept = sorted(ways, key=lambda peer: peer not in seen)[:MAX_REACH]
        self._reach = MappingProxyType({peer: ways[peer] for peer in kept})

    def _way(self, peer: PeerId) -> Reach | None:
        """What the link to `peer` knows, smoothed over what was known before."""
        round_trip_s, bytes_per_s = self._links.round_trip_s(peer), self._links.bytes_per_s(peer)
        if round_trip_s is None or round_trip_s > MAX_STEP_S:  # beats say what the other end likes
            return None
        way = Reach(round_trip_s=round_trip_s, bytes_per_s=bytes_per_s and min(bytes_per_s, MAX_BYTES))
        return smoothed(self._reach[peer], way) if peer in self._reach else way


def smoothed(before: Reach, now: Reach) -> Reach:
    """What to believe after `now` was seen; a rate that is not seen any more stays as it was."""
    old, new = before.bytes_per_s or now.bytes_per_s, now.bytes_per_s or before.bytes_per_s
    return Reach(
        round_trip_s=before.round_trip_s + SMOOTHING * (now.round_trip_s - before.round_trip_s),
        bytes_per_s=old and new and old + SMOOTHING * (new - old),
    )
