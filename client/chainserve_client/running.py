"""How many sessions run on each chain of the plan, as far as one client can know."""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence

from chainserve.swarm.plans import SwarmPlan
from chainserve.swarm.records import Announcement
from chainserve.types import Chain, Hop

Hops = tuple[Hop, ...]

LATE_S = 10.0
"""So old may be what a head has announced when it is read: sessions of ours that it counts may have ended since."""


class RunningSessions:
    """This client's own, which it knows at once, and what heads announce beside these, some seconds late."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._num_own: Counter[Hops] = Counter()
        self._more: deque[tuple[float, Hops, int]] = deque()  # until when there were how many of our own on a chain

    def began(self, chain: Chain) -> None:
        """A session of this client is opened on a chain."""
        self._num_own[chain.hops] += 1

    def ended(self, chain: Chain) -> None:
        """It is over, or could not be opened."""
        self._forget()
        self._more.append((self._clock(), chain.hops, self._num_own[chain.hops]))
        self._num_own[chain.hops] -= 1
        if not self._num_own[chain.hops]:
            del self._num_own[chain.hops]

    def counted(self, plan: SwarmPlan, servers: Sequence[Announcement]) -> Mapping[Hops, int]:
        """Sessions by chain: our own, and what is announced beyond the most that were ours of late."""
        self._forget()
        most_own = Counter(self._num_own)
        for _, hops, num_own in self._more:
            most_own[hops] = max(most_own[hops], num_own)
        counted = Counter(self._num_own)
        for server in servers:
            for use in server.report.chains if server.report is not None and server.epoch == plan.epoch else ():
                if use.chain < len(plan.chains):
                    hops = plan.chains[use.chain].chain.hops
                    counted[hops] += max(0, use.num_held - most_own[hops])
        return counted

    def _forget(self) -> None:
        while self._more and self._more[0][0] < self._clock() - LATE_S:
            self._more.popleft()
