"""However the blocks are split over server processes, the tokens are those of the model in one piece."""

import asyncio
from collections.abc import Callable
from functools import cache
from typing import Unpack

import pytest
import torch
from bundled import MODEL, NEW_TOKENS, QUESTIONS, MakeSwarm, Reference

from chainserve_client import AsyncClient, Client, RemoteModelForCausalLM
from chainserve_client.parameters import GenerationOptions

pytestmark = [pytest.mark.process, pytest.mark.timeout(900)]

SPLITS = {
    "whole": ["0:30"],
    "two-equal": ["0:15", "15:30"],
    "two-unequal": ["0:7", "7:30"],
    "three-equal": ["0:10", "10:20", "20:30"],
    "three-overlapping": ["0:12", "5:24", "16:30"],
}
FEW_QUESTIONS = QUESTIONS[-4:]
"""Asked one at a time as well."""
AT_ONCE = 8

Expected = dict[str, tuple[int, ...]]
IsGreedy = Callable[[str, tuple[int, ...]], bool]


@pytest.fixture(scope="module")
def expected(reference: Reference) -> Expected:
    """For two questions the greedy tokens of the whole model, as transformers generates them: one answer ends."""
    return {question: reference.greedy(reference.prompt(question), NEW_TOKENS) for question in FEW_QUESTIONS[:2]}


@pytest.fixture(scope="module")
def is_greedy(reference: Reference) -> IsGreedy:
    """Whether the whole model would give these tokens to a question: looked at once, as all splits should give them."""
    return cache(lambda question, tokens: reference.is_greedy(reference.prompt(question), tokens, NEW_TOKENS))


@pytest.mark.parametrize("split", SPLITS)
async def test_greedy_tokens_are_those_of_the_whole_model(
    split: str, make_swarm: MakeSwarm, reference: Reference, expected: Expected, is_greedy: IsGreedy
) -> None:
    swarm = await asyncio.to_thread(make_swarm, *SPLITS[split])
    async with await AsyncClient.connect(swarm.token) as client:

        async def tokens(question: str, *, max_drafts: int = 8) -> tuple[int, ...]:
            prompt = reference.prompt(question)
            answer = await client.generate(prompt, max_new_tokens=NEW_TOKENS, max_drafts=max_drafts)
            assert len(answer.chain.hops) == len(SPLITS[split])
            return answer.tokens

        one_at_a_time = {question: await tokens(question, max_drafts=0) for question in FEW_QUESTIONS}

        gate = asyncio.Semaphore(AT_ONCE)

        async def gated(question: str) -> tuple[int, ...]:
            async with gate:
                return await tokens(question)

        at_once = dict(zip(QUESTIONS, await asyncio.gather(*map(gated, QUESTIONS)), strict=True))

    assert expected.items() <= one_at_a_time.items() <= at_once.items()
    assert [question for question, answer in at_once.items() if not is_greedy(question, answer)] == []


async def test_a_draft_model_at_the_client_changes_no_token(
    make_swarm: MakeSwarm, reference: Reference, is_greedy: IsGreedy
) -> None:
    """It is the same model, which does not pay on one machine: few drafts are sent, most of which are right."""
    swarm = await asyncio.to_thread(make_swarm, *SPLITS["two-unequal"])
    async with await AsyncClient.connect(swarm.token, draft_model=MODEL) as client:

        async def tokens(question: str, **how: Unpack[GenerationOptions]) -> tuple[int, ...]:
            return (await client.generate(reference.prompt(question), max_new_tokens=NEW_TOKENS, **how)).tokens

        greedy = await asyncio.gather(*map(tokens, FEW_QUESTIONS[:2]))
        drawn, plain = [
            await tokens(FEW_QUESTIONS[0], temperature=0.8, seed=3, max_drafts=max_drafts) for max_drafts in (8, 0)
        ]
    assert all(map(is_greedy, FEW_QUESTIONS, greedy))
    assert drawn == plain


def test_what_is_not_greedy_is_seen(reference: Reference, expected: Expected) -> None:
    ended, cut, *_ = expected
    first, second = reference.prompt(ended), reference.prompt(cut)
    assert len(expected[ended]) < NEW_TOKENS == len(expected[cut])
    assert reference.is_greedy(first, expected[ended], NEW_TOKENS)
    assert not reference.is_greedy(first, expected[ended][:-1], NEW_TOKENS)
    assert not reference.is_greedy(second, expected[cut][:-1], NEW_TOKENS)
    for i in (0, 30, NEW_TOKENS - 1):
        other = expected[cut][i] + 1
        assert not reference.is_greedy(second, (*expected[cut][:i], other, *expected[cut][i + 1 :]), NEW_TOKENS)


def test_transformers_own_generate_runs_over_remote_blocks(make_swarm: MakeSwarm, reference: Reference) -> None:
    swarm = make_swarm("0:12", "5:24", "16:30")
    with Client.connect(swarm.token) as client:
        model = RemoteModelForCausalLM(client)
        tokenizer = reference.tokenizer
        tokenizer.padding_side = "left"
        batch = tokenizer(list(QUESTIONS), return_tensors="pt", padding=True)
        ids, mask = batch["input_ids"], batch["attention_mask"]

        for rows, options in (
            (5, {"num_beams": 4}),  # of the twenty, for time: 80 lanes at once take minutes
            (4, {}),
            (4, {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3}),
        ):
            inputs = {"input_ids": ids[:rows], "attention_mask": mask[:rows]}
            expected = reference.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, **options)
            ours = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, **options)
            assert torch.equal(ours, expected)

        one = ids[-1:, mask[-1].argmax() :]
        embeds = reference.model.get_input_embeddings()(one)
        expected = reference.model.generate(inputs_embeds=embeds, max_new_tokens=16, do_sample=False)
        assert torch.equal(model.generate(inputs_embeds=embeds, max_new_tokens=16, do_sample=False), expected)

        with torch.no_grad():
            logits = reference.model(ids, attention_mask=mask).logits
        remote = model(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(remote[mask.bool()], logits[mask.bool()], rtol=1e-3, atol=1e-3)
        assert client.generate("Once", max_new_tokens=1).tokens
