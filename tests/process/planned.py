"""What a test may ask of a swarm that plans itself."""

import asyncio
from collections.abc import Callable

from chainserve.swarm.plans import SwarmPlan
from chainserve.swarm.records import Announcement, ServerState
from chainserve.swarm.view import View
from chainserve_client import AsyncClient

SETTLE_S = 180.0


def is_settled(plan: SwarmPlan, view: View, *, num_servers: int) -> bool:
    """Whether all servers are online where the plan wants them, and follow it."""
    if not plan.is_settled or len(plan.placement) != num_servers:
        return False
    online = {peer: server.span for peer, server in view.servers.items() if server.state is ServerState.ONLINE}
    return online == plan.placement.spans and all(server.epoch == plan.epoch for server in view.servers.values())


async def settled_plan(client: AsyncClient, *, num_servers: int) -> SwarmPlan:
    """Wait for a plan that all follow."""
    return await plan_when(client, lambda plan: is_settled(plan, client.network.swarm.view, num_servers=num_servers))


async def plan_when(client: AsyncClient, is_wanted: Callable[[SwarmPlan], bool] = lambda _plan: True) -> SwarmPlan:
    """Wait for a plan; that of a planner which went may be over before the next one has made its own."""
    async with asyncio.timeout(SETTLE_S):
        while (plan := await client.plan()) is None or not is_wanted(plan):
            await asyncio.sleep(0.2)
    return plan


def check_memory(server: Announcement) -> None:
    """AssertionError if a server takes, or promises, more than its memory."""
    assert server.offer is not None
    profile = server.offer.profile
    cache_bytes = server.cache_tokens * profile.token_bytes * len(server.span or ())
    assert server.weight_bytes + profile.activation_bytes + cache_bytes <= server.offer.memory_bytes, server
