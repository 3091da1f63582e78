"""Prompts that begin alike: what they share is computed once, on every server of the chain."""

import asyncio
from dataclasses import replace

import pytest
from served_in_memory import MemorySwarmOfServers, generated, served, until
from test_token_mode import DRAWN, GREEDY, THREE, answer, check_free, session_of

from chainserve.protocol.messages import Open
from chainserve.protocol.pages import PAGE_TOKENS
from chainserve.protocol.sampling import Sampling

COMMON = [number * number % 47 for number in range(5 * PAGE_TOKENS)]
PROMPTS = [[*COMMON, *([number] * 3)] for number in range(8)]


def sampling_of(prompt: list[int], base: Sampling = GREEDY) -> Sampling:
    return replace(base, num_prompt_tokens=len(prompt))


def num_run(swarm: MemorySwarmOfServers, name: str) -> int:
    """Tokens that went through a server's blocks."""
    return sum(step.num_tokens for batch in swarm.servers[name].runner.batches for step in batch)


async def answer_to(swarm: MemorySwarmOfServers, prompt: list[int], sampling: Sampling, num_tokens: int = 6) -> None:
    network = swarm.networks[0]
    session = await session_of(network, prompt=prompt, sampling=sampling, num_tokens=num_tokens)
    assert await answer(session) == generated(prompt, sampling, num_tokens=num_tokens)


@pytest.mark.parametrize("base", [GREEDY, replace(DRAWN, max_drafts=3)], ids=["greedy", "drawn"])
async def test_the_second_prompt_computes_what_is_new(base: Sampling) -> None:
    async with served(THREE) as swarm:
        await swarm.client()
        await answer_to(swarm, PROMPTS[0], sampling_of(PROMPTS[0], base))
        before = {name: num_run(swarm, name) for name in "abc"}
        await answer_to(swarm, PROMPTS[1], sampling_of(PROMPTS[1], base))
        for name in "abc":
            assert num_run(swarm, name) - before[name] <= 3 + 5 * 4
        await check_free(swarm)


async def test_what_one_server_has_not_all_of_them_compute() -> None:
    async with served(THREE) as swarm:
        await swarm.client()
        await answer_to(swarm, PROMPTS[0], sampling_of(PROMPTS[0]))
        pages = swarm.servers["b"].runner.cache.pages
        last = [page for page, block in pages if block == 3][-1]
        for key in [key for key in pages if key[0] == last]:
            del pages[key]
        before = {name: num_run(swarm, name) for name in "abc"}
        await answer_to(swarm, PROMPTS[1], sampling_of(PROMPTS[1]))
        assert {num_run(swarm, name) - before[name] for name in "abc"} == {PAGE_TOKENS + 3 + 5}


async def test_the_next_turn_of_a_conversation_computes_what_is_new() -> None:
    async with served(THREE) as swarm:
        network = await swarm.client()
        first = sampling_of(PROMPTS[0])
        session = await session_of(network, prompt=PROMPTS[0], sampling=first, num_tokens=40)
        said = await answer(session)
        turn = [*PROMPTS[0], *said, 7, 7]
        before = num_run(swarm, "b")
        await answer_to(swarm, turn, sampling_of(turn))
        assert num_run(swarm, "b") - before <= 2 * PAGE_TOKENS + 5


async def test_eight_at_once_compute_it_once() -> None:
    async with served(THREE) as swarm:
        await swarm.client()
        await asyncio.gather(*(answer_to(swarm, prompt, sampling_of(prompt)) for prompt in PROMPTS))
        for name in "abc":
            assert num_run(swarm, name) == len(COMMON) + 8 * (3 + 5)
        await check_free(swarm)


async def test_who_waits_for_a_prefix_is_let_in_when_the_first_gives_up_and_may_give_up_too() -> None:
    async with served(THREE) as swarm:
        network = await swarm.client()
        for made in swarm.servers.values():
            made.engine.is_held = True
        first = await session_of(network, prompt=PROMPTS[0], sampling=sampling_of(PROMPTS[0]), num_tokens=6)
        running = asyncio.create_task(answer(first))
        received = swarm.servers["a"].received
        await until(lambda: any(isinstance(message, Open) for message in received))
        openings = [
            asyncio.create_task(session_of(network, prompt=prompt, sampling=sampling_of(prompt), num_tokens=6))
            for prompt in PROMPTS[1:3]
        ]
        await until(lambda: sum(isinstance(message, Open) for message in received) == 3)
        assert not any(opening.done() for opening in openings)
        openings[0].cancel()
        await asyncio.gather(openings[0], return_exceptions=True)
        for made in swarm.servers.values():
            made.engine.is_held = False
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await first.close()
        second = await openings[1]
        assert await answer(second) == generated(PROMPTS[2], sampling_of(PROMPTS[2]), num_tokens=6)
        await check_free(swarm)


async def test_an_opening_that_is_repeated_while_it_waits_does_not_get_a_place_twice() -> None:
    async with served(THREE) as swarm:
        swarm.plan(("abc", 2, 1.0))
        network = await swarm.client()
        for made in swarm.servers.values():
            made.engine.is_held = True
        first = await session_of(network, prompt=PROMPTS[0], sampling=sampling_of(PROMPTS[0]), num_tokens=6)
        running = asyncio.create_task(answer(first))
        head = swarm.servers["a"]
        await until(lambda: any(isinstance(message, Open) for message in head.received))
        waiting = asyncio.create_task(
            session_of(network, prompt=PROMPTS[1], sampling=sampling_of(PROMPTS[1]), num_tokens=6)
        )
        await until(lambda: sum(isinstance(message, Open) for message in head.received) == 2)
        again = [message for message in head.received if isinstance(message, Open)][-1]
        head.sessions.handle(network.swarm.peer_id, again)
        assert head.sessions.places.num_held == 2
        waiting.cancel()
        running.cancel()
        await asyncio.gather(waiting, running, return_exceptions=True)
        await first.close()
        await check_free(swarm)


async def test_requests_with_penalties_compute_their_whole_prompt() -> None:
    async with served(THREE) as swarm:
        await swarm.client()
        await answer_to(swarm, PROMPTS[0], sampling_of(PROMPTS[0]))
        before = num_run(swarm, "c")
        penalized = replace(sampling_of(PROMPTS[0]), repetition_penalty=1.5)
        await answer_to(swarm, PROMPTS[0], penalized)
        assert num_run(swarm, "c") - before == len(PROMPTS[0]) + 5
