"""Answers held to a grammar over a swarm: the tail follows it, whoever is lost, and nobody else notices."""

import asyncio
import json
import threading
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from served_in_memory import (
    ALPHABET,
    MODEL,
    VOCAB,
    MemorySwarmOfServers,
    generated,
    served,
    text_bundle,
    until,
)

from chainserve.errors import GrammarError, SessionLostError, SessionRefusedError
from chainserve.models.grammars import Grammars
from chainserve.protocol.messages import Close, FailureCode, Open
from chainserve.protocol.pages import PAGE_TOKENS
from chainserve.protocol.sampling import Sampling
from chainserve.types import PeerId, SessionId, Span
from chainserve_client.network import Network
from chainserve_client.opening import Request, open_line, prefix_of
from chainserve_client.token_session import TokenSession
from chainserve_server.grammars import GrammarQueue

PAIRS = {"a": Span(0, 4), "b": Span(4, 8), "c": Span(0, 4), "d": Span(4, 8)}
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6]
SCHEMA = {"type": "array", "items": {"type": "string", "maxLength": 3}, "minItems": 4, "maxItems": 6}
GRAMMAR = "start: %json " + json.dumps(SCHEMA)
END = VOCAB - 1
HELD = Sampling(num_prompt_tokens=len(PROMPT), end_tokens=(END,), grammar=GRAMMAR, max_drafts=4)
DRAWN = replace(HELD, temperature=3.0, seed=7)
NUM_TOKENS = 60


def request(sampling: Sampling, *, ids: Sequence[int] = PROMPT) -> Request:
    max_tokens = len(PROMPT) + NUM_TOKENS - 1
    return Request(model=MODEL, num_lanes=1, max_tokens=max_tokens, timeout_s=20.0, sampling=sampling, ids=list(ids))


async def session_of(network: Network, sampling: Sampling) -> TokenSession:
    asked = request(sampling)
    assert isinstance(asked.ids, list)
    return TokenSession(await open_line(network, asked), asked.ids)


async def tokens_of(session: TokenSession) -> list[int]:
    async with aclosing(session.tokens()) as choices:
        return [token async for choice in choices for token in choice.ids]


async def answer(network: Network, sampling: Sampling) -> list[int]:
    session = await session_of(network, sampling)
    tokens = await tokens_of(session)
    await session.close()
    return tokens


@pytest.mark.parametrize("sampling", [HELD, DRAWN, replace(DRAWN, top_p=0.5, frequency_penalty=0.5)])
async def test_an_answer_is_in_its_grammar_and_what_one_server_would_give(sampling: Sampling) -> None:
    async with served(PAIRS) as swarm:
        tokens = await answer(await swarm.client(), sampling)
        assert tokens == generated(PROMPT, sampling, num_tokens=NUM_TOKENS)
        assert tokens[-1] == END
        items = json.loads("".join(ALPHABET[token] for token in tokens[:-1]))
        assert all(isinstance(item, str) and len(item) <= 3 for item in items)


@pytest.mark.parametrize("sampling", [HELD, DRAWN])
async def test_it_goes_on_in_its_grammar_when_servers_die(sampling: Sampling) -> None:
    async with served(PAIRS) as swarm:
        swarm.plan(("ab", 4, 1.0), ("cd", 4, 2.0))
        session = await session_of(await swarm.client(), sampling)
        tokens: list[int] = []
        async with aclosing(session.tokens()) as choices:
            async for choice in choices:
                tokens += choice.ids
                if len(tokens) > 8 and not swarm.servers["b"].is_dead:
                    await swarm.servers["b"].die()
        assert tokens == generated(PROMPT, sampling, num_tokens=NUM_TOKENS)
        assert [recovery.peer for recovery in session.recoveries] == [swarm.servers["b"].peer]
        await session.close()


async def test_the_tail_sees_the_answer_where_pages_of_the_prompt_are_cached() -> None:
    async with served({"a": Span(0, 4), "b": Span(4, 8)}) as swarm:
        network = await swarm.client()
        first, second = await answer(network, DRAWN), await answer(network, DRAWN)
        assert first == second == generated(PROMPT, DRAWN, num_tokens=NUM_TOKENS)
        opened = [message for message in swarm.servers["b"].received if isinstance(message, Open)]
        assert [message.num_cached for message in opened] == [0, PAGE_TOKENS]
    long = [*PROMPT, *first]
    assert len(prefix_of(request(DRAWN, ids=long))) == len(PROMPT) // PAGE_TOKENS
    assert len(prefix_of(request(replace(DRAWN, grammar=None), ids=long))) > len(PROMPT) // PAGE_TOKENS


