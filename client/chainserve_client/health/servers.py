"""The servers of a model as JSON: what each says of itself, and what is seen of it from here."""

from collections.abc import Iterable
from typing import Any

from chainserve.swarm.offers import StepCheck
from chainserve.swarm.records import Announcement
from chainserve.types import Span
from chainserve_client.health.snapshot import Snapshot
from chainserve_client.health.verdict import Holding, missing_without
from chainserve_client.live_json import span_json
from chainserve_client.live_plan import LivePlan
from chainserve_client.outlook import left_out_json


def servers_json(snapshot: Snapshot, digest: str, plan: LivePlan | None) -> list[dict[str, Any]]:
    """All of them, in the order of their blocks; those without blocks come last."""
    servers = sorted(snapshot.view.models()[digest], key=lambda server: (server.span is None, server.span, server.peer))
    holding = snapshot.serving(digest)
    return [_server_json(snapshot, server, holding, plan) for server in servers]


def _server_json(snapshot: Snapshot, server: Announcement, holding: Holding, plan: LivePlan | None) -> dict[str, Any]:
    way, report = snapshot.ways.get(server.peer), server.report
    is_planned = plan is not None and server.peer in plan.plan.placement.spans
    return {
        "peer": server.peer,
        "name": report and report.name,
        "device": report and report.device,
        "state": snapshot.state(server),
        "announced_state": server.state,
        "blocks": span_json(server.span),
        "planned_blocks": span_json(plan.plan.placement[server.peer]) if plan and is_planned else None,
        "is_pinned": server.pinned,
        "loaded_share": report and report.loaded_share and round(report.loaded_share, 3),
        "dtype": server.dtype,
        "quant": server.quant,
        "memory": memory_json(server),
        "cache_tokens": server.cache_tokens,
        "free_tokens": server.free_tokens,
        "num_sessions": server.num_sessions,
        "num_waiting": server.num_waiting,
        "tokens_per_s": report and rounded(report.tokens_per_s),
        "decode_step": _step_json(server.offer.decode if server.offer else None),
        "link": way and {"kind": way.kind, "round_trip_s": rounded(way.round_trip_s)},
        "version": server.version,
        "started_at": server.started_at,
        "epoch": server.epoch,
        "if_it_leaves": {
            "missing_blocks": spans_json(missing_without(server.peer, holding, server.num_blocks)),
            "after_planning": left_out_json(plan.left_out.get(server.peer)) if plan else None,
        },
    }


def memory_json(server: Announcement) -> dict[str, int] | None:
    """Bytes given to the server and what they are used for; None if it takes no part in plans."""
    if server.offer is None:
        return None
    profile, num_blocks = server.offer.profile, len(server.span or ())
    token_bytes = profile.token_bytes * num_blocks
    return {
        "given": server.offer.memory_bytes,
        "weights": server.weight_bytes,
        "cache_used": (server.cache_tokens - server.free_tokens) * token_bytes,
        "cache_free": server.free_tokens * token_bytes,
        "activations": profile.activation_bytes,
    }


def links_json(snapshot: Snapshot, servers: Iterable[Announcement]) -> list[dict[str, Any]]:
    """What lies between servers, as each of them says it has measured it; and from here (`from` is null)."""
    known = {server.peer: server for server in servers}
    ways: list[dict[str, Any]] = [
        {"from": None, "to": peer, "round_trip_s": rounded(way.round_trip_s), "bytes_per_s": None}
        for peer, way in snapshot.ways.items()
        if peer in known
    ]
    for server in known.values():
        reach = server.offer.reach if server.offer else {}
        ways += [
            {
                "from": server.peer,
                "to": other,
                "round_trip_s": rounded(way.round_trip_s),
                "bytes_per_s": way.bytes_per_s and rounded(way.bytes_per_s),
            }
            for other, way in reach.items()
            if other in known
        ]
    return ways


def spans_json(spans: Iterable[Span]) -> list[list[int]]:
    return [[span.start, span.end] for span in spans]


def rounded(value: float) -> float:
    """Two digits that count: more would be noise, and news every second."""
    return float(f"{value:.2g}")


def _step_json(check: StepCheck | None) -> dict[str, float] | None:
    return None if check is None else {"predicted_s": check.predicted_s, "observed_s": check.observed_s}
