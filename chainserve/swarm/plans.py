"""The plan that a swarm follows: what it was worked out from, who holds which blocks, which chains there are.

Plans are numbered by epochs and known by the digest of their bytes, which `plan_codec` writes and reads. The record of
a plan is sealed by the planner; it holds the plan itself if that is small, else only its digest, and the planner hands
out the bytes.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgpack

from chainserve.errors import RecordError
from chainserve.planning.prediction import Prediction, predict
from chainserve.planning.rules import OURS, PlacementRule
from chainserve.planning.times import ServerTimes
from chainserve.planning.values import (
    ModelSpec,
    Placement,
    PlannedChain,
    ResponseTimeBounds,
    ServerProfile,
    Workload,
    require,
)
from chainserve.swarm.identity import Identity
from chainserve.swarm.records import MAX_EPOCH, SCHEMA, field_of, open_fields, seal_payload
from chainserve.types import Chain, PeerId, Span

if TYPE_CHECKING:
    from chainserve.planning.plan import Plan

MAX_INLINE_BYTES = 8 * 1024
"""A larger plan does not travel in its record."""
MAX_LEFT_OUT = 64
"""Servers that a plan names as left out of it."""
DIGEST_CHARS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedServer:
    """One server as it went into a plan."""

    peer: PeerId
    offered_bytes: int  # as it announced
    memory_bytes: float  # what of it is for weights and cache
    times: ServerTimes
    pinned: Span | None = None  # blocks its owner chose
    block_bytes: float | None = None  # weights of one block as it holds them; None: the model's


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What lies between one server and the next."""

    hop_s: float  # of a message with one token's activations
    prompt_s: float = 0.0  # more of that with a mean prompt's

    def __post_init__(self) -> None:
        require("hop_s", self.hop_s, positive=False)
        require("prompt_s", self.prompt_s, positive=False)


Membership = tuple[PeerId, Span | None, int]
"""A server that takes part, blocks of its owner's choice, and bytes it offers."""


