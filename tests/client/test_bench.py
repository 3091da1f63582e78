"""`chainserve bench`: when requests are sent, and what is taken of their answers."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from served_in_memory import MODEL, served, text_bundle

from chainserve.errors import ChainserveError
from chainserve.protocol.messages import Admit
from chainserve.runtime.virtual import VirtualLoop
from chainserve.types import Span
from chainserve_client.bench.load import Due
from chainserve_client.bench.progress import Progress
from chainserve_client.bench.run import INTERRUPTED, run
from chainserve_client.bench.targets import Arrival, swarm
from chainserve_client.bench.timing import Timed
from chainserve_client.client import AsyncClient
from chainserve_client.text_model import TextModel

ONE, OTHER = (("a", 0, 8),), (("b", 0, 8),)


def due(index: int = 0, arrival_s: float = 0.0, *, num_input: int = 7, num_output: int = 5) -> Due:
    return Due(index=index, arrival_s=arrival_s, num_input_tokens=num_input, num_output_tokens=num_output)


async def slowly(asked: Due) -> AsyncIterator[Arrival]:
    """First tokens after 10 s, the second request is lost on its second chain."""
    await asyncio.sleep(10)
    yield Arrival(num_tokens=1, chain=ONE)
    await asyncio.sleep(1)
    yield Arrival(num_tokens=2, chain=OTHER if asked.index == 1 else ONE)
    if asked.index == 1:
        raise ChainserveError("lost")
    yield Arrival(opened_s=4.0, chain=ONE)


def by_virtual_clock(*load: Due, cancel_after_s: float | None = None) -> list[Timed]:
    loop = VirtualLoop()
    progress = Progress(len(load))

    async def measure() -> None:
        running = asyncio.create_task(run(slowly, load, begin_s=loop.time(), clock=loop.time, observer=progress))
        if cancel_after_s is not None:
            await asyncio.sleep(cancel_after_s)
            running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    loop.run_until_complete(measure())
    loop.close()
    return progress.results()


def test_requests_are_sent_in_time_however_long_those_before_take() -> None:
    first, second = by_virtual_clock(due(0), due(1, 2.0))
    assert (first.arrival_s, first.first_s, first.total_s, first.between_s) == (0.0, 10.0, 11.0, (1.0,))
    assert (first.num_tokens, first.num_input_tokens, first.num_asked_tokens) == (3, 7, 5)
    assert (first.waited_s, first.service_s, first.slowdown, first.per_token_s) == (4.0, 7.0, 11 / 7, 1.1)
    assert (first.chain, first.retries, first.error) == (ONE, 0, None)
    assert (second.arrival_s, second.first_s, second.total_s, second.error) == (2.0, 10.0, 11.0, "lost")
    assert (second.chain, second.retries, second.waited_s) == (OTHER, 1, None)


def test_what_is_interrupted_ends_as_that_and_what_was_not_sent_has_not_been() -> None:
    ended, running = by_virtual_clock(due(0), due(1, 2.0), due(2, 50.0), cancel_after_s=12.5)
    assert (ended.index, ended.error) == (0, None)
    assert (running.index, running.error, running.num_tokens, running.total_s) == (1, INTERRUPTED, 1, 10.5)


def test_a_client_that_is_late_says_so() -> None:
    loop = VirtualLoop()
    progress = Progress(1)

    async def late(delay_s: float) -> None:
        await asyncio.sleep(delay_s + 0.25)

    loop.run_until_complete(run(slowly, [due()], begin_s=loop.time(), clock=loop.time, observer=progress, sleep=late))
    loop.close()
    [timed] = progress.results()
    assert (timed.late_s, timed.waited_s, timed.first_s) == (0.25, 4.25, 10.25)


def test_a_fault_of_the_target_itself_is_not_taken_for_an_answer() -> None:
    async def broken(_asked: Due) -> AsyncIterator[Arrival]:
        yield Arrival(num_tokens=1)
        raise KeyError("x")

    async def measure() -> None:
        await run(broken, [due()], begin_s=0.0, clock=asyncio.get_running_loop().time, observer=progress)

    progress = Progress(1)
    loop = VirtualLoop()
    with pytest.raises(ExceptionGroup):
        loop.run_until_complete(measure())
    loop.close()
    [timed] = progress.results()
    assert timed.error is not None


async def test_a_swarm_gets_prompts_of_the_length_due_and_tells_chains_and_losses() -> None:
    async with served({"a": Span(0, 8), "b": Span(0, 8)}) as servers:
        servers.plan(("a", 4, 1.0), ("b", 4, 1.0))
        by_peer = {str(made.peer): made for made in servers.servers.values()}
        client = AsyncClient(await servers.client(), MODEL, TextModel(MODEL.name, text_bundle()))
        inner = swarm(client, seed=0, timeout_s=20.0, max_drafts=0)
        lost: list[str] = []

        async def losing(asked: Due) -> AsyncIterator[Arrival]:
            async for arrival in inner(asked):
                if asked.index == 1 and arrival.chain and not lost:
                    lost.append(arrival.chain[0][0])
                    await by_peer[lost[0]].die()
                yield arrival

        progress = Progress(2)
        clock = asyncio.get_running_loop().time
        for index in range(2):
            load = [due(index, num_input=40, num_output=200)]
            await run(losing, load, begin_s=clock(), clock=clock, observer=progress)
        kept, moved = progress.results()
        received = [message for made in servers.servers.values() for message in made.received]
    assert {message.num_tokens for message in received if isinstance(message, Admit)} == {40 + 200 - 1}
    assert (kept.error, kept.num_tokens, kept.num_input_tokens, kept.retries) == (None, 200, 40, 0)
    assert [(peer, start, end) for peer, start, end in kept.chain] == [(kept.hops[0].peer, 0, 8)]
    assert kept.waited_s is not None
    assert kept.first_s is not None
    assert kept.total_s is not None
    assert 0 < kept.waited_s < kept.first_s < kept.total_s
    assert (moved.error, moved.num_tokens, moved.retries) == (None, 200, 1)
    assert [change.peer for change in moved.changes] == lost
    assert {moved.chain[0][0], *lost} == set(by_peer)


async def test_drafts_can_be_turned_off() -> None:
    async with served({"a": Span(0, 8)}) as servers:
        servers.plan(("a", 4, 1.0))
        client = AsyncClient(await servers.client(), MODEL, TextModel(MODEL.name, text_bundle()))
        progress = Progress(1)
        clock = asyncio.get_running_loop().time
        target = swarm(client, seed=0, timeout_s=20.0, max_drafts=0)
        await run(target, [due(num_output=20)], begin_s=clock(), clock=clock, observer=progress)
    assert progress.results()[0].num_tokens == 20


def test_the_line_of_figures_says_how_far_it_is() -> None:
    progress = Progress(4)
    assert progress.line(0.0) == "[....................] 0 of 4 sent, 0 running, 0 done, 0.0 tokens/s, 0:00"
    for _ in range(3):
        progress.sent()
    progress.first(0.5)
    progress.first(2.0)
    progress.came(30)
    progress.ended(Timed(index=0, arrival_s=0.0))
    progress.ended(Timed(index=2, arrival_s=0.0, error="lost"))
    assert progress.line(65.0) == (
        "[##########..........] 3 of 4 sent, 1 running, 1 done, 1 failed, 0.5 tokens/s, first token 1.25 s, 1:05"
    )
