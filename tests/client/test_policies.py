"""Rules of dispatch for benchmarks, over servers in memory: who goes where, who waits, who tries again."""

import asyncio
from dataclasses import replace

import pytest
from live_swarms import NOW, plan_of, server
from served_in_memory import MODEL, MemorySwarmOfServers, served, until

from chainserve.errors import RequestError
from chainserve.protocol.messages import Admit
from chainserve.swarm.plans import SwarmPlan, record_of
from chainserve.types import Span
from chainserve_client.lifeline import Lifeline
from chainserve_client.network import Network
from chainserve_client.opening import Request, open_line
from chainserve_client.policies.bprr import BprrDispatch
from chainserve_client.policies.petals import PetalsDispatch, PetalsRouter
from chainserve_client.policies.rules import DISPATCHES, JFFC, Dispatch, make_dispatch

SPANS = {"a": Span(0, 8), "b": Span(0, 4), "c": Span(4, 8)}


def routed(plan: SwarmPlan) -> SwarmPlan:
    """The same without chains."""
    rule = replace(plan.inputs.rule, has_chains=False)
    return replace(plan, chains=(), inputs=replace(plan.inputs, rule=rule))


def follow_without_chains(swarm: MemorySwarmOfServers) -> None:
    """Let clients see a plan that leaves cache to routes."""
    plan = routed(swarm.plan(("a", 1, 1.0)))
    swarm.hub.plans[plan.planner] = record_of(plan), NOW + 30
    for made in swarm.servers.values():
        made.sessions.follow(plan.epoch, [])


async def open_with(
    network: Network, dispatch: Dispatch, *, max_tokens: int = 100, timeout_s: float = 20.0
) -> Lifeline:
    request = Request(model=MODEL, num_lanes=1, max_tokens=max_tokens, timeout_s=timeout_s, dispatch=dispatch)
    return await open_line(network, request)


@pytest.mark.parametrize("name", DISPATCHES)
async def test_sessions_open_under_every_rule_and_leave_nothing_behind(name: str) -> None:
    async with served(SPANS) as swarm:
        if name in ("petals", "bprr"):
            follow_without_chains(swarm)
        else:
            swarm.plan(("a", 2, 1.0), ("bc", 2, 2.0))
        network = await swarm.client()
        dispatch = make_dispatch(name, network, MODEL)
        await dispatch.prepare()
        lines = await asyncio.gather(*(open_with(network, dispatch) for _ in range(2)))
        for line in lines:
            await line.close()
        await until(lambda: all(len(made.sessions) == 0 for made in swarm.servers.values()))
        swarm.check_free()


def test_rules_of_other_names_are_refused_with_those_there_are() -> None:
    with pytest.raises(RequestError, match="jffc, petals, bprr, sed, jsq, random"):
        make_dispatch("best", network=None, model=MODEL)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["petals", "sed"])
async def test_rule_and_plan_have_to_be_of_one_system(name: str) -> None:
    async with served(SPANS) as swarm:
        if name == "sed":
            follow_without_chains(swarm)
        else:
            swarm.plan(("a", 2, 1.0))
        network = await swarm.client()
        with pytest.raises(RequestError, match="--bench-chains"):
            await open_with(network, make_dispatch(name, network, MODEL))


async def test_sed_and_jsq_wait_at_the_chain_they_joined_while_ours_takes_the_free_one() -> None:
    async with served(SPANS) as swarm:
        plan = swarm.plan(("a", 1, 1.0), ("bc", 1, 100.0))
        room = plan.inputs.slot_tokens
        network = await swarm.client()
        first = await open_with(network, make_dispatch(JFFC, network, MODEL), max_tokens=room)
        assert first.current.chain == swarm.chain("a")
        sed = asyncio.create_task(open_with(network, make_dispatch("sed", network, MODEL), max_tokens=room))
        await until(lambda: any(isinstance(m, Admit) for m in swarm.servers["b"].received))
        await until(lambda: swarm.servers["a"].sessions.places.num_waiting == 1)
        second = await open_with(network, make_dispatch(JFFC, network, MODEL), max_tokens=room)
        assert second.current.chain == swarm.chain("b", "c")
        await first.close()
        assert (await sed).current.chain == swarm.chain("a")
        await (await sed).close()
        await second.close()


