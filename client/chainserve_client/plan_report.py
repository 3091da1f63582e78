"""A forecast as text to read and as JSON to work with."""

import json
from collections.abc import Iterator
from typing import Any

from chainserve.planning.plan import Plan
from chainserve.planning.sharing import turns_of
from chainserve.types import PeerId
from chainserve_client.forecast import Forecast
from chainserve_client.outlook import (
    Outlook,
    chains_json,
    chains_text,
    expectations_json,
    expectations_text,
    left_out_json,
    spares_text,
    verdict,
)
from chainserve_client.tables import block_map, count, table
from chainserve_client.units import format_bytes


def to_text(forecast: Forecast, *, name: str, dtype: str) -> str:
    """The forecast at 100 columns: the model, a line per server, the fastest chains, and what to expect."""
    plan, outlook = forecast.plan, _outlook(forecast)
    return "\n".join(
        [
            *_model(forecast, name, dtype),
            "",
            *table(
                ("server", "blocks", "where", "weights", "cache", "memory", "without it"),
                [_server(forecast, peer) for peer in _in_order(plan)],
                right=("blocks", "weights", "cache", "memory"),
            ),
            "",
            *chains_text(outlook, name=str),
            "",
            *expectations_text(outlook),
            *spares_text(forecast.left_out, list(plan.placement), name=str),
            *_footnote(plan),
        ]
    )


def to_json(forecast: Forecast, *, name: str, dtype: str) -> str:
    """The same, all of it, in bytes and seconds; what is not finite is null."""
    plan, costs, demand = forecast.plan, forecast.costs, forecast.demand
    outlook = _outlook(forecast)
    content = {
        "model": {
            "name": name,
            "dtype": dtype,
            "num_blocks": costs.num_blocks,
            "block_bytes": costs.block_bytes,
            "embedding_bytes": costs.embedding_bytes,
            "head_bytes": costs.head_bytes,
            "is_tied": costs.is_tied,
            "cache_bytes_per_token_and_block": costs.token_bytes,
        },
        "demand": {
            "requests_per_s": demand.arrival_rate,
            "input_tokens": demand.input_tokens,
            "output_tokens": demand.output_tokens,
            "max_length": demand.max_length,
        },
        "servers": [_server_json(forecast, profile.peer) for profile in plan.profiles],
        "chains": chains_json(outlook),
        "concurrency": plan.chosen.concurrency,
        **expectations_json(outlook),
        "explanation": plan.explain(),
    }
    return json.dumps(content, indent=2, allow_nan=False)


def _outlook(forecast: Forecast) -> Outlook:
    plan = forecast.plan
    return Outlook(
        plan.chains, forecast.predictions, plan.bounds, forecast.demand.arrival_rate, turns_of(plan.profiles)
    )


def _in_order(plan: Plan) -> list[PeerId]:
    """Servers by their blocks, those without any last."""
    without = [profile.peer for profile in plan.profiles if profile.peer not in plan.placement.spans]
    return sorted(plan.placement, key=lambda peer: (plan.placement[peer], peer)) + without


def _model(forecast: Forecast, name: str, dtype: str) -> Iterator[str]:
    costs, demand = forecast.costs, forecast.demand
    tied = " (the same weights)" if costs.is_tied else ""
    embedding, head = format_bytes(costs.embedding_bytes), format_bytes(costs.head_bytes)
    yield f"{name} in {dtype}"
    yield (
        f"weights: {count(costs.num_blocks, 'block')} of {format_bytes(costs.block_bytes)}, "
        f"embedding {embedding}, head {head}{tied}"
    )
    tokens = f"{demand.input_tokens:,} tokens in and {demand.output_tokens:,} out"
    yield f"requests: {demand.arrival_rate:g} per second, {tokens}"
    slot_bytes = costs.token_bytes * demand.max_length
    yield f"sessions: cache for {demand.max_length:,} tokens, {format_bytes(slot_bytes)} per block"


def _server(forecast: Forecast, peer: PeerId) -> tuple[str, ...]:
    plan = forecast.plan
    profile = next(profile for profile in plan.profiles if profile.peer == peer)
    span = plan.placement.spans.get(peer)
    weight_bytes = plan.model.weight_bytes(span) if span else 0
    left_out = forecast.left_out.get(peer)
    return (
        peer,
        str(span or "none") + ("*" if profile.pinned else ""),
        block_map(span, num_blocks=plan.model.num_blocks),
        format_bytes(weight_bytes),
        format_bytes(plan.slots[peer] * plan.model.slot_bytes if span else 0),
        format_bytes(profile.memory_bytes),
        verdict(left_out, is_placed=span is not None) if left_out else "",
    )


def _footnote(plan: Plan) -> Iterator[str]:
    if any(profile.pinned for profile in plan.profiles):
        yield "* blocks chosen by the servers file"


def _server_json(forecast: Forecast, peer: PeerId) -> dict[str, Any]:
    plan = forecast.plan
    profile = next(profile for profile in plan.profiles if profile.peer == peer)
    span = plan.placement.spans.get(peer)
    return {
        "name": peer,
        "blocks": [span.start, span.end] if span else None,
        "is_pinned": profile.pinned is not None,
        "memory_bytes": profile.memory_bytes,
        "weight_bytes": plan.model.weight_bytes(span) if span else 0,
        "cache_slots": plan.slots[peer] if span else 0,
        "without_it": left_out_json(forecast.left_out.get(peer)),
    }
