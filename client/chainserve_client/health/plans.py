"""The plan that a model's servers follow, as JSON: its chains beside how they are used, and what to expect now."""

import math
from collections.abc import Sequence
from typing import Any

from chainserve.planning.values import ResponseTimeBounds
from chainserve.swarm.inputs import DEFAULT_DEMAND
from chainserve.swarm.plans import PlanRecord
from chainserve.swarm.records import Announcement
from chainserve.swarm.reports import ChainUse
from chainserve_client.health.servers import rounded
from chainserve_client.health.snapshot import Snapshot
from chainserve_client.live_json import record_json, span_json
from chainserve_client.live_plan import LivePlan, can_plan
from chainserve_client.outlook import bounds_json, expectations_json, finite
from chainserve_client.status import Unreadable

MAX_CHAINS = 48
"""Shown of a plan, the fastest: there can be very many."""
MAX_PLACES = 100_000
"""Of a plan that claims more no bounds are worked out."""


def plan_json(snapshot: Snapshot, digest: str, servers: Sequence[Announcement]) -> dict[str, Any] | None:
    """What is followed now; None if there is no plan."""
    record, live = snapshot.view.plan(digest), snapshot.plans.get(digest)
    if record is None:
        return None
    known = record_json(record, servers)
    if isinstance(live, Unreadable):
        return known | {"cannot_be_read": live.reason}
    if live is None or live.plan.digest != record.digest:
        return known | {"cannot_be_read": None}  # it is being read
    return known | _body_json(snapshot, live, record, servers)


def _body_json(
    snapshot: Snapshot, live: LivePlan, record: PlanRecord, servers: Sequence[Announcement]
) -> dict[str, Any]:
    plan, inputs = live.plan, live.plan.inputs
    demand = inputs.arrival_rate, inputs.input_tokens, inputs.output_tokens
    assumed = DEFAULT_DEMAND.arrival_rate, DEFAULT_DEMAND.input_tokens, DEFAULT_DEMAND.output_tokens
    return {
        "is_settled": plan.is_settled,
        "for": {
            "requests_per_s": inputs.arrival_rate,
            "input_tokens": inputs.input_tokens,
            "output_tokens": inputs.output_tokens,
            "slot_tokens": inputs.slot_tokens,
            "is_assumed": demand == assumed,
        },
        **expectations_json(live.outlook),
        "now": _now_json(live, servers),
        "num_chains": len(plan.chains),
        "chains": _chains_json(snapshot, live, record, servers),
        "moves": [
            {"peer": peer, "from": span_json(before), "to": span_json(span)}
            for peer, span in plan.goal.spans.items()
            if (before := plan.placement.spans.get(peer)) != span
        ],
        "shortage": plan.shortage
        and {"missing_blocks": list(plan.shortage.missing), "missing_bytes": finite(plan.shortage.missing_bytes)},
        "left_out": dict(plan.left_out),
        "is_examined": bool(live.left_out) or not can_plan(),
    }


def _chains_json(
    snapshot: Snapshot, live: LivePlan, record: PlanRecord, servers: Sequence[Announcement]
) -> list[dict[str, Any]]:
    uses = chain_uses(live, record, servers)
    spans = dict(snapshot.serving(record.model_digest))
    return [
        {
            "hops": [{"peer": hop.peer, "blocks": [hop.span.start, hop.span.end]} for hop in chain.chain.hops],
            "is_whole": all(hop.peer in spans and spans[hop.peer].covers(hop.span) for hop in chain.chain.hops),
            "places": chain.capacity,
            "predicted": {
                "request_s": chain.service_s,
                "first_token_s": prediction.first_token_s,
                "tokens_per_s": finite(prediction.tokens_per_s),
            },
            "observed_s": use and use.service_s and rounded(use.service_s),
            "num_held": use and use.num_held,
            "used_share": use and round(use.used_share, 3),
            "num_waiting": use and use.num_waiting,
            "wait_s": use and rounded(use.wait_s),
        }
        for index, (chain, prediction) in enumerate(
            zip(live.plan.chains[:MAX_CHAINS], live.outlook.predictions, strict=False)
        )
        for use in [uses.get(index)]
    ]


def chain_uses(live: LivePlan, record: PlanRecord, servers: Sequence[Announcement]) -> dict[int, ChainUse]:
    """What the heads that follow this plan say of its chains; what is no chain of theirs is not believed."""
    chains = live.plan.chains
    return {
        use.chain: use
        for server in servers
        if server.report is not None and server.epoch == record.epoch
        for use in server.report.chains
        if use.chain < len(chains) and chains[use.chain].chain.head == server.peer
    }


def arrival_rate(servers: Sequence[Announcement]) -> float:
    """Requests per second that came to all heads in the last minutes."""
    return sum(server.offer.demand.arrival_rate for server in servers if server.offer and server.offer.demand)


def _now_json(live: LivePlan, servers: Sequence[Announcement]) -> dict[str, Any]:
    """At the rate at which requests come now; the bounds are null where they cannot be worked out here."""
    rate, total = arrival_rate(servers), live.outlook.total_rate
    bounds = _bounds(live, rate)
    return {
        "requests_per_s": rate,
        "load": finite(rate / total) if total else None,
        "response_s": bounds and bounds_json(bounds),
    }


def _bounds(live: LivePlan, rate: float) -> ResponseTimeBounds | None:
    chains = live.plan.chains
    if not chains:
        return None
    if not rate:  # nobody asks: whoever comes has all chains to itself
        return ResponseTimeBounds(chains[0].service_s, chains[0].service_s)
    if rate >= live.outlook.total_rate:
        return ResponseTimeBounds(math.inf, math.inf)
    if not can_plan() or sum(chain.capacity for chain in chains) > MAX_PLACES:
        return None
    from chainserve.planning.bounds import response_time_bounds

    return response_time_bounds(
        [chain.rate for chain in chains], [chain.capacity for chain in chains], arrival_rate=rate
    )
