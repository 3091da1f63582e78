"""The written form of a plan: a map of plain fields, and the bytes of it.

Peers are written once, in order, and are numbers elsewhere. What is read was written by a peer that may be hostile, so
it is checked so far that nobody stumbles over it who follows the plan.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from types import MappingProxyType
from typing import Any

import msgpack

from chainserve.errors import ChainserveError, RecordError
from chainserve.planning.fields import flag, number, text, whole
from chainserve.planning.rules import PlacementRule
from chainserve.planning.times import BlockTimes, ServerTimes
from chainserve.planning.values import (
    ModelSpec,
    Placement,
    PlannedChain,
    ResponseTimeBounds,
    by_peer,
    check_pinned,
    require,
)
from chainserve.swarm.plans import MAX_LEFT_OUT, PlanInputs, PlannedServer, Shortage, SwarmPlan, Way
from chainserve.swarm.records import MAX_BLOCKS, MAX_EPOCH, to_span
from chainserve.types import Chain, Hop, PeerId

MAX_PLAN_BYTES = 16 * 2**20


def to_body(plan: SwarmPlan) -> bytes:
    """A plan as bytes, the same for equal plans."""
    body: bytes = msgpack.packb(_to_fields(plan))
    return body


def from_body(body: bytes, *, planner: PeerId) -> SwarmPlan:
    """The plan that `body` holds; RecordError if it holds none."""
    if len(body) > MAX_PLAN_BYTES:
        raise RecordError(f"plan of {len(body)} bytes, at most {MAX_PLAN_BYTES}")
    try:
        return _from_fields(msgpack.unpackb(body), planner=planner)
    except (ChainserveError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecordError(f"plan's fields do not fit: {error!r}") from None


def _to_fields(plan: SwarmPlan) -> dict[str, Any]:
    """Equal numbers are written alike, be they whole or not."""
    inputs, model = plan.inputs, plan.inputs.model
    sizes = model.block_bytes, model.slot_bytes, model.embedding_bytes, model.head_bytes
    number_of = {server.peer: index for index, server in enumerate(inputs.servers)}

    def placed(placement: Placement | None) -> list[tuple[int, int, int]] | None:
        if placement is None:
            return None
        spans = placement.spans.items()
        return [(number_of[peer], span.start, span.end) for peer, span in spans if peer in number_of]

    def pinned(server: PlannedServer) -> tuple[int, int] | None:
        return None if server.pinned is None else (server.pinned.start, server.pinned.end)

    def block_bytes(server: PlannedServer) -> float | None:
        return None if server.block_bytes is None else float(server.block_bytes)

    def figures(server: PlannedServer) -> tuple[float, ...]:
        times, block = server.times, server.times.block
        return server.memory_bytes, times.hop_s, *astuple(block), times.head_s

    return {
        "epoch": plan.epoch,
        "model_digest": plan.model_digest,
        "model": (model.num_blocks, model.is_tied, *map(float, sizes)),
        "servers": [
            (server.peer, server.offered_bytes, pinned(server), *map(float, figures(server)), block_bytes(server))
            for server in inputs.servers
        ],
        "demand": (float(inputs.arrival_rate), float(inputs.input_tokens), float(inputs.output_tokens)),
        "slot_tokens": inputs.slot_tokens,
        "ways": [
            (number_of[first], number_of[second], float(way.hop_s), float(way.prompt_s))
            for (first, second), way in sorted(inputs.ways.items())
        ],
        "before": placed(inputs.before),
        "held": sorted(number_of[peer] for peer in inputs.held),
        "s_per_byte": float(inputs.s_per_byte),
        "search_effort": inputs.search_effort,
        "concurrencies": inputs.concurrencies,
        "rule": astuple(inputs.rule),
        "goal": placed(plan.goal),
        "placement": placed(plan.placement),
        "chains": [
            (chain.capacity, float(chain.service_s), [(number_of[hop.peer], hop.span.end) for hop in chain.chain.hops])
            for chain in plan.chains
        ],
        "concurrency": plan.concurrency,
        "bounds": (float(plan.bounds.lower_s), float(plan.bounds.upper_s)),
        "shortage": plan.shortage and (plan.shortage.missing, float(plan.shortage.missing_bytes)),
        "left_out": dict(sorted(plan.left_out.items())),
    }


def _from_fields(fields: Mapping[str, Any], *, planner: PeerId) -> SwarmPlan:
    servers = tuple(_server(*row) for row in fields["servers"])
    peers = [server.peer for server in servers]
    model = _model(*fields["model"])

    def peer(index: object) -> PeerId:
        if not 0 <= whole(index) < len(peers):
            raise ValueError(f"server {index} of {len(peers)}")
        return peers[whole(index)]

    def placement(rows: Sequence[tuple[object, object, object]]) -> Placement:
        spans = {peer(index): to_span([start, end]) for index, start, end in rows}
        if len(spans) < len(rows):
            raise ValueError("a server is placed twice")
        if any(span.end > model.num_blocks for span in spans.values()):
            raise ValueError("blocks outside the model")
        return Placement(spans)

    goal, step = placement(fields["goal"]), placement(fields["placement"])

    def planned_chain(capacity: object, service_s: object, ends: Sequence[tuple[object, object]]) -> PlannedChain:
        start, hops = 0, []
        for index, end in ends:
            hops.append(Hop(peer(index), to_span([start, end])))
            start = whole(end)
        if start != model.num_blocks or not all(step[hop.peer].covers(hop.span) for hop in hops):
            raise ValueError("a chain over blocks that its servers do not hold")
        return PlannedChain(Chain(tuple(hops)), whole(capacity), number(service_s))

    arrival_rate, input_tokens, output_tokens = map(number, fields["demand"])
    concurrencies, before, shortage = fields["concurrencies"], fields["before"], fields["shortage"]
    inputs = PlanInputs(
        model=model,
        servers=servers,
        arrival_rate=arrival_rate,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        slot_tokens=whole(fields["slot_tokens"]),
        ways={
            (peer(first), peer(second)): Way(hop_s=number(hop_s), prompt_s=number(prompt_s))
            for first, second, hop_s, prompt_s in fields["ways"]
        },
        before=None if before is None else placement(before),
        held=frozenset(peer(index) for index in fields["held"]),
        s_per_byte=number(fields["s_per_byte"]),
        search_effort=whole(fields["search_effort"]),
        concurrencies=None if concurrencies is None else tuple(map(whole, concurrencies)),
        rule=_rule(*fields["rule"]),
    )
    check_pinned(by_peer(inputs.profiles()).values(), model)  # raises for servers that cannot be
    require("seconds of all ways", sum(inputs.pair_s.values()), positive=False)
    epoch, concurrency = whole(fields["epoch"]), whole(fields["concurrency"])
    lower_s, upper_s = map(number, fields["bounds"])
    left_out = {PeerId(text(name)): text(reason) for name, reason in fields["left_out"].items()}
    if not (0 < epoch <= MAX_EPOCH and concurrency >= 0 and inputs.concurrencies != ()):
        raise ValueError(f"epoch {epoch}, {concurrency} sessions of {inputs.concurrencies}")
    if not (lower_s >= 0 and upper_s >= 0):
        raise ValueError(f"bounds of {lower_s} and {upper_s} seconds")
    if peers != sorted(set(peers)) or len(left_out) > MAX_LEFT_OUT:
        raise ValueError("servers are not in order, or too many are left out")
    return SwarmPlan(
        epoch=epoch,
        planner=planner,
        model_digest=text(fields["model_digest"]),
        inputs=inputs,
        goal=goal,
        placement=step,
        chains=tuple(planned_chain(*row) for row in fields["chains"]),
        concurrency=concurrency,
        bounds=ResponseTimeBounds(lower_s, upper_s),
        shortage=None if shortage is None else _shortage(*shortage, num_blocks=model.num_blocks),
        left_out=MappingProxyType(left_out),
    )


def _model(num_blocks: object, is_tied: object, *sizes: object) -> ModelSpec:
    block_bytes, slot_bytes, embedding_bytes, head_bytes = map(number, sizes)
    if whole(num_blocks) > MAX_BLOCKS:
        raise ValueError(f"a model of {num_blocks} blocks")
    return ModelSpec(
        num_blocks=whole(num_blocks),
        block_bytes=block_bytes,
        slot_bytes=slot_bytes,
        embedding_bytes=embedding_bytes,
        head_bytes=head_bytes,
        is_tied=flag(is_tied),
    )


def _rule(name: object, seed: object, cache_tokens: object, has_chains: object) -> PlacementRule:
    return PlacementRule(
        name=text(name),
        seed=whole(seed),
        cache_tokens=None if cache_tokens is None else whole(cache_tokens),
        has_chains=flag(has_chains),
    )


def _server(peer: object, offered_bytes: object, pinned: Any, *figures: object) -> PlannedServer:
    *times, block_bytes = figures
    memory_bytes, hop_s, overhead_s, prefill_s, decode_s, session_s, head_s = map(number, times)
    block = BlockTimes(overhead_s=overhead_s, prefill_s=prefill_s, decode_s=decode_s, session_s=session_s)
    return PlannedServer(
        peer=PeerId(text(peer)),
        offered_bytes=whole(offered_bytes),
        memory_bytes=memory_bytes,
        times=ServerTimes(hop_s=hop_s, block=block, head_s=head_s),
        pinned=None if pinned is None else to_span(pinned),
        block_bytes=None if block_bytes is None else number(block_bytes),
    )


def _shortage(missing: Sequence[object], missing_bytes: object, *, num_blocks: int) -> Shortage:
    blocks = tuple(map(whole, missing))
    if not all(0 <= block < num_blocks for block in blocks):
        raise ValueError("blocks outside the model are missing")
    require("missing_bytes", number(missing_bytes), positive=False)
    return Shortage(blocks, number(missing_bytes))
