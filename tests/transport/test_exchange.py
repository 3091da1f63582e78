"""Plans from peer to peer over links in memory: from whom they are had, and what those who ask are told."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast

import pytest
from pairs import Peer, session, until

from chainserve.errors import PeerError
from chainserve.protocol.messages import Answer, Ask, Close, Message, Topic
from chainserve.runtime.virtual import VirtualLoop
from chainserve.swarm.plans import PlanRecord, SwarmPlan
from chainserve.swarm.records import Announcement, ServerState
from chainserve.swarm.view import View
from chainserve.transport.exchange import ANSWER_S, MAX_ASKED, MAX_OWED, NUM_KEPT, Exchange
from chainserve.transport.memory import MemoryNetwork, MemoryTransport
from chainserve.types import PeerId, Span

EPOCH, MODEL = 7, "digest-of-the-model"
ME, PLANNER, FIRST, SECOND = (PeerId(name) for name in ("me", "planner", "first", "second"))


class Follower:
    """A peer that hands out plans and fetches them, and remembers what came."""

    def __init__(self, peer: Peer) -> None:
        self.links = peer.links
        self.exchange = Exchange(peer.links, answers={Topic.TEXT: self._text})
        self.text_is_ready = asyncio.Event()
        self.taken: list[tuple[PeerId, Message]] = []
        self.is_deaf = False
        self._peer = peer

    async def run(self) -> None:
        while True:
            peer, message = await self._peer.messages.get()
            self.taken.append((peer, message))
            if not self.is_deaf:
                assert self.exchange.handle(peer, message)

    async def _text(self, model: str) -> bytes:
        await self.text_is_ready.wait()
        return b"text of " + model.encode()

    @property
    def asked_by(self) -> list[PeerId]:
        return [peer for peer, message in self.taken if isinstance(message, Ask)]


def plan(number: int, *, body: bytes | None = None) -> SwarmPlan:
    """As far as an exchange looks at one."""
    return cast(SwarmPlan, SimpleNamespace(digest=f"digest-{number}", body=body or b"plan %d" % number * 1000))


def record(number: int) -> PlanRecord:
    return PlanRecord(planner=PLANNER, epoch=EPOCH, model_digest=MODEL, digest=plan(number).digest, body=None)


def view_of(*peers: PeerId, **change: Any) -> View:
    """Servers that follow the plan, but for what is changed."""
    servers = {peer: announcement(peer, **change) for peer in peers}
    return View(servers=MappingProxyType(servers))


def announcement(peer: PeerId, **change: Any) -> Announcement:
    fields: dict[str, Any] = {
        "peer": peer,
        "state": ServerState.ONLINE,
        "model": "tiny",
        "model_digest": MODEL,
        "num_blocks": 6,
        "span": Span(0, 6),
        "dtype": "float32",
        "cache_tokens": 0,
        "free_tokens": 0,
        "addresses": (),
        "version": "1",
        "started_at": 0.0,
        "epoch": EPOCH,
    }
    return Announcement(**fields | change)


class Swarm:
    """Peers that reach each other."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._network = MemoryNetwork()
        self._directory: dict[PeerId, Peer] = {}

    async def add(self, name: PeerId, *plans: SwarmPlan) -> Follower:
        """One that hands these plans out."""
        peer = Peer(name, [MemoryTransport(self._network, name)], self._directory)
        await peer.links.listen()
        self._stack.push_async_callback(peer.links.close)
        follower = Follower(peer)
        running = asyncio.create_task(follower.run())

        async def stop() -> None:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running

        self._stack.push_async_callback(stop)
        for item in plans:
            follower.exchange.keep(item)
        return follower


@pytest.fixture
def swarm(stack: AsyncExitStack) -> Swarm:
    return Swarm(stack)


def in_no_time(scenario: Callable[[Swarm], Awaitable[None]]) -> None:
    """Run a test in which deadlines pass, and nothing else takes time."""

    async def run() -> None:
        async with AsyncExitStack() as stack:
            await scenario(Swarm(stack))

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(run())


