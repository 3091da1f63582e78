"""A plan that is followed, and what servers offer to it, for JSON: whole ids, seconds and bytes; null if not finite."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from chainserve.swarm.offers import Offer
from chainserve.swarm.plans import PlannedServer, PlanRecord
from chainserve.swarm.records import Announcement
from chainserve.types import Span
from chainserve_client.live_plan import LivePlan
from chainserve_client.live_report import num_followers
from chainserve_client.outlook import bounds_json, chains_json, expectations_json, finite, left_out_json


def plan_json(live: LivePlan, record: PlanRecord, servers: Sequence[Announcement]) -> dict[str, Any]:
    """All of the plan, in bytes and seconds; what is not finite is null."""
    plan, inputs = live.plan, live.plan.inputs
    shortage = plan.shortage
    return {
        **record_json(record, servers),
        "is_settled": plan.is_settled,
        "placed_by": inputs.rule.name,
        "demand": {
            "requests_per_s": inputs.arrival_rate,
            "input_tokens": inputs.input_tokens,
            "output_tokens": inputs.output_tokens,
        },
        "s_per_byte_moved": finite(inputs.s_per_byte),
        "block_bytes": inputs.model.block_bytes,
        "session_bytes_per_block": inputs.model.slot_bytes,
        "servers": [_server_json(live, server) for server in inputs.servers],
        "ways": [
            {"from": first, "to": second, "hop_s": way.hop_s, "prompt_s": way.prompt_s}
            for (first, second), way in inputs.ways.items()
        ],
        "chains": chains_json(live.outlook),
        "concurrency": plan.concurrency,
        **expectations_json(live.outlook),
        "goal_response_s": bounds_json(plan.bounds),
        "shortage": shortage
        and {"missing_blocks": list(shortage.missing), "missing_bytes": finite(shortage.missing_bytes)},
        "left_out": dict(plan.left_out),
    }


def record_json(record: PlanRecord, servers: Iterable[Announcement]) -> dict[str, Any]:
    """What is known of a plan without its body."""
    return {
        "epoch": record.epoch,
        "planner": record.planner,
        "digest": record.digest,
        "num_followers": num_followers(record, servers),
    }


def _server_json(live: LivePlan, server: PlannedServer) -> dict[str, Any]:
    plan, times = live.plan, server.times
    return {
        "peer": server.peer,
        "is_pinned": server.pinned is not None,
        "memory_bytes": server.memory_bytes,
        "hop_s": times.hop_s,
        "overhead_s": times.block.overhead_s,
        "prefill_s": times.block.prefill_s,
        "decode_s": times.block.decode_s,
        "before_blocks": span_json(plan.inputs.before.spans.get(server.peer) if plan.inputs.before else None),
        "is_held": server.peer in plan.inputs.held,
        "blocks": span_json(plan.placement.spans.get(server.peer)),
        "goal_blocks": span_json(plan.goal.spans.get(server.peer)),
        "without_it": left_out_json(live.left_out.get(server.peer)),
    }


def offer_json(offer: Offer | None) -> dict[str, Any] | None:
    """What a server offers to the plan, all of it."""
    if offer is None:
        return None
    return {
        "memory_bytes": offer.memory_bytes,
        "profile": asdict(offer.profile),
        "prefill": offer.prefill and asdict(offer.prefill),
        "decode": offer.decode and asdict(offer.decode),
        "reach": {peer: asdict(reach) for peer, reach in offer.reach.items()},
        "demand": offer.demand and asdict(offer.demand),
    }


def span_json(span: Span | None) -> list[int] | None:
    return [span.start, span.end] if span else None
