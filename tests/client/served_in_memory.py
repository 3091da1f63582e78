"""A swarm in memory with the server's own sessions, places and engine: only blocks, ends and the network are replaced.

Hidden states are whole numbers below P. A block turns rows x into the sum of all rows of its lane up to each, plus one,
modulo P: every output shows the lane's whole history, over whichever servers it came, and there is nothing to round.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import takewhile
from string import ascii_lowercase, digits
from types import SimpleNamespace
from typing import Any, cast

import torch
from live_swarms import NOW, NUM_BLOCKS, peer, plan_of, server
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from chainserve.models.cache import KVCache
from chainserve.models.grammars import Grammars
from chainserve.models.sampling import TokenSampler
from chainserve.planning.values import Placement, PlannedChain
from chainserve.protocol.messages import Message, Step
from chainserve.protocol.pages import PAGE_TOKENS
from chainserve.protocol.places import Places
from chainserve.protocol.sampling import Sampling
from chainserve.protocol.text import TextBundle
from chainserve.swarm.memory import MemoryHub, MemorySwarm
from chainserve.swarm.plans import SwarmPlan, record_of
from chainserve.swarm.rehearsal import MODEL_DIGEST
from chainserve.transport.links import Links, Timing
from chainserve.transport.memory import MemoryNetwork, MemoryTransport
from chainserve.transport.outbox import Outbox
from chainserve.types import Chain, Hop, PeerId, SessionId, Span
from chainserve_client.network import ModelInSwarm, Network
from chainserve_server.admission import head_chains
from chainserve_server.engine import Engine
from chainserve_server.grammars import GrammarQueue
from chainserve_server.sessions import Sessions
from chainserve_server.work import Item

HIDDEN = 4
ALPHABET = ascii_lowercase + digits + '{}[]":, \n<>/_-'
"""Tokens are single characters, enough of them for JSON."""
VOCAB = len(ALPHABET)
BYTE_LEVEL = {" ": "Ġ", "\n": "Ċ"}
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
P = 97.0
CHUNK_TOKENS = 8
MODEL = ModelInSwarm("org/model", MODEL_DIGEST, NUM_BLOCKS, "float32")
TIMING = Timing(heartbeat_s=0.05, timeout_s=0.5, connect_s=0.3)


def block(rows: torch.Tensor, before: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A block's outputs for new rows, and the sums (tokens, hidden) of its lane with them."""
    last = before[-1:] if len(before) else torch.zeros(1, HIDDEN)
    sums = (last + rows.cumsum(0)) % P
    return (sums + 1) % P, torch.cat([before, sums])


def whole_model(rows: torch.Tensor) -> torch.Tensor:
    """What all blocks give for a lane's rows."""
    for _ in range(NUM_BLOCKS):
        rows, _ = block(rows, rows[:0])
    return rows


def embed(ids: torch.Tensor) -> torch.Tensor:
    """Hidden states (n, hidden) of tokens (n,)."""
    return (ids[:, None] * torch.arange(1, HIDDEN + 1) % P).float()


def logits(hidden: torch.Tensor) -> torch.Tensor:
    """Logits (n, vocab): one token is the likeliest, those next to it come after it."""
    likeliest = (hidden @ torch.arange(1.0, HIDDEN + 1))[:, None] % VOCAB
    return -(torch.arange(VOCAB) - likeliest).abs()


