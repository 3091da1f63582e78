"""A client that drafts by a model of its own gets the same tokens in fewer steps, whatever the model says."""

import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from itertools import count

import pytest
from served_in_memory import MODEL, VOCAB, MemorySwarmOfServers, generated, served, until

from chainserve.errors import SessionLostError
from chainserve.protocol.messages import Choice, Drafts
from chainserve.protocol.sampling import Sampling
from chainserve.types import Chain, SessionId, Span
from chainserve_client.drafting import Drafting
from chainserve_client.opening import Request, open_line
from chainserve_client.token_session import TokenSession
from chainserve_server.token_mode import HeadTokens

THREE = {"a": Span(0, 3), "b": Span(3, 6), "c": Span(6, 8)}
TWICE = {"a": Span(0, 4), "b": Span(4, 8), "c": Span(0, 4), "d": Span(4, 8)}
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
NUM_TOKENS = 24
GREEDY = Sampling(num_prompt_tokens=len(PROMPT), max_drafts=4)
DRAWN = replace(GREEDY, temperature=3.0, seed=7)


class KnowsAnswer:
    """Says what comes, but for every `wrong_every`th token."""

    def __init__(self, sampling: Sampling, *, wrong_every: int = 0) -> None:
        self.answer = [*PROMPT, *generated(PROMPT, sampling, num_tokens=NUM_TOKENS)]
        self.wrong_every = wrong_every
        self.is_closed = False

    def following(self, ids: Sequence[int]) -> Iterator[int]:
        assert list(ids) == self.answer[: len(ids)]
        for at in range(len(ids), len(self.answer)):
            is_wrong = self.wrong_every and at % self.wrong_every == 0
            yield (self.answer[at] + bool(is_wrong)) % VOCAB

    def close(self) -> None:
        self.is_closed = True


class Fails(KnowsAnswer):
    def following(self, ids: Sequence[int]) -> Iterator[int]:
        raise RuntimeError("out of memory")


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=1) as made:
        yield made


def request_of(sampling: Sampling, ids: list[int], *, chain: Chain | None = None) -> Request:
    return Request(
        model=MODEL,
        num_lanes=1,
        max_tokens=len(ids) + NUM_TOKENS - 1,
        timeout_s=20.0,
        sampling=sampling,
        ids=ids,
        chain=chain,
    )


async def answer(swarm: MemorySwarmOfServers, sampling: Sampling, drafting: Drafting | None) -> AsyncIterator[Choice]:
    """The tail's choices; whoever takes them may change the swarm meanwhile."""
    ids = list(PROMPT)
    request = request_of(replace(sampling, drafts_by_client=drafting is not None), ids)
    session = TokenSession(await open_line(await swarm.client(), request), ids, drafting=drafting)
    async with aclosing(session.tokens()) as choices:
        async for choice in choices:
            yield choice
    await session.close()


async def check_free(swarm: MemorySwarmOfServers) -> None:
    await until(lambda: not any(len(made.sessions) for made in swarm.servers.values() if not made.is_dead))


@pytest.mark.parametrize("spans", [{"a": Span(0, 8)}, THREE], ids=str)
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, replace(DRAWN, repetition_penalty=1.2)], ids=str)
@pytest.mark.parametrize("wrong_every", [0, 3, 1])
async def test_drafts_change_nothing_but_the_number_of_steps(
    spans: dict[str, Span], sampling: Sampling, wrong_every: int, thread: ThreadPoolExecutor
) -> None:
    draft = KnowsAnswer(sampling, wrong_every=wrong_every)
    async with served(spans) as swarm:
        choices = [choice async for choice in answer(swarm, sampling, Drafting(draft, thread, most=4))]
        await check_free(swarm)
        received = swarm.servers["a"].received
    assert [token for choice in choices for token in choice.ids] == draft.answer[len(PROMPT) :]
    assert sum(isinstance(message, Drafts) for message in received) == len(choices) - 1  # one before each further step
    if wrong_every == 0:
        assert len(choices) < NUM_TOKENS / 2
    thread.shutdown()
    assert draft.is_closed


async def test_an_answer_with_drafts_goes_on_over_another_chain(thread: ThreadPoolExecutor) -> None:
    draft = KnowsAnswer(GREEDY, wrong_every=3)
    tokens: list[int] = []
    async with served(TWICE) as swarm:
        async for choice in answer(swarm, GREEDY, Drafting(draft, thread, most=4)):
            tokens += choice.ids
            if 4 < len(tokens) < 9 and not any(made.is_dead for made in swarm.servers.values()):
                [used] = [made for made in swarm.servers.values() if made.span.start == 0 and len(made.sessions)]
                await used.die()
        await check_free(swarm)
    assert tokens == draft.answer[len(PROMPT) :]


async def test_a_draft_model_that_fails_costs_its_drafts_only(
    thread: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    draft = Fails(GREEDY)
    async with served(THREE) as swarm:
        with caplog.at_level(logging.WARNING):
            choices = [choice async for choice in answer(swarm, GREEDY, Drafting(draft, thread, most=4))]
    assert [token for choice in choices for token in choice.ids] == draft.answer[len(PROMPT) :]
    assert [record.getMessage() for record in caplog.records].count(
        "no more drafts, as the draft model has failed: out of memory"
    ) == 1


@pytest.mark.parametrize(
    ("shift", "ids"), [(0, (1, 2, 3, 4, 5)), (0, (VOCAB,)), (-1, (1,))], ids=["too many", "no token", "late"]
)
async def test_drafts_that_make_no_sense_end_their_session(shift: int, ids: tuple[int, ...]) -> None:
    known = list(PROMPT)
    async with served({"a": Span(0, 8)}) as swarm:
        request = request_of(replace(GREEDY, drafts_by_client=True), known, chain=swarm.chain("a"))
        line = await open_line(await swarm.client(), request)
        async with aclosing(line.current.outputs(len(known))) as outputs:
            choice = await anext(outputs)
            assert isinstance(choice, Choice)
            known += choice.ids
            await line.current.send(Drafts(line.current.state.id, len(known) + shift, ids))
            with pytest.raises(SessionLostError, match="not due"):
                await anext(outputs)
        await line.close()
        await check_free(swarm)


def test_the_head_waits_for_drafts_and_takes_early_ones() -> None:
    """The client may hear of the tail's choice before the head does."""
    session, end = SessionId(bytes(16)), len(PROMPT)
    tokens = HeadTokens(
        session,
        PROMPT,
        max_tokens=40,
        max_drafts=4,
        drafts_by_client=True,
        extra_s=lambda _num: 0.0,
        clock=count(1.0).__next__,
    )
    tokens.first_step(0)
    early = Drafts(session, end + 1, (7,))
    assert tokens.takes(early)
    assert tokens.drafted(early) is None
    step = tokens.next_step(Choice(session, end, (5,), is_last=False))
    assert step is not None
    assert step.ids[0] == 5
    assert tokens.next_step(Choice(session, end + 1, (6,), is_last=False)) is None
    due = Drafts(session, end + 2, ())
    assert tokens.takes(due)
    step = tokens.drafted(due)
    assert step is not None
    assert (step.start, step.ids[0]) == (end + 1, 6)
