"""Who of the swarm's servers answers from here: keeps a link to each, and knows who is silent."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

from chainserve.errors import LinkLostError
from chainserve.swarm.records import Announcement
from chainserve.transport.links import Links
from chainserve.types import PeerId
from chainserve_client.status import Way

ANSWER_S = 4.0
PAUSE_S = 1.5
"""Between two tries to reach a server that does not answer."""
NUM_TRIES = 2
"""That fail before a server counts as silent: who leaves in peace is gone from the view by then."""


class Reach:
    """Keeps trying to have a link to every server."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._tries: dict[PeerId, asyncio.Task[None]] = {}
        self._num_failed: Counter[PeerId] = Counter()  # tries, since it answered last
        self._met: dict[PeerId, float] = {}  # who has answered, in which of its lives

    def look(self, servers: Iterable[Announcement]) -> tuple[dict[PeerId, Way], frozenset[PeerId]]:
        """Links that stand, and who does not answer; never waits.

        A server that takes direct links is silent if it cannot be reached. Of one that does not, a client that has no
        other way knows nothing, unless they had a link.
        """
        known = {server.peer: server for server in servers}
        for peer in [peer for peer in self._tries if peer not in known]:
            self._tries.pop(peer).cancel()
        self._num_failed = Counter({peer: num for peer, num in self._num_failed.items() if peer in known})
        self._met = {peer: at for peer, at in self._met.items() if peer in known}
        ways = {}
        for peer, server in known.items():
            kind, round_trip_s = self._links.kind(peer), self._links.round_trip_s(peer)
            if kind is not None:
                del self._num_failed[peer]
                self._met[peer] = server.started_at
                if round_trip_s is not None:
                    ways[peer] = Way(kind, round_trip_s)
            elif peer not in self._tries:
                self._tries[peer] = asyncio.create_task(self._try(peer))
        silent = {
            peer
            for peer, num_failed in self._num_failed.items()
            if num_failed >= NUM_TRIES
            and (known[peer].direct_addresses or self._met.get(peer) == known[peer].started_at)
        }
        return ways, frozenset(silent)

    async def _try(self, peer: PeerId) -> None:
        try:
            with suppress(LinkLostError, TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    await self._links.connect(peer)
                return
            self._num_failed[peer] += 1
            await asyncio.sleep(PAUSE_S)
        finally:
            self._tries.pop(peer, None)

    def close(self) -> None:
        """Try no more."""
        for task in list(self._tries.values()):
            task.cancel()
