"""A forecast as text to read and as JSON to work with."""

import json
import math
from collections.abc import Iterator
from typing import Any

from chainserve.errors import describe_blocks
from chainserve.planning.plan import Plan
from chainserve.planning.spares import LeftOut
from chainserve.types import PeerId
from chainserve_client.forecast import Forecast
from chainserve_client.tables import block_map, count, table
from chainserve_client.units import format_bytes, format_seconds

MAX_CHAINS = 15
"""Shown in text: slower ones follow, of which there can be very many."""

SAME = 0.0005
"""Shares of time below are shown as none."""


def to_text(forecast: Forecast, *, name: str, dtype: str) -> str:
    """The forecast at 100 columns: the model, a line per server, the fastest chains, and what to expect."""
    return "\n".join(
        [
            *_model(forecast, name, dtype),
            "",
            *table(
                ("server", "blocks", "where", "weights", "cache", "memory", "without it"),
                [_server(forecast, peer) for peer in _in_order(forecast.plan)],
                right=("blocks", "weights", "cache", "memory"),
            ),
            "",
            *table(
                ("chain", "sessions", "first token", "tokens/s", "request", "way"),
                list(_chains(forecast)),
                right=("chain", "sessions", "first token", "tokens/s", "request"),
            ),
            *_below_chains(forecast),
            "",
            *_expectations(forecast),
        ]
    )


def to_json(forecast: Forecast, *, name: str, dtype: str) -> str:
    """The same, all of it, in bytes and seconds; what is not finite is null."""
    plan, costs, demand = forecast.plan, forecast.costs, forecast.demand
    bounds = plan.bounds
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
        "chains": [
            {
                "hops": [[hop.peer, hop.span.start, hop.span.end] for hop in chain.chain.hops],
                "sessions": chain.capacity,
                "first_token_s": prediction.first_token_s,
                "tokens_per_s": _finite(prediction.tokens_per_s),
                "request_s": chain.service_s,
            }
            for chain, prediction in zip(plan.chains, forecast.predictions, strict=True)
        ],
        "concurrency": plan.chosen.concurrency,
        "max_requests_per_s": plan.total_rate,
        "load": plan.load,
        "is_stable": plan.is_stable,
        "response_s": {"lower": _finite(bounds.lower_s), "upper": _finite(bounds.upper_s)},
        "explanation": plan.explain(),
    }
    return json.dumps(content, indent=2, allow_nan=False)


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
        _verdict(left_out, is_placed=span is not None) if left_out else "",
    )


def _verdict(left_out: LeftOut, *, is_placed: bool) -> str:
    if not is_placed:
        return "no room for a block: a spare"
    if left_out.missing:
        return f"no room for {describe_blocks(left_out.missing)}"
    if math.isinf(left_out.slowdown):
        return "the load is too high"
    change = "same time" if abs(left_out.slowdown) < SAME else f"{left_out.slowdown:+.1%} time"
    return change + (": a spare" if left_out.is_spare else "")


def _chains(forecast: Forecast) -> Iterator[tuple[str, ...]]:
    pairs = zip(forecast.plan.chains, forecast.predictions, strict=True)
    for number, (chain, prediction) in enumerate(list(pairs)[:MAX_CHAINS], 1):
        yield (
            str(number),
            f"{chain.capacity:,}",
            format_seconds(prediction.first_token_s),
            f"{prediction.tokens_per_s:,.1f}",
            format_seconds(chain.service_s),
            " > ".join(f"{hop.peer} {hop.span}".replace(" ", "\N{NO-BREAK SPACE}") for hop in chain.chain.hops),
        )


def _below_chains(forecast: Forecast) -> Iterator[str]:
    hidden = forecast.plan.chains[MAX_CHAINS:]
    if hidden:
        num_sessions = sum(chain.capacity for chain in hidden)
        yield f"and {count(len(hidden), 'slower chain')} for {count(num_sessions, 'session')}"
    yield "times of a request that has its servers to itself, where these reach the speeds given"


def _expectations(forecast: Forecast) -> Iterator[str]:
    plan, rate = forecast.plan, forecast.demand.arrival_rate
    num_sessions = sum(chain.capacity for chain in plan.chains)
    yield f"together {count(num_sessions, 'session')} at once, at most {plan.total_rate:.3g} requests per second"
    if plan.is_stable:
        lower, upper = format_seconds(plan.bounds.lower_s), format_seconds(plan.bounds.upper_s)
        took = lower if lower == upper else f"{lower} to {upper}"
        yield f"at {rate:g} per second (load {plan.load:.2g}) a request takes {took} on average, waiting included"
    else:
        yield f"{rate:g} per second are {plan.missing_rate:.3g} more than that: the queue would grow without end"
    spares = [peer for peer in plan.placement if peer in forecast.left_out and forecast.left_out[peer].is_spare]
    if spares:
        yield f"better left as a spare: {'one of ' if len(spares) > 1 else ''}{', '.join(spares)}"
    if any(profile.pinned for profile in plan.profiles):
        yield "* blocks chosen by the servers file"


def _server_json(forecast: Forecast, peer: PeerId) -> dict[str, Any]:
    plan = forecast.plan
    profile = next(profile for profile in plan.profiles if profile.peer == peer)
    span = plan.placement.spans.get(peer)
    left_out = forecast.left_out.get(peer)
    return {
        "name": peer,
        "blocks": [span.start, span.end] if span else None,
        "is_pinned": profile.pinned is not None,
        "memory_bytes": profile.memory_bytes,
        "weight_bytes": plan.model.weight_bytes(span) if span else 0,
        "cache_slots": plan.slots[peer] if span else 0,
        "without_it": left_out
        and {
            "slowdown": _finite(left_out.slowdown),
            "missing_blocks": list(left_out.missing),
            "is_spare": left_out.is_spare,
        },
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
