"""A swarm in memory with the server's own table of sessions and places: only blocks and the network are replaced.

A block turns rows x into half the sum of all rows of its lane up to each, plus one: so that every output shows the
lane's whole history, over whichever servers it came.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from live_swarms import NOW, NUM_BLOCKS, peer, plan_of, server

from chainserve.models.cache import KVCache
from chainserve.models.wire import from_wire, to_wire
from chainserve.planning.values import Placement, PlannedChain
from chainserve.protocol.messages import Activations, Message
from chainserve.protocol.places import Places
from chainserve.swarm.memory import MemoryHub, MemorySwarm
from chainserve.swarm.plans import SwarmPlan, record_of
from chainserve.swarm.rehearsal import MODEL_DIGEST
from chainserve.transport.links import Links, Timing
from chainserve.transport.memory import MemoryNetwork, MemoryTransport
from chainserve.transport.outbox import Outbox
from chainserve.types import Chain, Hop, PeerId, SessionId, Span
from chainserve_client.network import ModelInSwarm, Network
from chainserve_server.admission import head_chains
from chainserve_server.engine import Item, Reordering, outgoing
from chainserve_server.sessions import Sessions

HIDDEN = 4
MODEL = ModelInSwarm("org/model", MODEL_DIGEST, NUM_BLOCKS, "float32")
TIMING = Timing(heartbeat_s=0.05, timeout_s=0.5, connect_s=0.3)
Sums = torch.Tensor  # (tokens, hidden): of a lane's rows up to each


def block(rows: torch.Tensor, before: Sums) -> tuple[torch.Tensor, Sums]:
    """A block's outputs for new rows, and the sums of its lane with them."""
    last = before[-1:] if len(before) else torch.zeros(1, HIDDEN)
    sums = last + rows.cumsum(0)
    return sums / 2 + 1, torch.cat([before, sums])


def whole_model(rows: torch.Tensor) -> torch.Tensor:
    """What all blocks give for a lane's rows."""
    for _ in range(NUM_BLOCKS):
        rows, _ = block(rows, rows[:0])
    return rows


class SumEngine:
    """Stands for the engine: runs what it is given at once, unless it is held."""

    def __init__(self, span: Span, *, budget_tokens: int) -> None:
        self.cache = KVCache(span, budget_tokens=budget_tokens)
        self.sessions: Sessions  # set once made
        self.is_held = False
        self._sums: dict[SessionId, dict[tuple[int, int], Sums]] = {}  # by lane and block

    def add(self, item: Item) -> None:
        if self.is_held:
            return
        if isinstance(item, Reordering):
            sums = self._sums.get(item.message.session, {})
            sources = item.message.sources
            self._sums[item.message.session] = {
                (lane, block): sums[source, block]
                for lane, source in enumerate(sources)
                for block in range(NUM_BLOCKS)
                if (source, block) in sums
            }
            if item.receiver is not None:
                self.sessions.emit(item.receiver, item.message)
            return
        step, sums = item.step, self._sums.setdefault(item.step.session, {})
        rows = from_wire(item.hidden, dtype=torch.float32, device=torch.device("cpu"))
        for number in item.span:
            before = sums.get((step.lane, number), rows[:0])[: step.start]
            rows, sums[step.lane, number] = block(rows, before)
        if item.is_tail and not step.num_outputs:
            return
        step, rows = outgoing(item, rows)
        self.sessions.emit(item.receiver, Activations((step,), to_wire(rows)))

    def release(self, session: SessionId) -> None:
        self._sums.pop(session, None)
        self.cache.release(session)


class MemoryServer:
    """One server: sessions, places, links."""

    def __init__(self, name: str, span: Span, wires: MemoryNetwork, *, cache_tokens: int) -> None:
        self.peer = peer(name)
        self.span = span
        self.announcement = server(name, span, pinned=True, cache_tokens=cache_tokens, free_tokens=cache_tokens)
        self.engine = SumEngine(span, budget_tokens=cache_tokens)
        self.links = links_of(self.peer, wires, self._handle, self._lost)
        self.outbox = Outbox(self.links, on_lost=self._lost)
        self.received: list[Message] = []
        self.sessions = self.engine.sessions = Sessions(
            self.peer,
            model=MODEL_DIGEST,
            hidden_size=HIDDEN,
            engine=cast(Any, self.engine),
            post=self.outbox.post,
            places=Places(self.peer),
        )
        self.sessions.span = span
        self.sessions.closed_because = None

    def _handle(self, sender: PeerId, message: Message) -> None:
        self.received.append(message)
        self.sessions.handle(sender, message)

    def _lost(self, other: PeerId, reason: str) -> None:
        self.outbox.forget(other)
        self.sessions.lost(other, reason)

    async def die(self) -> None:
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
