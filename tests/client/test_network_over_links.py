"""The client among servers, over links in memory: it reads their plan, and takes the chain it is told."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from live_swarms import NOW, peer, plan_of, server

from chainserve.errors import LinkLostError, RecordError, RequestError, SessionRefusedError
from chainserve.protocol.messages import Failed, FailureCode, Message, Open, Opened
from chainserve.swarm.memory import MemoryHub, MemorySwarm
from chainserve.swarm.plans import SwarmPlan, record_of
from chainserve.swarm.rehearsal import MODEL_DIGEST
from chainserve.transport.exchange import Exchange
from chainserve.transport.links import Links
from chainserve.transport.memory import MemoryNetwork, MemoryTransport
from chainserve.types import Chain, Hop, PeerId, Span
from chainserve_client.blocking import Client, LoopThread
from chainserve_client.client import AsyncClient
from chainserve_client.network import ModelInSwarm, Network
from chainserve_client.status import Unreadable, read_plans
from chainserve_client.text_model import TextModel

A, B = peer("a"), peer("b")
MODEL = ModelInSwarm("org/model", MODEL_DIGEST, 8, "bfloat16")
BY_A, BY_B = (Chain((Hop(name, Span(0, 8)),)) for name in (A, B))


class FakeServer:
    """Opens every session as its only hop, or none, and hands out plans."""

    def __init__(self, me: PeerId, network: MemoryNetwork) -> None:
        self.refuses = False
        self.opened: list[Open] = []
        self.answers: list[asyncio.Task[None]] = []
        self.num_asked = 0
        self._me = me
        self.links = _links(me, network, self._handle)
        self.exchange = Exchange(self.links)

    def _handle(self, sender: PeerId, message: Message) -> None:
        if self.exchange.handle(sender, message):
            self.num_asked += 1
        elif isinstance(message, Open):
            self.opened.append(message)
            refusal = Failed(message.session, self._me, FailureCode.CACHE_FULL, "no room")
            answer = refusal if self.refuses else Opened(message.session)
            self.answers.append(asyncio.create_task(self.links.send(sender, answer)))


def _links(me: PeerId, network: MemoryNetwork, on_message: Any, **more: Any) -> Links:
    async def addresses_of(other: PeerId) -> list[str]:
        return [f"memory:{other}"]

    usual: dict[str, Any] = {"on_lost": lambda *_: None, "on_refused": lambda *_: None}
    transport = MemoryTransport(network, me)
    return Links(me, [transport], lookup=addresses_of, on_message=on_message, **usual | more)


class Scene:
    """Two servers that hold everything, and a client."""

    def __init__(self) -> None:
        wires = MemoryNetwork()
        self.hub = MemoryHub(clock=lambda: NOW)
        self.servers = {name: FakeServer(name, wires) for name in (A, B)}
        self.network = Network(MemorySwarm(self.hub, peer("client")))
        links = _links(
            peer("client"), wires, self.network.handle, on_lost=self.network.lost, on_refused=self.network.refused
        )
        self.network.connect_to(links)
        self.announcements = [server(name, Span(0, 8)) for name in "ab"]
        for announcement in self.announcements:
            self.hub.records[announcement.peer] = announcement, NOW + 30

    def publish(self, plan: SwarmPlan, *, inline: bool, digest: str | None = None) -> None:
        """Let A publish its plan; B has its bytes as well."""
        record = record_of(plan)
        record = replace(record, body=record.body if inline else None, digest=digest or record.digest)
        self.hub.plans[plan.planner] = record, NOW + 30
        for fake in self.servers.values():
            fake.exchange.keep(plan)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    for fake in made.servers.values():
        await fake.links.listen()
    yield made
    await made.network.close()
    for fake in made.servers.values():
        await fake.links.close()


def client_of(network: Network) -> AsyncClient:
    """One whose model knows 100 tokens and can run none of them."""
    text = SimpleNamespace(vocab_size=100, end_tokens=frozenset({2}))
    return AsyncClient(network, MODEL, cast(TextModel, text))


async def test_a_swarm_without_a_plan_has_none(scene: Scene) -> None:
    assert await client_of(scene.network).plan() is None


@pytest.mark.parametrize("inline", [True, False])
async def test_the_plan_is_read_from_its_record_or_fetched_once(scene: Scene, inline: bool) -> None:
    plan = plan_of(*scene.announcements)
    scene.publish(plan, inline=inline)
    client = client_of(scene.network)
    assert await client.plan() == plan
    assert await client.plan() == plan
    assert scene.servers[A].num_asked == (0 if inline else 1)
    later = replace(plan, epoch=2)
    scene.publish(later, inline=inline)
    assert await client.plan() == later


async def test_who_follows_a_plan_hands_it_out_when_its_planner_is_gone(scene: Scene) -> None:
    plan = plan_of(*scene.announcements)
    scene.publish(plan, inline=False)
    await scene.servers[A].links.close()
    assert await scene.network.plan(MODEL_DIGEST) == plan


async def test_a_plan_that_nobody_has_or_that_is_another_is_no_plan(scene: Scene) -> None:
    plan = plan_of(*scene.announcements)
    scene.publish(plan, inline=False, digest="another")
    with pytest.raises(LinkLostError, match="does not have the plan"):
        await scene.network.plan(MODEL_DIGEST)
    plans = await read_plans(scene.network, scene.network.swarm.view)
    assert isinstance(plans[MODEL_DIGEST], Unreadable)
    scene.publish(plan, inline=True, digest="another")
    with pytest.raises(RecordError, match="not those that its record names"):
        await scene.network.plan(MODEL_DIGEST)
    scene.publish(plan, inline=True)
    plans = await read_plans(scene.network, await scene.network.swarm.refresh())
    assert plans == {MODEL_DIGEST: plan}


async def test_a_session_opens_on_the_chain_it_is_told(scene: Scene) -> None:
    for chain in (BY_B, BY_A):
        session = await client_of(scene.network).open_session(num_lanes=1, max_tokens=5, chain=chain)
        assert session.chain == chain
        assert len(scene.servers[chain.head].opened) == 1


async def test_a_refusal_of_the_chain_it_is_told_is_raised_and_no_other_is_tried(scene: Scene) -> None:
    await scene.network.swarm.refresh()
    scene.servers[B].refuses = True
    client = client_of(scene.network)
    with pytest.raises(SessionRefusedError, match="no room") as caught:
        await client.generate([1, 2], chain=BY_B, max_new_tokens=3)
    assert caught.value.peer == B
    with pytest.raises(SessionRefusedError, match="no room"):
        async for _ in client.stream([1, 2], chain=BY_B):
            pass
    assert (len(scene.servers[B].opened), scene.servers[A].opened) == (2, [])
    session = await client.open_session(num_lanes=1, max_tokens=5)  # finds one that takes it
    assert session.chain == BY_A


async def test_a_server_of_the_chain_that_is_not_there_is_named(scene: Scene) -> None:
    gone = Chain((Hop(peer("z"), Span(0, 8)),))
    with pytest.raises(LinkLostError) as caught:
        await client_of(scene.network).open_session(num_lanes=1, max_tokens=5, chain=gone)
    assert caught.value.peer == peer("z")


async def test_a_chain_that_runs_other_blocks_than_the_model_has_is_refused(scene: Scene) -> None:
    short = Chain((Hop(A, Span(0, 7)),))
    with pytest.raises(RequestError, match="the chain runs 7 blocks, org/model has 8"):
        await client_of(scene.network).open_session(num_lanes=1, max_tokens=5, chain=short)
    assert scene.servers[A].opened == []


def test_the_blocking_client_takes_a_chain_and_reads_the_plan_as_well() -> None:
    told: list[Chain | None] = []
    plan = plan_of(server("a"), server("b"))

    class Refusing:
        async def open_on(self, chain: Chain, *_: object, **_options: object) -> None:
            told.append(chain)
            raise SessionRefusedError(B, "no room")

        async def plan_in_view(self, _model_digest: str) -> SwarmPlan | None:
            return None

        async def plan(self, model_digest: str) -> SwarmPlan | None:
            return plan if model_digest == MODEL_DIGEST else None

        async def close(self) -> None:
            pass

    with Client(client_of(cast(Network, Refusing())), LoopThread()) as client:
        assert client.plan() == plan
        for run in (client.generate, lambda *prompt, **options: list(client.stream(*prompt, **options))):
            with pytest.raises(SessionRefusedError, match="no room"):
                run([1, 2], chain=BY_B)
    assert told == [BY_B, BY_B]