async def test_petals_goes_around_who_refused_for_a_while_and_pauses_longer_each_time() -> None:
    async with served(SPANS) as swarm:
        network = await swarm.client()
        now_s = [0.0]
        dispatch = PetalsDispatch(network, MODEL, clock=lambda: now_s[0])
        router = dispatch.router(num_tokens=100)
        assert isinstance(router, PetalsRouter)
        servers = network.usable(MODEL.digest)
        assert router.fastest(servers) == swarm.chain("a")  # one hop
        assert router.refused(swarm.servers["a"].peer) == 0.0
        assert router.fastest(servers) == swarm.chain("b", "c")
        assert router.refused(swarm.servers["b"].peer) == 1.0
        assert router.fastest(servers) == swarm.chain("a")  # all are banned: as if none was
        now_s[0] = 16.0
        assert router.fastest(servers) == swarm.chain("a")
        assert router.refused(swarm.servers["a"].peer) == 2.0


async def test_petals_avoids_servers_that_announce_too_little_cache() -> None:
    async with served(SPANS) as swarm:
        network = await swarm.client()
        router = PetalsDispatch(network, MODEL).router(num_tokens=100)
        assert isinstance(router, PetalsRouter)
        a = swarm.servers["a"].peer
        servers = [replace(s, free_tokens=99 if s.peer == a else s.free_tokens) for s in network.usable(MODEL.digest)]
        assert router.fastest(servers) == swarm.chain("b", "c")


def bprr_scene() -> tuple[BprrDispatch, list[float], SwarmPlan]:
    now_s = [0.0]
    return BprrDispatch(MODEL, clock=lambda: now_s[0]), now_s, plan_of(*BPRR_SERVERS)


BPRR_SERVERS = [
    server("a", Span(0, 8), speed=4.0, cache_tokens=250, free_tokens=250),
    server("b", Span(0, 8), speed=1.0, cache_tokens=250, free_tokens=250),
]


async def test_bprr_takes_the_slow_server_once_waiting_for_the_fast_one_costs_more() -> None:
    dispatch, now_s, plan = bprr_scene()
    fast, slow = (one.peer for one in BPRR_SERVERS)
    heads = [dispatch.choose(BPRR_SERVERS, plan, num_tokens=100).head for _ in range(12)]
    assert heads[:3] == [fast, fast, fast]  # two at once, and one that waits
    assert slow in heads
    now_s[0] = 1e6  # all are believed to have ended
    assert dispatch.choose(BPRR_SERVERS, plan, num_tokens=100).head == fast


async def test_bprr_takes_others_sessions_to_end_by_and_by() -> None:
    dispatch, _, plan = bprr_scene()
    full = [replace(BPRR_SERVERS[0], free_tokens=0, num_sessions=1), BPRR_SERVERS[1]]
    empty = dispatch.choose(full, plan, num_tokens=250)
    assert empty.head == BPRR_SERVERS[0].peer  # half a service time of the fast one is less than the slow one's all


async def test_bprr_opens_in_order_and_keeps_its_turn_while_there_is_no_room() -> None:
    async with served({"a": Span(0, 8)}, cache_tokens=150) as swarm:
        network = await swarm.client()
        dispatch = make_dispatch("bprr", network, MODEL)
        first = await open_with(network, dispatch)
        order: list[int] = []

        async def wait(number: int) -> None:
            line = await open_with(network, dispatch)
            order.append(number)
            await line.close()

        waiting = []
        for number in range(3):
            waiting.append(asyncio.create_task(wait(number)))
            await asyncio.sleep(0)
        assert order == []
        await first.close()
        await asyncio.gather(*waiting)
        assert order == [0, 1, 2]
        swarm.check_free()
