"""Token mode: servers embed, sample and go on by themselves; the client gets the tokens one server alone would give."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from served_in_memory import CHUNK_TOKENS, MODEL, VOCAB, MemorySwarmOfServers, generated, served, until

from chainserve.errors import SessionLostError, SessionRefusedError
from chainserve.protocol.messages import Activations, Choice, FailureCode, Open, Opened, Sampled, Step, WireTensor
from chainserve.protocol.pages import page_hashes
from chainserve.protocol.sampling import Sampling
from chainserve.types import Chain, Span
from chainserve_client import opening
from chainserve_client.network import Network
from chainserve_client.opening import Request, open_line
from chainserve_client.token_session import TokenSession

WHOLE = {"a": Span(0, 8)}
PAIRS = {"a": Span(0, 4), "b": Span(4, 8), "c": Span(0, 4), "d": Span(4, 8)}
THREE = {"a": Span(0, 3), "b": Span(3, 6), "c": Span(6, 8)}
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6]
GREEDY = Sampling(num_prompt_tokens=len(PROMPT))
DRAWN = replace(GREEDY, temperature=3.0, seed=7)


async def session_of(
    network: Network,
    *,
    sampling: Sampling = GREEDY,
    prompt: Sequence[int] = PROMPT,
    num_tokens: int = 20,
    chain: Chain | None = None,
) -> TokenSession:
    ids = list(prompt)
    request = Request(
        model=MODEL,
        num_lanes=1,
        max_tokens=len(ids) + num_tokens - 1,
        timeout_s=20.0,
        chain=chain,
        sampling=sampling,
        ids=ids,
    )
    return TokenSession(await open_line(network, request), ids)


async def choices_of(session: TokenSession) -> list[Choice]:
    async with aclosing(session.tokens()) as choices:
        return [choice async for choice in choices]


async def answer(session: TokenSession) -> list[int]:
    tokens = [token for choice in await choices_of(session) for token in choice.ids]
    await session.close()
    return tokens


async def check_free(swarm: MemorySwarmOfServers) -> None:
    await until(lambda: not any(len(made.sessions) for made in swarm.servers.values()))
    swarm.check_free()


@pytest.mark.parametrize("spans", [WHOLE, {"a": Span(0, 4), "b": Span(4, 8)}, THREE], ids=str)
@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        DRAWN,
        replace(GREEDY, max_drafts=4),
        replace(DRAWN, max_drafts=4, top_k=3),
        replace(DRAWN, repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.3, max_drafts=3),
        replace(GREEDY, logit_bias=((7, 100.0),), num_logprobs=2),
        replace(GREEDY, end_tokens=tuple(range(0, VOCAB, 7))),
    ],
    ids=["greedy", "drawn", "drafted", "drawn and drafted", "penalties", "bias", "end tokens"],
)
async def test_a_chain_gives_what_one_server_alone_would(spans: dict[str, Span], sampling: Sampling) -> None:
    async with served(spans) as swarm:
        session = await session_of(await swarm.client(), sampling=sampling)
        assert await answer(session) == generated(PROMPT, sampling, num_tokens=20)
        await check_free(swarm)


async def test_many_sessions_at_once_each_get_their_own() -> None:
    async with served(THREE) as swarm:
        network = await swarm.client()
        prompts = [[first, *PROMPT[:first]] for first in range(1, 20)]
        wanted = [replace(DRAWN, num_prompt_tokens=len(prompt), max_drafts=3) for prompt in prompts]
        sessions = [
            await session_of(network, prompt=prompt, sampling=sampling)
            for prompt, sampling in zip(prompts, wanted, strict=True)
        ]
        answers = await asyncio.gather(*map(answer, sessions))
        assert answers == [generated(*pair, num_tokens=20) for pair in zip(prompts, wanted, strict=True)]
        await check_free(swarm)


async def test_the_client_is_not_in_the_loop() -> None:
    async with served(THREE) as swarm:
        await answer(await session_of(await swarm.client()))
        client = swarm.networks[0].swarm.peer_id
        received = swarm.servers["a"].received
        assert sum(isinstance(message, Open) for message in received) == 1
        assert sum(isinstance(message, Sampled) for message in received) == 20
        assert not any(isinstance(message, Activations) for message in received)
        assert client not in {peer for made in swarm.servers.values() for peer in (made.peer,)}


async def test_a_prompt_flows_through_the_chain_chunk_by_chunk() -> None:
    async with served(THREE) as swarm:
        await answer(await session_of(await swarm.client(), num_tokens=1))
        for name in "abc":
            steps = [step for batch in swarm.servers[name].runner.batches for step in batch]
            assert [step.num_tokens for step in steps] == [CHUNK_TOKENS, CHUNK_TOKENS, len(PROMPT) - 2 * CHUNK_TOKENS]
            assert [step.num_outputs for step in steps] == [0, 0, 1]


@pytest.mark.parametrize("max_drafts", [0, 6])
async def test_each_server_counts_the_tokens_of_an_answer_that_came_through_it(max_drafts: int) -> None:
    sampling = replace(GREEDY, max_drafts=max_drafts, logit_bias=((9, 1e4),))
    async with served(THREE) as swarm:
        assert await answer(await session_of(await swarm.client(), sampling=sampling)) == [9] * 20
        counts = {made.num_tokens for made in swarm.servers.values()}
    [num_tokens] = counts  # the last token goes nowhere, and drafts that were right at the end are not told
    assert 19 - max_drafts <= num_tokens <= 19


async def test_text_that_repeats_itself_takes_fewer_steps_with_drafts() -> None:
    prompt = [1, 2, 3, 4, 5] * 4
    steps = []
    for max_drafts in (0, 6):
        sampling = replace(GREEDY, num_prompt_tokens=len(prompt), max_drafts=max_drafts, logit_bias=((9, 1e4),))
        async with served(THREE) as swarm:  # always the same token: the first draft that is tried is right
            assert await answer(await session_of(await swarm.client(), prompt=prompt, sampling=sampling)) == [9] * 20
            steps.append(sum(len(batch) for batch in swarm.servers["b"].runner.batches))
    assert steps[1] < steps[0] / 2


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("sampling", [replace(GREEDY, max_drafts=4), DRAWN], ids=["greedy", "drawn"])
async def test_an_answer_survives_a_server_that_dies(position: int, sampling: Sampling) -> None:
    async with served(PAIRS) as swarm:
        swarm.plan(("ab", 1, 1.0), ("cd", 1, 2.0))
        session = await session_of(await swarm.client(), sampling=sampling, num_tokens=60)
        lost = swarm.servers["ab"[position]]
        tokens: list[int] = []
        async with aclosing(session.tokens()) as choices:
            async for choice in choices:
                tokens += choice.ids
                if len(tokens) >= 5 and not lost.is_dead:
                    lost.engine.is_held = True
                    await lost.die()
        assert tokens == generated(PROMPT, sampling, num_tokens=60)
        assert session.chain == swarm.chain("c", "d")
        [recovery] = session.recoveries
        assert recovery.peer == lost.peer
        assert recovery.num_tokens >= len(PROMPT) + 5
        await session.close()
        del swarm.servers["ab"[position]]
        await check_free(swarm)


async def test_a_server_that_leaves_hands_its_sessions_over() -> None:
    async with served(PAIRS) as swarm:
        swarm.plan(("ab", 1, 1.0), ("cd", 1, 2.0))
        session = await session_of(await swarm.client(), num_tokens=200)
        leaving = swarm.servers["b"].sessions
        tokens: list[int] = []
        async with aclosing(session.tokens()) as choices:
            async for choice in choices:
                tokens += choice.ids
                if len(tokens) == 3:
                    leaving.closed_because = "is leaving"
                    leaving.leave(leaving.outside(None))
        assert tokens == generated(PROMPT, GREEDY, num_tokens=200)
        assert session.chain == swarm.chain("c", "d")
        await session.close()
        await check_free(swarm)


async def test_a_client_that_has_enough_frees_the_chain() -> None:
    async with served(THREE) as swarm:
        session = await session_of(await swarm.client(), num_tokens=500)
        async with aclosing(session.tokens()) as choices:
            await anext(choices)
        await session.close()
        await check_free(swarm)


async def test_a_tail_that_makes_up_tokens_is_named() -> None:
    async with served({"a": Span(0, 4), "b": Span(4, 8)}) as swarm:
        session = await session_of(await swarm.client(), chain=swarm.chain("a", "b"), num_tokens=500)
        tail = swarm.servers["b"]
        async with aclosing(session.tokens()) as choices:
            first = await anext(choices)
            forged = Sampled((Choice(first.session, 3, (1,), is_last=False),))
            tail.outbox.post(swarm.networks[0].swarm.peer_id, forged)
            with pytest.raises(SessionLostError, match="not asked for") as caught:
                async for _ in choices:
                    pass
        assert caught.value.peer == tail.peer
        await session.close()
        await check_free(swarm)


@pytest.mark.parametrize("start", [0, len(PROMPT), 10_000])
async def test_a_head_takes_tokens_from_its_tail_only_and_only_those_that_are_due(start: int) -> None:
    async with served({"a": Span(0, 4), "b": Span(4, 8)}) as swarm:
        head, tail = swarm.servers["a"], swarm.servers["b"]
        head.engine.is_held = True  # nothing is due
        network = await swarm.client()
        session = await session_of(network, chain=swarm.chain("a", "b"))
        running = asyncio.create_task(answer(session))
        await until(lambda: any(isinstance(message, Open) for message in head.received))
        [session_id] = head.sessions.outside(None)
        forged = Sampled((Choice(session_id, start, (1,), is_last=False),))
        head.sessions.handle(network.swarm.peer_id, forged)  # from the client: no business of its
        assert len(head.sessions) == 1
        if start != len(PROMPT):
            head.sessions.handle(tail.peer, forged)
            with pytest.raises(SessionLostError, match="not due"):
                await running
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await session.close()
        await check_free(swarm)


async def test_what_a_prompt_may_be_is_checked_at_the_head() -> None:
    async with served({"a": Span(0, 4), "b": Span(4, 8)}) as swarm:
        network = await swarm.client()
        for prompt, num_tokens in (([VOCAB], 20), ([1] * 200, -100), ([], 20)):
            with pytest.raises(SessionRefusedError, match="a prompt") as caught:
                await session_of(network, prompt=prompt, num_tokens=num_tokens, chain=swarm.chain("a", "b"))
            assert caught.value.code == FailureCode.BAD_MESSAGE
        await check_free(swarm)


async def test_only_the_head_sees_the_prompt() -> None:
    async with served(THREE) as swarm:
        await answer(await session_of(await swarm.client()))
        openings = {name: [m for m in made.received if isinstance(m, Open)] for name, made in swarm.servers.items()}
        assert {name: [m.ids for m in each] for name, each in openings.items()} == {
            "a": [tuple(PROMPT)],
            "b": [()],
            "c": [()],
        }


async def test_a_head_begins_before_it_knows_that_the_chain_stands() -> None:
    async with served(THREE) as swarm:
        head, tail = swarm.servers["a"], swarm.servers["c"]
        handle = head.sessions.handle
        head.sessions.handle = lambda peer, message: None if isinstance(message, Opened) else handle(peer, message)  # type: ignore[method-assign]
        network = await swarm.client()
        assert await answer(await session_of(network)) == generated(PROMPT, GREEDY, num_tokens=20)
        assert sum(isinstance(message, Open) for message in tail.received) == 1
        await check_free(swarm)


@pytest.mark.parametrize(
    "change",
    [{"logit_bias": ((VOCAB, 1.0),)}, {"repetition_penalty": 1.5}],
    ids=["a bias beyond the vocabulary", "penalties with a prefix"],
)
async def test_what_a_sampler_cannot_do_is_refused_and_the_others_are_served_on(
    change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served({"a": Span(0, 4), "b": Span(4, 8)}) as swarm:
        network = await swarm.client()
        hashes = page_hashes(MODEL.digest, PROMPT)
        assert await answer(await session_of(network)) == generated(PROMPT, GREEDY, num_tokens=20)
        monkeypatch.setattr(opening, "prefix_of", lambda _: hashes)  # as a client that does not know better would
        with pytest.raises(SessionRefusedError) as caught:
            await session_of(network, sampling=replace(GREEDY, **change), chain=swarm.chain("a", "b"))
        assert caught.value.code == FailureCode.BAD_MESSAGE
        assert await answer(await session_of(network)) == generated(PROMPT, GREEDY, num_tokens=20)
        await check_free(swarm)


@pytest.mark.parametrize(
    ("step", "fault"),
    [
        ({"ids": (VOCAB,)}, "token 50 of a vocabulary of 50"),
        ({"num_tokens": 65, "num_outputs": 65, "ids": (1,) * 65}, "65 outputs"),
    ],
    ids=["a token beyond the vocabulary", "more outputs than memory is kept for"],
)
async def test_what_a_server_passes_on_is_checked_by_the_next(step: dict[str, Any], fault: str) -> None:
    async with served({"a": Span(0, 4), "b": Span(4, 8)}) as swarm:
        network = await swarm.client()
        session = await session_of(network, chain=swarm.chain("a", "b"), num_tokens=300)
        async with aclosing(session.tokens()) as choices:
            await anext(choices)
            tail = swarm.servers["b"]
            [session_id] = tail.sessions.outside(None)
            made = Step(session_id, 0, 1, 1, 1, tail.sessions._open[session_id].next_sequence)
            made = replace(made, **step)
            rows = bytes(16 * made.num_tokens)
            message = Activations((made,), WireTensor("float32", (made.num_tokens, 4), rows))
            tail.sessions.handle(swarm.servers["a"].peer, message)
            with pytest.raises(SessionLostError, match=fault):
                async for _ in choices:
                    pass
        await session.close()
        assert await answer(await session_of(network)) == generated(PROMPT, GREEDY, num_tokens=20)
        await check_free(swarm)


async def test_activations_into_a_session_in_token_mode_end_it() -> None:
    async with served({"a": Span(0, 4), "b": Span(4, 8)}) as swarm:
        for name, sender in (("a", None), ("b", swarm.servers["a"].peer)):
            network = await swarm.client(f"client{name}")
            session = await session_of(network, chain=swarm.chain("a", "b"), num_tokens=300)
            async with aclosing(session.tokens()) as choices:
                await anext(choices)
                server = swarm.servers[name]
                [session_id] = server.sessions.outside(None)
                sequence = server.sessions._open[session_id].next_sequence
                step = Step(session_id, 0, 1, 1, 1, sequence)
                message = Activations((step,), WireTensor("float32", (1, 4), bytes(16)))
                server.sessions.handle(sender or network.swarm.peer_id, message)
                with pytest.raises(SessionLostError, match="other mode"):
                    async for _ in choices:
                        pass
            await session.close()
        await check_free(swarm)
