"""Rules that join one chain of the plan and wait there, free or not: SED, JSQ and random, for benchmarks.

Ours goes on looking while it waits; these do not. SED and JSQ ask all heads at once and judge by their answers, which
costs one round trip to the farthest, and holds places for as long.
"""

import random
from collections.abc import Sequence

from chainserve.planning.sharing import Turns
from chainserve.planning.values import PlannedChain
from chainserve.protocol.joining import JoinSearch
from chainserve.protocol.search import Candidate, PlaceSearch
from chainserve.swarm.plans import SwarmPlan
from chainserve.swarm.records import Announcement
from chainserve.types import Chain, SessionId
from chainserve_client.policies.rules import Router
from chainserve_client.running import RunningSessions

SED, JSQ, RANDOM = "sed", "jsq", "random"


class JoinOne:
    """One of these rules, and how many sessions this client has on each chain."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._running = RunningSessions()

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
        turn_s: Turns,
        num_tokens: int,
        rng: random.Random,
    ) -> PlaceSearch:
        """SED: the least wait that heads expect, and the plan's service time. JSQ: the fewest sessions, waiting by the
        heads' answers and running as far as we know. Random: any chain."""
        if self.name == RANDOM:
            return PlaceSearch([rng.choice(candidates)], epoch=plan.epoch, num_tokens=num_tokens, rng=rng)
        running = self._running.counted(plan, servers)
        planned_s = {planned.chain.hops: planned.service_s for planned in plan.chains}
        service_s = {candidate.session: planned_s[candidate.hops] for candidate in candidates}
        num_running = {candidate.session: running[candidate.hops] for candidate in candidates}

        def cost(session: SessionId, wait_s: float, num_before: int) -> float:
            return wait_s + service_s[session] if self.name == SED else num_running[session] + num_before

        return JoinSearch(candidates, epoch=plan.epoch, num_tokens=num_tokens, rng=rng, cost=cost)

    def began(self, chain: Chain, *, num_tokens: int) -> None:
        self._running.began(chain)

    def ended(self, chain: Chain, *, num_tokens: int) -> None:
        self._running.ended(chain)
