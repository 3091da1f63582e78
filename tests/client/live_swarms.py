"""Swarms as a client sees them: servers that offer what they have, and the plans that these make of it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from chainserve.planning.profile import BlockProfile, StepTimes
from chainserve.swarm.inputs import ModelFacts
from chainserve.swarm.offers import Offer
from chainserve.swarm.planner import Planner
from chainserve.swarm.plans import SwarmPlan, record_of
from chainserve.swarm.records import Announcement, ServerState
from chainserve.swarm.rehearsal import MODEL_DIGEST
from chainserve.swarm.view import View, make_view
from chainserve.types import PeerId, Span

NOW = 1_800_000_000.0
NUM_BLOCKS = 8
BLOCK_BYTES = 1_000_000_000
TOKEN_BYTES = 10_000
SEARCH_EFFORT = 500


def peer(name: str) -> PeerId:
    return PeerId(f"Qm{name * 6}")


def profile(*, speed: float = 1.0) -> BlockProfile:
    return BlockProfile(
        times=StepTimes(
            forward_s=0.001,
            prefill=((32, 0.02 / speed), (512, 0.2 / speed)),
            decode=((1, 0.003 / speed), (8, 0.004 / speed)),
            head=((1, 0.006 / speed), (8, 0.008 / speed)),
        ),
        block_bytes=BLOCK_BYTES,
        embedding_bytes=10**8,
        head_bytes=10**8,
        is_tied=True,
        token_bytes=TOKEN_BYTES,
        activation_bytes=100_000_000,
    )


def server(
    name: str, span: Span | None = None, *, memory_gb: float = 9, speed: float = 1.0, **more: Any
) -> Announcement:
    """A server that takes part in plans; `more` is what else it announces, or offers: `reach`, `decode`, `demand`..."""
    offered = {key: more.pop(key) for key in ("reach", "prefill", "decode", "demand") if key in more}
    more = {"report": None} | more
    offer = Offer(memory_bytes=round(memory_gb * 1e9), profile=profile(speed=speed), **offered)
    weight_bytes = len(span or ()) * BLOCK_BYTES
    usual: dict[str, Any] = {
        "peer": peer(name),
        "state": ServerState.ONLINE if span else ServerState.JOINING,
        "model": "org/model",
        "model_digest": MODEL_DIGEST,
        "num_blocks": NUM_BLOCKS,
        "span": span,
        "dtype": "bfloat16",
        "cache_tokens": 20_000 if span else 0,
        "free_tokens": 12_345 if span else 0,
        "addresses": ("wss://10.0.0.5:8300/link#sha256=aa",),
        "version": "0.1.0",
        "started_at": NOW - 7_500,
        "weight_bytes": weight_bytes,
        "epoch": 1,
        "offer": offer,
    }
    return Announcement(**usual | more)


def plan_of(*servers: Announcement, **changes: Any) -> SwarmPlan:
    """What the first of these servers by id plans for all of them, with `changes` to it."""
    view = make_view(servers, taken_at=NOW)
    planner = Planner(
        min(view.servers),
        model_digest=MODEL_DIGEST,
        model=ModelFacts(num_blocks=servers[0].num_blocks, longest_tokens=8192, wire_bytes=8192),
    )
    job = None
    for now_s in (0.0, 60.0):  # a change is planned for when nothing has changed for a while
        job = planner.consider(view, None, now_s=now_s) or job
    assert job is not None
    job = replace(job, inputs=replace(job.inputs, search_effort=SEARCH_EFFORT))
    return replace(job.carry_out(), **changes)


def view_of(servers: Sequence[Announcement], *plans: SwarmPlan, refused: Mapping[PeerId, str] | None = None) -> View:
    return make_view(servers, taken_at=NOW, plans=map(record_of, plans), refused=refused)


def settle(servers: Sequence[Announcement], plan: SwarmPlan) -> list[Announcement]:
    """The same servers where the plan wants them."""
    return [
        replace(
            server,
            span=plan.placement.spans[server.peer],
            state=ServerState.ONLINE,
            weight_bytes=len(plan.placement.spans[server.peer]) * BLOCK_BYTES,
            cache_tokens=20_000,
            free_tokens=12_345,
        )
        for server in servers
    ]