async def test_a_plan_comes_from_its_planner(swarm: Swarm) -> None:
    me, planner, first = await swarm.add(ME), await swarm.add(PLANNER, plan(1)), await swarm.add(FIRST, plan(1))
    assert await me.exchange.fetch(record(1), view_of(FIRST, PLANNER)) == plan(1).body
    assert (planner.asked_by, first.asked_by) == ([ME], [])


async def test_where_the_planner_is_gone_one_that_follows_it_is_asked(swarm: Swarm) -> None:
    me, first = await swarm.add(ME), await swarm.add(FIRST, plan(1))
    assert await me.exchange.fetch(record(1), view_of(FIRST)) == plan(1).body
    assert first.asked_by == [ME]


async def test_one_that_does_not_have_it_says_so_and_the_next_is_asked(swarm: Swarm) -> None:
    me, planner, first = await swarm.add(ME), await swarm.add(PLANNER, plan(2)), await swarm.add(FIRST, plan(1))
    assert await me.exchange.fetch(record(1), view_of(FIRST, PLANNER)) == plan(1).body
    assert (PLANNER, Answer(Topic.PLAN, "digest-1", b"")) in me.taken
    assert (planner.asked_by, first.asked_by) == ([ME], [ME])


def test_one_that_does_not_answer_is_given_up() -> None:
    async def scenario(swarm: Swarm) -> None:
        me = await swarm.add(ME)
        planner, first = await swarm.add(PLANNER, plan(1)), await swarm.add(FIRST, plan(1))
        planner.is_deaf = True
        began_s = asyncio.get_running_loop().time()
        assert await me.exchange.fetch(record(1), view_of(FIRST, PLANNER)) == plan(1).body
        assert (planner.asked_by, first.asked_by) == ([ME], [ME])
        assert asyncio.get_running_loop().time() - began_s == pytest.approx(ANSWER_S, abs=0.01)

    in_no_time(scenario)


def test_the_error_names_who_was_asked_last_and_why_that_failed() -> None:
    async def scenario(swarm: Swarm) -> None:
        me, first = await swarm.add(ME), await swarm.add(FIRST)
        with pytest.raises(PeerError, match="first: does not have the plan"):
            await me.exchange.fetch(record(1), view_of(FIRST))
        first.is_deaf = True
        with pytest.raises(PeerError, match="first: no answer within 5 s"):
            await me.exchange.fetch(record(1), view_of(FIRST))
        with pytest.raises(PeerError, match="planner: "):
            await me.exchange.fetch(record(1), view_of())

    in_no_time(scenario)


async def test_only_so_many_are_asked(swarm: Swarm) -> None:
    me = await swarm.add(ME)
    others = [await swarm.add(PeerId(f"peer-{number}")) for number in range(MAX_ASKED + 1)]
    with pytest.raises(PeerError):
        await me.exchange.fetch(record(1), view_of(*(PeerId(f"peer-{number}") for number in range(MAX_ASKED + 1))))
    assert [len(other.asked_by) for other in others] == [1] * (MAX_ASKED - 1) + [0, 0]


@pytest.mark.parametrize("change", [{"epoch": EPOCH - 1}, {"model_digest": "other"}])
async def test_those_that_follow_another_plan_are_not_asked(swarm: Swarm, change: dict[str, Any]) -> None:
    me, first = await swarm.add(ME), await swarm.add(FIRST, plan(1))
    with pytest.raises(PeerError):
        await me.exchange.fetch(record(1), view_of(FIRST, **change))
    assert first.asked_by == []


async def test_the_bytes_are_not_checked_here(swarm: Swarm) -> None:
    me, _ = await swarm.add(ME), await swarm.add(PLANNER, plan(1, body=b"forged"))
    assert await me.exchange.fetch(record(1), view_of(PLANNER)) == b"forged"


async def test_only_the_last_plans_are_handed_out(swarm: Swarm) -> None:
    me, planner = await swarm.add(ME), await swarm.add(PLANNER)
    for number in range(NUM_KEPT):
        planner.exchange.keep(plan(number))
    planner.exchange.keep(plan(0))  # again: it is no longer the oldest
    planner.exchange.keep(plan(NUM_KEPT))
    with pytest.raises(PeerError):
        await me.exchange.fetch(record(1), view_of(PLANNER))
    for number in (0, *range(2, NUM_KEPT + 1)):
        assert await me.exchange.fetch(record(number), view_of(PLANNER)) == plan(number).body


