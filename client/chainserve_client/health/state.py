"""The state of a swarm as JSON: the page shows this, and `/api/v1/state` answers it."""

from typing import Any

from chainserve import __version__
from chainserve_client.health.plans import arrival_rate, plan_json
from chainserve_client.health.servers import links_json, rounded, servers_json, spans_json
from chainserve_client.health.snapshot import Snapshot
from chainserve_client.health.verdict import Verdict, coverage, judge
from chainserve_client.status import Unreadable


def state_json(snapshot: Snapshot) -> dict[str, Any]:
    """Everything but the history; what servers say of themselves is their claim."""
    view = snapshot.view
    models = sorted(view.models(), key=lambda digest: (view.models()[digest][0].model, digest))
    return {
        "swarm": snapshot.swarm,
        "version": __version__,
        "is_current": snapshot.is_current,
        "can_plan": snapshot.can_plan,
        "models": [_model_json(snapshot, digest) for digest in models],
        "refused": dict(view.refused),
    }


def _model_json(snapshot: Snapshot, digest: str) -> dict[str, Any]:
    servers = snapshot.view.models()[digest]
    holding, num_blocks = snapshot.serving(digest), servers[0].num_blocks
    live = snapshot.plans.get(digest)
    plan = plan_json(snapshot, digest, servers)
    return {
        "name": servers[0].model,
        "digest": digest,
        "num_blocks": num_blocks,
        "verdict": _verdict_json(judge(snapshot, digest)),
        "coverage": coverage(holding, num_blocks),
        "totals": totals_json(snapshot, digest),
        "servers": servers_json(snapshot, digest, None if isinstance(live, Unreadable) else live),
        "links": links_json(snapshot, servers),
        "plan": plan,
        "queue": _queue_json(plan, sum(server.num_waiting for server in servers)),
    }


def totals_json(snapshot: Snapshot, digest: str) -> dict[str, Any]:
    """What the servers of a model that serve it say, together."""
    servers = [server for server in snapshot.view.models()[digest] if snapshot.is_serving(server)]
    cache_tokens = sum(server.cache_tokens * len(server.span or ()) for server in servers)
    free_tokens = sum(server.free_tokens * len(server.span or ()) for server in servers)
    heads = [server for server in servers if server.span is not None and server.span.start == 0]
    return {
        "num_servers": len(snapshot.view.models()[digest]),
        "num_online": len(servers),
        "num_sessions": sum(server.num_sessions for server in heads),
        "num_waiting": sum(server.num_waiting for server in servers),
        # Each token of an answer comes through one head.
        "tokens_per_s": rounded(sum(server.report.tokens_per_s for server in heads if server.report)),
        "load": round(1 - free_tokens / cache_tokens, 3) if cache_tokens else 0.0,
        "requests_per_s": rounded(arrival_rate(servers)),
    }


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "health": verdict.health,
        "missing_blocks": spans_json(verdict.missing),
        "weakest_blocks": spans_json(verdict.weakest),
        "weakest_servers": list(verdict.weakest_servers),
        "num_to_break": verdict.num_to_break,
    }


def _queue_json(plan: dict[str, Any] | None, num_waiting: int) -> dict[str, Any]:
    """How many wait, and how long one more request would: on the chain where that is shortest."""
    waits = [
        chain["wait_s"] for chain in (plan or {}).get("chains", ()) if chain["is_whole"] and chain["wait_s"] is not None
    ]
    return {"num_waiting": num_waiting, "wait_s": min(waits, default=None)}