async def test_a_grammar_that_cannot_be_is_refused_once_and_disturbs_nobody() -> None:
    async with served(PAIRS) as swarm:
        swarm.plan(("ab", 4, 1.0), ("cd", 4, 2.0))
        network = await swarm.client()
        other = asyncio.create_task(answer(network, DRAWN))
        for grammar in ('start: %json {"uniqueItems": true}', "nonsense", "start: start"):
            with pytest.raises(GrammarError):
                await session_of(network, replace(HELD, grammar=grammar))
        assert await other == generated(PROMPT, DRAWN, num_tokens=NUM_TOKENS)
        counts = {name: made.sessions.counts[FailureCode.BAD_GRAMMAR] for name, made in swarm.servers.items()}
        assert counts["b"] + counts["d"] == 3
        await until(lambda: not any(len(made.sessions) for made in swarm.servers.values()))
        swarm.check_free()


async def test_an_answer_that_cannot_go_on_ends_by_name_and_no_other_chain_is_tried() -> None:
    async with served(PAIRS) as swarm:
        network = await swarm.client()
        other = asyncio.create_task(answer(network, DRAWN))
        session = await session_of(network, replace(HELD, grammar=f'start: "ab{ALPHABET[END]}"'))
        with pytest.raises(SessionLostError, match="nothing can follow") as caught:
            await tokens_of(session)
        assert caught.value.code == FailureCode.BAD_GRAMMAR
        await session.close()
        assert session.recoveries == []
        assert await other == generated(PROMPT, DRAWN, num_tokens=NUM_TOKENS)


async def test_servers_without_grammars_say_so_and_others_are_asked() -> None:
    async with served(PAIRS) as swarm:
        swarm.plan(("ab", 4, 1.0), ("cd", 4, 2.0))
        network = await swarm.client()
        without(swarm, "b")
        session = await session_of(network, DRAWN)
        assert session.chain == swarm.chain("c", "d")
        await session.close()
        without(swarm, "d")
        with pytest.raises(SessionRefusedError, match="follows no grammars") as caught:
            await session_of(network, DRAWN)
        assert caught.value.code == FailureCode.NO_GRAMMARS


def without(swarm: MemorySwarmOfServers, name: str) -> None:
    swarm.servers[name].sessions._opening._compile_grammar = None


class SlowGrammars(Grammars):
    """Compiles when it is let."""

    def __init__(self) -> None:
        super().__init__(text_bundle)
        self.may_go = threading.Event()

    def compile(self, grammar: str) -> Any:
        assert self.may_go.wait(20)
        return super().compile(grammar)


async def test_while_a_grammar_is_compiled_others_go_on_and_who_gives_up_leaves_nothing() -> None:
    async with served({"a": Span(0, 4), "b": Span(4, 8)}) as swarm:
        slow = SlowGrammars()
        tail = swarm.servers["b"]
        tail.sessions._opening._compile_grammar = GrammarQueue(slow).compile
        network = await swarm.client()
        opening = [asyncio.create_task(session_of(network, DRAWN)) for _ in range(2)]
        await until(lambda: tail.sessions._opening.num_held_back == 2)
        plain = replace(DRAWN, grammar=None)
        assert await answer(network, plain) == generated(PROMPT, plain, num_tokens=NUM_TOKENS)
        opening[0].cancel()
        await until(lambda: tail.sessions._opening.num_held_back == 1)
        assert any(isinstance(message, Close) for message in tail.received)
        slow.may_go.set()
        session = await opening[1]
        await session.close()
        await until(lambda: not any(len(made.sessions) for made in swarm.servers.values()))
        swarm.check_free()


async def test_a_prefix_that_hides_part_of_the_answer_is_refused() -> None:
    async with served({"a": Span(0, 8)}) as swarm:
        made = swarm.servers["a"]
        sender = PeerId("client")
        hops = swarm.chain("a").hops
        session, prefix = SessionId(bytes(16)), (bytes(16),) * 2
        message = Open(session, MODEL.digest, hops, 0, sender, 1, 80, sampling=HELD, prefix=prefix, ids=tuple(PROMPT))
        assert "tail has to see" in str(made.sessions._opening._fault_of(message))