async def test_plans_that_nobody_asked_for_change_nothing(swarm: Swarm) -> None:
    me, planner, first = await swarm.add(ME), await swarm.add(PLANNER, plan(1)), await swarm.add(FIRST)
    forged = Answer(Topic.PLAN, plan(1).digest, b"forged")
    await first.links.connect(ME)
    await first.links.send(ME, forged)
    await until(lambda: (FIRST, forged) in me.taken)
    planner.is_deaf = True
    fetching = asyncio.create_task(me.exchange.fetch(record(1), view_of(PLANNER)))
    await until(lambda: planner.asked_by)
    await first.links.send(ME, forged)
    await planner.links.send(ME, Answer(Topic.PLAN, plan(2).digest, b"another"))
    await until(lambda: len(me.taken) == 3)
    assert not fetching.done()
    await planner.links.send(ME, Answer(Topic.PLAN, plan(1).digest, plan(1).body))
    assert await fetching == plan(1).body
    await planner.links.send(ME, forged)
    await until(lambda: len(me.taken) == 5)


async def test_two_may_wait_for_the_same_plan(swarm: Swarm) -> None:
    me, _ = await swarm.add(ME), await swarm.add(PLANNER, plan(1))
    bodies = await asyncio.gather(*(me.exchange.fetch(record(1), view_of(PLANNER)) for _ in range(2)))
    assert bodies == [plan(1).body] * 2


async def test_who_gives_up_waiting_leaves_nothing_behind(swarm: Swarm) -> None:
    me, planner = await swarm.add(ME), await swarm.add(PLANNER, plan(1))
    planner.is_deaf = True
    fetching = asyncio.create_task(me.exchange.fetch(record(1), view_of(PLANNER)))
    await until(lambda: planner.asked_by)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    await planner.links.send(ME, Answer(Topic.PLAN, plan(1).digest, b"late"))
    await until(lambda: me.taken)
    planner.is_deaf = False
    assert await me.exchange.fetch(record(1), view_of(PLANNER)) == plan(1).body


async def test_who_asks_and_is_gone_gets_no_answer_and_others_do(swarm: Swarm) -> None:
    me, planner = await swarm.add(ME), await swarm.add(PLANNER, plan(1))
    planner.exchange.handle(PeerId("gone"), Ask(Topic.PLAN, plan(1).digest))
    assert await me.exchange.fetch(record(1), view_of(PLANNER)) == plan(1).body


async def test_other_messages_are_left_to_others(swarm: Swarm) -> None:
    me = await swarm.add(ME)
    assert not me.exchange.handle(PLANNER, Close(session(1)))


async def test_other_things_are_found_by_those_who_have_them(swarm: Swarm) -> None:
    me, first = await swarm.add(ME), await swarm.add(FIRST)
    first.text_is_ready.set()
    assert await me.exchange.ask(FIRST, Topic.TEXT, "model") == b"text of model"
    assert await me.exchange.ask(FIRST, Topic.VIEW, "1") == b""  # it has none to show


async def test_what_is_not_ready_holds_up_nothing_else(swarm: Swarm) -> None:
    me, planner = await swarm.add(ME), await swarm.add(PLANNER, plan(1))
    text = asyncio.create_task(me.exchange.ask(PLANNER, Topic.TEXT, "model"))
    assert await me.exchange.fetch(record(1), view_of(PLANNER)) == plan(1).body
    planner.text_is_ready.set()
    assert await text == b"text of model"


async def test_who_asks_for_too_much_at_once_gets_no_more_than_so_many_answers(swarm: Swarm) -> None:
    me, first = await swarm.add(ME), await swarm.add(FIRST)
    asking = [asyncio.create_task(me.exchange.ask(FIRST, Topic.TEXT, f"{n}")) for n in range(MAX_OWED + 3)]
    await until(lambda: len(first.asked_by) == len(asking))
    first.text_is_ready.set()
    await until(lambda: sum(task.done() for task in asking) == MAX_OWED)
    assert await me.exchange.ask(FIRST, Topic.TEXT, "again") == b"text of again"
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