@dataclass(frozen=True, kw_only=True)
class PlanInputs:
    """All that a plan was worked out from: whoever has it can work it out again."""

    model: ModelSpec
    servers: tuple[PlannedServer, ...]  # by peer id
    arrival_rate: float  # requests per second
    input_tokens: float  # of a mean request
    output_tokens: float
    slot_tokens: int  # of cache that planning counts per session
    ways: Mapping[tuple[PeerId, PeerId], Way] = field(default_factory=lambda: MappingProxyType({}))
    before: Placement | None = None  # where servers were
    held: frozenset[PeerId] = frozenset()  # servers that stay there, as moving them would uncover a block
    s_per_byte: float = 0.0  # price of loading, in seconds of mean response time
    search_effort: int = 0
    concurrencies: tuple[int, ...] | None = None
    rule: PlacementRule = OURS

    def __post_init__(self) -> None:
        require("arrival_rate", self.arrival_rate)
        require("input_tokens", self.input_tokens)
        require("output_tokens", self.output_tokens)
        require("slot_tokens", self.slot_tokens)
        require("s_per_byte", self.s_per_byte, positive=False)
        if not self.servers:
            raise ValueError("a plan of no servers")
        for server in self.servers:
            require(f"memory_bytes of {server.peer}", server.memory_bytes)
            if server.block_bytes is not None:
                require(f"block_bytes of {server.peer}", server.block_bytes)

    def profiles(self) -> list[ServerProfile]:
        """The servers as the planning library takes them."""
        return [
            server.times.profile(
                server.peer,
                server.memory_bytes,
                input_tokens=self.input_tokens,
                output_tokens=self.output_tokens,
                pinned=self.before[server.peer] if self.before and server.peer in self.held else server.pinned,
                block_bytes=server.block_bytes,
            )
            for server in self.servers
        ]

    @cached_property
    def membership(self) -> frozenset[Membership]:
        """Who takes part: when this is not who is there, another plan is due."""
        return frozenset((server.peer, server.pinned, server.offered_bytes) for server in self.servers)

    @cached_property
    def pair_s(self) -> dict[tuple[PeerId, PeerId], float]:
        """Seconds of communication of one request between two servers."""
        return {pair: way.hop_s * self.output_tokens + way.prompt_s for pair, way in self.ways.items()}

    @cached_property
    def times(self) -> Mapping[PeerId, ServerTimes]:
        """What the servers take for their work."""
        return {server.peer: server.times for server in self.servers}

    def predict(self, chain: Chain, *, input_tokens: float) -> Prediction:
        """What a user sees of a chain with so many tokens in; KeyError if one of its servers is not among these."""
        pairs = [(before.peer, after.peer) for before, after in pairwise(chain.hops)]
        ways = {pair: self.ways[pair] for pair in pairs if pair in self.ways}
        share = input_tokens / self.input_tokens
        return predict(
            chain,
            self.times,
            input_tokens=input_tokens,
            pair_hop_s={pair: way.hop_s for pair, way in ways.items()},
            pair_prompt_s={pair: way.prompt_s * share for pair, way in ways.items()},
        )

    def plan(self) -> "Plan":
        """What the planning library makes of this; NoPlanError if the servers have no room for all blocks."""
        if not self.rule.is_ours:
            return self._plan_by_rule()
        from chainserve.planning.plan import plan  # takes numpy, which those who only follow plans do without

        return plan(
            self.profiles(),
            self.model,
            Workload(arrival_rate=self.arrival_rate),
            pair_s=self.pair_s or None,
            search_effort=self.search_effort,
            before=self.before,
            s_per_byte=self.s_per_byte,
            concurrencies=self.concurrencies,
        )

    def _plan_by_rule(self) -> "Plan":
        from chainserve.planning.baselines.plans import plan_by

        return plan_by(
            self.rule,
            self.profiles(),
            self.model,
            Workload(arrival_rate=self.arrival_rate),
            slot_tokens=self.slot_tokens,
            pair_s=self.pair_s or None,
            before=self.before,
        )


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why there is no plan: blocks for which the servers have no room, and the memory these take."""

    missing: tuple[int, ...]
    missing_bytes: float


@dataclass(frozen=True, kw_only=True)
class SwarmPlan:
    """One epoch: what every server holds from now on, which is a step towards the goal, or the goal itself."""

    epoch: int
    planner: PeerId
    model_digest: str
    inputs: PlanInputs
    goal: Placement  # what `plan()` found; with a shortage, where servers are
    placement: Placement  # what they hold first, so that nothing is uncovered on the way there
    chains: tuple[PlannedChain, ...]  # over `placement`, fastest first
    concurrency: int  # sessions that GBP-CR reserved cache for; 0 with a shortage
    bounds: ResponseTimeBounds  # of the goal
    shortage: Shortage | None = None
    left_out: Mapping[PeerId, str] = field(default_factory=lambda: MappingProxyType({}))  # servers, and why

    @property
    def is_settled(self) -> bool:
        """Whether no further step follows."""
        return self.goal == self.placement

    @cached_property
    def body(self) -> bytes:
        """The plan as bytes, the same for equal plans."""
        from chainserve.swarm.plan_codec import to_body  # which needs the values here

        return to_body(self)

    @cached_property
    def digest(self) -> str:
        return digest_of(self.body)

    @staticmethod
    def from_body(body: bytes, *, planner: PeerId) -> "SwarmPlan":
        """The plan that `body` holds; RecordError if it holds none."""
        from chainserve.swarm.plan_codec import from_body

        return from_body(body, planner=planner)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRecord:
    """What the planner publishes about its plan."""

    planner: PeerId
    epoch: int
    model_digest: str
    digest: str
    body: bytes | None  # None: too large for a record

    def supersedes(self, other: "PlanRecord | SwarmPlan | None") -> bool:
        """Whether this one is followed and the other is not: the higher epoch, of equals that of the smaller id."""
        return other is None or (-self.epoch, self.planner) < (-other.epoch, other.planner)

    def open(self, body: bytes) -> SwarmPlan:
        """The plan whose bytes a peer handed out; RecordError if they are not those that the planner sealed."""
        return _opened(self, body)


@lru_cache(maxsize=4)  # many members of one process follow the same plan
def _opened(record: PlanRecord, body: bytes) -> SwarmPlan:
    if digest_of(body) != record.digest:
        raise RecordError("plan's bytes are not those that its record names")
    found = SwarmPlan.from_body(body, planner=record.planner)
    if (found.epoch, found.model_digest) != (record.epoch, record.model_digest):
        raise RecordError(f"plan is of epoch {found.epoch}, its record of epoch {record.epoch}")
    return found


def record_of(plan: SwarmPlan) -> PlanRecord:
    """The record of a plan, with its bytes if they are few."""
    body = plan.body if len(plan.body) <= MAX_INLINE_BYTES else None
    return PlanRecord(
        planner=plan.planner, epoch=plan.epoch, model_digest=plan.model_digest, digest=plan.digest, body=body
    )


def seal_plan(record: PlanRecord, identity: Identity, secret: bytes, *, expires_at: float) -> bytes:
    """Pack and sign the record of a plan of `identity`'s own, to count until `expires_at` (unix seconds)."""
    if record.planner != identity.peer_id:
        raise ValueError(f"{identity.peer_id} cannot seal a plan of {record.planner}")
    fields = {
        "schema": SCHEMA,
        "epoch": record.epoch,
        "model_digest": record.model_digest,
        "digest": record.digest,
        "body": record.body,
    }
    return seal_payload(msgpack.packb(fields), identity, secret, expires_at=expires_at)


def open_plan(data: bytes, secret: bytes, *, now: float) -> PlanRecord:
    """Check the record of a plan, its bytes apart; RecordError if anything is wrong or it does not count at `now`."""
    peer, fields = open_fields(data, secret, now=now)
    epoch, body = field_of(fields, "epoch", int), fields.get("body")
    if not 0 < epoch <= MAX_EPOCH:
        raise RecordError(f"plan is of epoch {epoch}")
    if body is not None and type(body) is not bytes:
        raise RecordError(f"plan is {type(body).__name__}, not bytes")
    digest, model_digest = field_of(fields, "digest", str), field_of(fields, "model_digest", str)
    return PlanRecord(planner=peer, epoch=epoch, model_digest=model_digest, digest=digest, body=body)


def digest_of(body: bytes) -> str:
    """By which a plan's bytes are known."""
    return hashlib.sha256(body).hexdigest()[:DIGEST_CHARS]
