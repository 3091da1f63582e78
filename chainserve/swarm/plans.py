"""The plan that a swarm follows: what it was worked out from, who holds which blocks, which chains there are.

Plans are numbered by epochs and known by the digest of their bytes. The record of a plan is sealed by the planner; it
holds the plan itself if that is small, else only its digest, and the planner hands out the bytes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any, Self

import msgpack

from chainserve.errors import ChainserveError, RecordError
from chainserve.planning.bounds import ResponseTimeBounds
from chainserve.planning.fields import flag, number, text, whole
from chainserve.planning.plan import Plan, plan
from chainserve.planning.times import BlockTimes, ServerTimes
from chainserve.planning.values import (
    ModelSpec,
    Placement,
    PlannedChain,
    ServerProfile,
    Workload,
    by_peer,
    check_pinned,
    require,
)
from chainserve.swarm.identity import Identity
from chainserve.swarm.records import MAX_BLOCKS, MAX_EPOCH, SCHEMA, field_of, open_fields, seal_payload, to_span
from chainserve.types import Chain, Hop, PeerId, Span

MAX_INLINE_BYTES = 8 * 1024
"""A larger plan does not travel in its record."""
MAX_PLAN_BYTES = 16 * 2**20
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
    ways: Mapping[tuple[PeerId, PeerId], Way] = field(default_factory=lambda: MappingProxyType({}))
    before: Placement | None = None  # where servers were
    held: frozenset[PeerId] = frozenset()  # servers that stay there, as moving them would uncover a block
    s_per_byte: float = 0.0  # price of loading, in seconds of mean response time
    search_effort: int = 0
    concurrencies: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        require("arrival_rate", self.arrival_rate)
        require("input_tokens", self.input_tokens)
        require("output_tokens", self.output_tokens)
        require("s_per_byte", self.s_per_byte, positive=False)
        if not self.servers:
            raise ValueError("a plan of no servers")
        for server in self.servers:
            require(f"memory_bytes of {server.peer}", server.memory_bytes)

    def profiles(self) -> list[ServerProfile]:
        """The servers as the planning library takes them."""
        return [
            server.times.profile(
                server.peer,
                server.memory_bytes,
                input_tokens=self.input_tokens,
                output_tokens=self.output_tokens,
                pinned=self.before[server.peer] if self.before and server.peer in self.held else server.pinned,
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

    def plan(self) -> Plan:
        """What the planning library makes of this; NoPlanError if the servers have no room for all blocks."""
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
        data: bytes = msgpack.packb(_to_fields(self))
        return data

    @cached_property
    def digest(self) -> str:
        return digest_of(self.body)

    @classmethod
    def from_body(cls, body: bytes, *, planner: PeerId) -> Self:
        """The plan that `body` holds; RecordError if it holds none."""
        if len(body) > MAX_PLAN_BYTES:
            raise RecordError(f"plan of {len(body)} bytes, at most {MAX_PLAN_BYTES}")
        try:
            return cls(planner=planner, **_from_fields(msgpack.unpackb(body)))
        except (ChainserveError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise RecordError(f"plan's fields do not fit: {error!r}") from None


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


def _to_fields(plan: SwarmPlan) -> dict[str, Any]:
    """Peers are written once, and are numbers elsewhere; equal numbers are written alike, be they whole or not."""
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

    def figures(server: PlannedServer) -> tuple[float, ...]:
        block = server.times.block
        return server.memory_bytes, server.times.hop_s, block.overhead_s, block.prefill_s, block.decode_s

    return {
        "epoch": plan.epoch,
        "model_digest": plan.model_digest,
        "model": (model.num_blocks, model.is_tied, *map(float, sizes)),
        "servers": [
            (server.peer, server.offered_bytes, pinned(server), *map(float, figures(server)))
            for server in inputs.servers
        ],
        "demand": (float(inputs.arrival_rate), float(inputs.input_tokens), float(inputs.output_tokens)),
        "ways": [
            (number_of[first], number_of[second], float(way.hop_s), float(way.prompt_s))
            for (first, second), way in sorted(inputs.ways.items())
        ],
        "before": placed(inputs.before),
        "held": sorted(number_of[peer] for peer in inputs.held),
        "s_per_byte": float(inputs.s_per_byte),
        "search_effort": inputs.search_effort,
        "concurrencies": inputs.concurrencies,
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


def _from_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """All that a plan is made of but its planner, checked so that nobody stumbles over it who follows the plan."""
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
    require("arrival_rate", arrival_rate)
    require("input_tokens", input_tokens, positive=False)
    require("output_tokens", output_tokens)
    concurrencies, before, shortage = fields["concurrencies"], fields["before"], fields["shortage"]
    inputs = PlanInputs(
        model=model,
        servers=servers,
        arrival_rate=arrival_rate,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        ways={
            (peer(first), peer(second)): Way(hop_s=number(hop_s), prompt_s=number(prompt_s))
            for first, second, hop_s, prompt_s in fields["ways"]
        },
        before=None if before is None else placement(before),
        held=frozenset(peer(index) for index in fields["held"]),
        s_per_byte=number(fields["s_per_byte"]),
        search_effort=whole(fields["search_effort"]),
        concurrencies=None if concurrencies is None else tuple(map(whole, concurrencies)),
    )
    check_pinned(by_peer(inputs.profiles()).values(), model)  # raises for servers that cannot be
    require("s_per_byte", inputs.s_per_byte, positive=False)
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
    return {
        "epoch": epoch,
        "model_digest": text(fields["model_digest"]),
        "inputs": inputs,
        "goal": goal,
        "placement": step,
        "chains": tuple(planned_chain(*row) for row in fields["chains"]),
        "concurrency": concurrency,
        "bounds": ResponseTimeBounds(lower_s, upper_s),
        "shortage": None if shortage is None else _shortage(*shortage, num_blocks=model.num_blocks),
        "left_out": MappingProxyType(left_out),
    }


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


def _server(peer: object, offered_bytes: object, pinned: Any, *figures: object) -> PlannedServer:
    memory_bytes, hop_s, overhead_s, prefill_s, decode_s = map(number, figures)
    block = BlockTimes(overhead_s=overhead_s, prefill_s=prefill_s, decode_s=decode_s)
    return PlannedServer(
        peer=PeerId(text(peer)),
        offered_bytes=whole(offered_bytes),
        memory_bytes=memory_bytes,
        times=ServerTimes(hop_s=hop_s, block=block),
        pinned=None if pinned is None else to_span(pinned),
    )


def _shortage(missing: Sequence[object], missing_bytes: object, *, num_blocks: int) -> Shortage:
    blocks = tuple(map(whole, missing))
    if not all(0 <= block < num_blocks for block in blocks):
        raise ValueError("blocks outside the model are missing")
    require("missing_bytes", number(missing_bytes), positive=False)
    return Shortage(blocks, number(missing_bytes))
