"""Rules that join one chain of the plan and wait there, free or not: SED, JSQ and random, for benchmarks.

Ours goes on looking while it waits; these do not. SED and JSQ ask all heads at once and judge by their answers, which
costs one round trip to the farthest, and holds places for as long.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence

from chainserve.planning.values import PlannedChain
from chainserve.protocol.joining import JoinSearch
from chainserve.protocol.search import Candidate, PlaceSearch
from chainserve.swarm.plans import SwarmPlan
from chainserve.swarm.records import Announcement
from chainserve.types import Chain, Hop, SessionId
from chainserve_client.policies.rules import Router

SED, JSQ, RANDOM = "sed", "jsq", "random"


class JoinOne:
    """One of these rules, and how many sessions this client has on each chain."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._num_own: Counter[tuple[Hop, ...]] = Counter()

    async def prepare(self) -> None:
        """Nothing has to be known."""

    def router(self, *, num_tokens: int) -> Router | None:
        return None

    def search(
        self,
        candidates: Sequence[Candidate],
        chains: Sequence[PlannedChain],
        *,
        servers: Sequence[Announcement],
        plan: SwarmPlan,
        num_tokens: int,
        rng: random.Random,
    ) -> PlaceSearch:
        """SED: the least wait that heads expect, and the plan's service time. JSQ: the fewest sessions, running by the
        heads' records or our own count and waiting by their answers. Random: any chain."""
        if self.name == RANDOM:
            return PlaceSearch([rng.choice(candidates)], epoch=plan.epoch, num_tokens=num_tokens, rng=rng)
        running = self._num_running(servers, plan)
        pairs = list(zip(candidates, chains, strict=True))
        service_s = {candidate.session: planned.service_s for candidate, planned in pairs}
        num_running = {candidate.session: running[planned.chain.hops] for candidate, planned in pairs}

        def cost(session: SessionId, wait_s: float, num_before: int) -> float:
            return wait_s + service_s[session] if self.name == SED else num_running[session] + num_before

        return JoinSearch(candidates, epoch=plan.epoch, num_tokens=num_tokens, rng=rng, cost=cost)

    def began(self, chain: Chain, *, num_tokens: int) -> None:
        self._num_own[chain.hops] += 1

    def ended(self, chain: Chain, *, num_tokens: int) -> None:
        self._num_own[chain.hops] -= 1

    def _num_running(self, servers: Sequence[Announcement], plan: SwarmPlan) -> Mapping[tuple[Hop, ...], int]:
        """Sessions by chain: as its head has announced, some seconds ago, or at least our own."""
        known = Counter({hops: max(0, num) for hops, num in self._num_own.items()})
        for server in servers:
            for use in server.report.chains if server.report is not None and server.epoch == plan.epoch else ():
                if use.chain < len(plan.chains):
                    hops = plan.chains[use.chain].chain.hops
                    known[hops] = max(known[hops], use.num_held)
        return known