def text_bundle(*, end_tokens: tuple[int, ...] = (VOCAB - 1,), **changes: Any) -> TextBundle:
    """What servers would hand out."""
    written = {letter: BYTE_LEVEL.get(letter, letter) for letter in ALPHABET}
    tokenizer = Tokenizer(models.BPE(vocab={written[letter]: i for i, letter in enumerate(ALPHABET)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    usual: dict[str, Any] = {"chat_template": TEMPLATE, "special_tokens": {}, "vocab_size": VOCAB, "max_position": 500}
    return TextBundle(tokenizer=tokenizer.to_str(), end_tokens=end_tokens, **(usual | changes))


def generated(prompt: Sequence[int], sampling: Sampling, *, num_tokens: int) -> list[int]:
    """What one server without a swarm would answer."""
    ids = list(prompt)
    max_tokens = len(prompt) + num_tokens - 1
    matcher = None if sampling.grammar is None else Grammars(text_bundle).compile(sampling.grammar)
    alone = replace(sampling, max_drafts=0)
    sampler = TokenSampler(SessionId(bytes(16)), alone, max_tokens=max_tokens, matcher=matcher)
    while True:
        sampler.take(0, ids)
        row = logits(whole_model(embed(torch.tensor(ids)))[-1:])
        choice = sampler.choose(row, start=len(ids) - 1, drafts=(), likeliest=row.argmax(-1).tolist())
        ids += choice.ids
        if choice.is_last:
            return ids[len(prompt) :]


class SumCache(KVCache):
    """Keeps sums where others keep keys and values."""

    def __init__(self, span: Span | None, *, budget_tokens: int) -> None:
        super().__init__(span, budget_tokens=budget_tokens)
        self.sums: dict[SessionId, dict[tuple[int, int], torch.Tensor]] = {}  # by lane and block
        self.pages: dict[tuple[bytes, int], torch.Tensor] = {}  # by hash and block

    def reserve(
        self, session: SessionId, span: Span, *, num_lanes: int, max_tokens: int, prefix: Sequence[bytes] = ()
    ) -> int:
        super().reserve(session, span, num_lanes=num_lanes, max_tokens=max_tokens)
        known = list(takewhile(lambda page: all((page, number) in self.pages for number in span), prefix))
        if known:
            self._sessions[session].lanes[0].length = len(known) * PAGE_TOKENS
            self.sums[session] = {
                (0, number): torch.cat([self.pages[page, number] for page in known]) for number in span
            }
        return len(known) * PAGE_TOKENS

    def keep(self, session: SessionId, prefix: Sequence[bytes]) -> None:
        for (_, number), sums in self.sums.get(session, {}).items():
            for page, rows in zip(prefix, sums.split(PAGE_TOKENS), strict=False):
                assert len(rows) == PAGE_TOKENS
                self.pages[page, number] = rows

    def reorder(self, session: SessionId, sources: Sequence[int]) -> None:
        super().reorder(session, sources)
        old = self.sums.get(session, {})
        self.sums[session] = {
            (lane, number): old[source, number]
            for lane, source in enumerate(sources)
            for number in range(NUM_BLOCKS)
            if (source, number) in old
        }

    def release(self, session: SessionId) -> None:
        super().release(session)
        self.sums.pop(session, None)


class SumRunner:
    """Runs such blocks over a `SumCache`."""

    dtype, device = torch.float32, torch.device("cpu")
    ends = SimpleNamespace(embed=embed, logits=logits)

    def __init__(self, span: Span, cache: SumCache) -> None:
        self.span = span
        self.cache = cache
        self.batches: list[list[Step]] = []

    def forward(self, hidden: torch.Tensor, steps: Sequence[Step], span: Span) -> torch.Tensor:
        self.batches.append(list(steps))
        packed = self.cache.begin(steps, span)
        outputs = []
        for step, rows in zip(steps, hidden.split([step.num_tokens for step in steps]), strict=True):
            sums = self.cache.sums.setdefault(step.session, {})
            for number in span:
                before = sums.get((step.lane, number), rows[:0])[: step.start]
                rows, sums[step.lane, number] = block(rows, before)
            outputs.append(rows)
        packed.commit()
        return torch.cat(outputs)


class HeldEngine(Engine):
    """An engine that can be kept from doing anything."""

    is_held = False

    def add(self, item: Item) -> None:
        if not self.is_held:
            super().add(item)


class MemoryServer:
    """One server: sessions, places, links."""

    def __init__(self, name: str, span: Span, wires: MemoryNetwork, *, cache_tokens: int) -> None:
        self.peer = peer(name)
        self.is_dead = False
        self.span = span
        self.announcement = server(name, span, pinned=True, cache_tokens=cache_tokens, free_tokens=cache_tokens)
        cache = SumCache(span, budget_tokens=cache_tokens)
        self.runner = SumRunner(span, cache)
        self.engine = HeldEngine(
            cache,
            runner=cast(Any, self.runner),
            max_batch_tokens=64,
            emit=lambda to, message: self.sessions.emit(to, message),
            fail=lambda session, code, detail: self.sessions.fail(session, code, detail),
            chunk_tokens=lambda _work, _num_decoding: CHUNK_TOKENS,
            on_spent=lambda session, waited_s, computed_s: self.sessions.spend(session, waited_s, computed_s),
        )
        self.links = links_of(self.peer, wires, self._handle, self._lost)
        self.outbox = Outbox(self.links, on_lost=self._lost)
        self.received: list[Message] = []
        self.num_tokens = 0  # of answers that came through
        self.sessions = Sessions(
            self.peer,
            model=MODEL_DIGEST,
            hidden_size=HIDDEN,
            vocab_size=VOCAB,
            engine=self.engine,
            post=self.outbox.post,
            on_tokens=self._count,
            places=Places(self.peer),
            compile_grammar=GrammarQueue(Grammars(text_bundle)).compile,
        )
        self.sessions.span = span
        self.sessions.closed_because = None
        self._running = asyncio.create_task(self.engine.run())

    def _handle(self, sender: PeerId, message: Message) -> None:
        self.received.append(message)
        self.sessions.handle(sender, message)

    def _count(self, num_tokens: int) -> None:
        self.num_tokens += num_tokens

    def _lost(self, other: PeerId, reason: str) -> None:
        self.outbox.forget(other)
        self.sessions.lost(other, reason)

    async def die(self) -> None:
        self.is_dead = True
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        await self.outbox.close()
        await self.links.close()


def links_of(me: PeerId, wires: MemoryNetwork, on_message: Any, on_lost: Any) -> Links:
    async def addresses_of(other: PeerId) -> list[str]:
        return [f"memory:{other}"]

    return Links(
        me,
        [MemoryTransport(wires, me)],
        lookup=addresses_of,
        on_message=on_message,
        on_lost=on_lost,
        on_refused=lambda *_: None,
        timing=TIMING,
    )


class MemorySwarmOfServers:
    """Servers by name, and a client's network among them."""

    def __init__(self, spans: Mapping[str, Span], *, cache_tokens: int) -> None:
        self.wires = MemoryNetwork()
        self.hub = MemoryHub(clock=lambda: NOW)
        self.servers = {
            name: MemoryServer(name, span, self.wires, cache_tokens=cache_tokens) for name, span in spans.items()
        }
        for made in self.servers.values():
            self.hub.records[made.peer] = made.announcement, NOW + 30
        self.networks: list[Network] = []

    async def client(self, name: str = "client") -> Network:
        """Another client of the swarm."""
        network = Network(MemorySwarm(self.hub, peer(name)))
        network.connect_to(links_of(peer(name), self.wires, network.handle, network.lost))
        await network.swarm.refresh()
        self.networks.append(network)
        return network

    def chain(self, *names: str) -> Chain:
        return Chain(tuple(Hop(self.servers[name].peer, self.servers[name].span) for name in names))

    def plan(self, *chains: tuple[Sequence[str], int, float], epoch: int = 1) -> SwarmPlan:
        """Let all follow a plan of these chains: servers, capacity, service time."""
        announcements = [made.announcement for made in self.servers.values()]
        placement = Placement({made.peer: made.span for made in self.servers.values()})
        planned = [PlannedChain(self.chain(*names), capacity, service_s) for names, capacity, service_s in chains]
        plan = replace(plan_of(*announcements), chains=tuple(planned), placement=placement, goal=placement, epoch=epoch)
        self.hub.plans[plan.planner] = record_of(plan), NOW + 30
        for made in self.servers.values():
            made.sessions.follow(plan.epoch, head_chains(plan, made.peer))
        return plan

    def check_free(self) -> None:
        """AssertionError unless nothing is held or waited for anywhere."""
        for made in self.servers.values():
            made.sessions.places.check()
            assert len(made.sessions) == 0
            assert made.engine.cache.reserved == 0
            assert (made.sessions.places.num_held, made.sessions.places.num_waiting) == (0, 0)


@asynccontextmanager
async def served(spans: Mapping[str, Span], *, cache_tokens: int = 100_000) -> AsyncIterator[MemorySwarmOfServers]:
    """A swarm whose servers listen."""
    swarm = MemorySwarmOfServers(spans, cache_tokens=cache_tokens)
    for made in swarm.servers.values():
        await made.links.listen()
    try:
        yield swarm
    finally:
        for network in swarm.networks:
            await network.close()
        for made in swarm.servers.values():
            await made.die()


async def until(condition: Any, *, timeout_s: float = 10.0) -> None:
    """Wait for a condition on objects of this process."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)
