"""The plan that a running swarm follows, and what follows from it."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec

from chainserve.errors import NoPlanError
from chainserve.planning.sharing import turns_of
from chainserve.planning.values import LeftOut, ResponseTimeBounds, Workload, by_peer
from chainserve.swarm.plans import SwarmPlan
from chainserve.types import PeerId
from chainserve_client.outlook import Outlook

SPARE_EFFORT = 200
"""Of the local search in the plans without a server: little, so that all of them take no more than a second or two."""

NEARBY = (0.2, 0.35, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)
"""Where these plans look for the concurrency, times that of the plan: to try every one takes seconds per server."""


@dataclass(frozen=True, kw_only=True)
class LivePlan:
    """A plan, what to expect of its chains, and what its servers are worth."""

    plan: SwarmPlan
    outlook: Outlook  # of the chains there are while its placement holds
    left_out: Mapping[PeerId, LeftOut]  # empty with a shortage; in large swarms only servers without blocks


def examine(plan: SwarmPlan, *, is_thorough: bool = True) -> LivePlan:
    """See what follows from a plan; ValueError if its figures make no sense.

    What its servers are worth takes seconds, and is left out where `is_thorough` is false.
    """
    inputs = plan.inputs
    profiles = inputs.profiles()
    by_peer(profiles)  # raises for servers that cannot be
    arrival_rate = Workload(arrival_rate=inputs.arrival_rate).arrival_rate
    predictions = tuple(inputs.predict(chain.chain, input_tokens=inputs.input_tokens) for chain in plan.chains)
    return LivePlan(
        plan=plan,
        outlook=Outlook(plan.chains, predictions, _bounds(plan), arrival_rate, turns_of(profiles)),
        left_out={} if plan.shortage or not is_thorough else _left_out(plan),
    )


def _bounds(plan: SwarmPlan) -> ResponseTimeBounds:
    """Those of the plan are of its goal: until that is reached other chains count."""
    if plan.is_settled or not plan.chains or not can_plan():
        return plan.bounds
    from chainserve.planning.bounds import response_time_bounds

    return response_time_bounds(
        [chain.rate for chain in plan.chains],
        [chain.capacity for chain in plan.chains],
        arrival_rate=plan.inputs.arrival_rate,
    )


def _left_out(plan: SwarmPlan) -> dict[PeerId, LeftOut]:
    """What becomes of the swarm without a server.

    All these plans are made as if nobody held anything yet: what a server is worth does not depend on who has to load.
    """
    inputs = replace(
        plan.inputs,
        before=None,
        held=frozenset(),
        search_effort=SPARE_EFFORT,
        concurrencies=tuple(sorted({1, *(max(1, round(plan.concurrency * factor)) for factor in NEARBY)})),
    )
    found = {server.peer: LeftOut(0.0) for server in inputs.servers if server.peer not in plan.goal.spans}
    if not can_plan() or not inputs.rule.is_ours:
        return found
    from chainserve.planning.spares import leave_out
    from chainserve_client.forecast import MAX_LEFT_OUT

    if len(inputs.servers) <= MAX_LEFT_OUT:
        with suppress(NoPlanError):  # where servers have hardly room, only where they are is there a plan
            planned = inputs.plan()
            for peer in plan.goal:
                found[peer] = leave_out(
                    planned,
                    peer,
                    pair_s=inputs.pair_s or None,
                    search_effort=inputs.search_effort,
                    concurrencies=inputs.concurrencies,
                )
    return found


def can_plan() -> bool:
    """Whether what planning takes is installed: a client without it says less of a plan."""
    return find_spec("numpy") is not None
