"""Packed batches through split models against transformers' own forward of the whole model."""

import pytest
import torch
from tiny_models import (
    FAMILIES,
    HIDDEN,
    NUM_BLOCKS,
    WINDOW,
    A,
    B,
    C,
    TinyChain,
    assert_close,
    embeddings,
    expected_hidden,
    last_hidden,
    random_ids,
    random_model,
)
from torch import Tensor
from transformers import PreTrainedModel

from chainserve.errors import FrameError, StepError
from chainserve.models.cache import KVCache
from chainserve.models.runner import Runner
from chainserve.models.skeleton import build_skeleton
from chainserve.protocol.messages import Step
from chainserve.types import Span


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return random_model(FAMILIES[request.param])


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return random_model(FAMILIES["llama"])


def assert_same(model: PreTrainedModel, outputs: list[Tensor], ids: Tensor) -> None:
    assert_close(last_hidden(model, torch.cat(outputs)), expected_hidden(model, ids))


def test_packed_prefill_and_decode_of_several_sessions_equal_the_whole_model(model: PreTrainedModel) -> None:
    chain = TinyChain(model)
    ids = {A: random_ids(20, seed=1), B: random_ids(17, seed=2), C: random_ids(9, seed=3)}
    hidden = {session: embeddings(model, tokens) for session, tokens in ids.items()}
    outputs: dict[bytes, list[Tensor]] = {session: [] for session in ids}
    for session in ids:
        chain.open(session)
    batches = [  # (session, start, end): whole prompts, chunks of prompts and decode steps, mixed
        [(A, 0, 8)],
        [(A, 8, 9), (B, 0, 6)],
        [(B, 6, 13), (C, 0, 1), (A, 9, 10)],
        [(A, 10, 11), (B, 13, 14), (C, 1, 2)],
        [(C, 2, 8), (B, 14, 17), (A, 11, 12)],
        [(A, 12, 20), (C, 8, 9)],
    ]
    for batch in batches:
        parts = chain.run(*((session, start, hidden[session][start:end]) for session, start, end in batch))
        for (session, *_), part in zip(batch, parts, strict=True):
            outputs[session].append(part)
    assert len(ids[A]) > WINDOW  # or the windows would not be seen
    for session in ids:
        assert_same(model, outputs[session], ids[session])


def test_chunks_of_many_sizes_equal_the_whole_model(model: PreTrainedModel) -> None:
    chain = TinyChain(model)
    ids = random_ids(30, seed=1)
    hidden = embeddings(model, ids)
    chain.open(A)
    outputs = [
        part for start, end in ((0, 7), (7, 9), (9, 10), (10, 30)) for part in chain.run((A, start, hidden[start:end]))
    ]
    assert_same(model, outputs, ids)


def test_a_step_that_starts_earlier_forgets_what_followed(model: PreTrainedModel) -> None:
    chain = TinyChain(model)
    chain.open(A)
    ids, other = random_ids(14, seed=4), random_ids(14, seed=5)
    (first,) = chain.run((A, 0, embeddings(model, ids[:9])))
    chain.run((A, 9, embeddings(model, other[9:])))
    (middle,) = chain.run((A, 9, embeddings(model, ids[9:12])))
    (last,) = chain.run((A, 12, embeddings(model, ids[12:])))
    assert_same(model, [first, middle, last], ids)


def test_reordered_lanes_go_on_as_if_recomputed(model: PreTrainedModel) -> None:
    chain = TinyChain(model)
    chain.open(A, num_lanes=4)
    prompts = [random_ids(7 + lane, seed=lane) for lane in range(4)]
    for lane, ids in enumerate(prompts):
        chain.run((A, 0, embeddings(model, ids)), lane=lane)
    sources = [2, 2, 0, 2]
    chain.reorder(A, sources)
    chain.reorder(A, [3, 0, 2, 1])
    sources = [sources[lane] for lane in [3, 0, 2, 1]]
    for lane, source in enumerate(sources):
        ids = torch.cat([prompts[source], random_ids(3, seed=10 + lane)])
        length = len(prompts[source])
        (output,) = chain.run((A, length, embeddings(model, ids[length:])), lane=lane)
        assert_close(last_hidden(model, output), expected_hidden(model, ids)[length:])


def test_lanes_of_one_session_run_in_one_batch(llama: PreTrainedModel) -> None:
    chain = TinyChain(llama, [Span(0, NUM_BLOCKS)])
    chain.open(A, num_lanes=2)
    (runner,) = chain.runners
    prompts = [random_ids(5, seed=1), random_ids(8, seed=2)]
    steps = [Step(A, lane, 0, len(ids), 1) for lane, ids in enumerate(prompts)]
    outputs = runner.forward(embeddings(llama, torch.cat(prompts)), steps, runner.span).split([5, 8])
    for output, ids in zip(outputs, prompts, strict=True):
        assert_same(llama, [output], ids)


def test_a_server_runs_part_of_its_blocks_when_a_session_asks_for_it(model: PreTrainedModel) -> None:
    whole, split = TinyChain(model, [Span(0, NUM_BLOCKS)]), TinyChain(model)
    (server,) = whole.runners
    hidden = embeddings(model, random_ids(9, seed=6))
    split.open(A)
    (expected,) = split.run((A, 0, hidden))
    for session, span in ((A, Span(0, 1)), (B, Span(1, 4)), (C, Span(4, NUM_BLOCKS))):
        server.cache.reserve(session, span, num_lanes=1, max_tokens=9)
        hidden = server.forward(hidden, [Step(session, 0, 0, 9, 9)], span)
    assert_close(hidden, expected)


@pytest.mark.parametrize(
    ("step", "fact"),
    [
        (Step(A, 0, 5, 1, 1), "lane 0 has 4 tokens: no step goes from 5 to 6"),
        (Step(A, 0, -1, 1, 1), "lane 0 has 4 tokens: no step goes from -1 to 0"),
        (Step(A, 0, 4, 0, 0), "lane 0 has 4 tokens: no step goes from 4 to 4"),
        (Step(A, 0, 4, 5, 1), "lane 0 may grow to 8 tokens, a step goes to 9"),
        (Step(A, 1, 0, 1, 1), "has lanes 0 to 0, not 1"),
        (Step(A, -1, 0, 1, 1), "has lanes 0 to 0, not -1"),
        (Step(B, 0, 0, 1, 1), "has no cache reserved here"),
    ],
)
def test_a_step_that_does_not_fit_is_refused_before_anything_changes(
    llama: PreTrainedModel, step: Step, fact: str
) -> None:
    chain = TinyChain(llama, [Span(0, NUM_BLOCKS)])
    (runner,) = chain.runners
    for session in (A, C):
        chain.open(session, max_tokens=8)
        chain.run((session, 0, torch.ones(4, HIDDEN)))
    with pytest.raises(StepError, match=fact) as caught:
        runner.forward(torch.ones(1 + step.num_tokens, HIDDEN), [Step(C, 0, 2, 1, 1), step], runner.span)
    assert caught.value.session == step.session
    assert runner.cache.length(A, 0) == 4
    assert runner.cache.length(C, 0) == 4


def test_two_steps_of_one_lane_or_other_blocks_than_reserved_are_refused(llama: PreTrainedModel) -> None:
    chain = TinyChain(llama, [Span(0, NUM_BLOCKS)])
    chain.open(A)
    (runner,) = chain.runners
    with pytest.raises(StepError, match="two steps in one batch"):
        runner.forward(torch.ones(2, HIDDEN), [Step(A, 0, 0, 1, 1), Step(A, 0, 0, 1, 1)], runner.span)
    with pytest.raises(StepError, match="has reserved blocks 0:6, not 0:2"):
        runner.forward(torch.ones(1, HIDDEN), [Step(A, 0, 0, 1, 1)], Span(0, 2))


def test_hidden_states_that_do_not_match_the_steps_are_refused(llama: PreTrainedModel) -> None:
    chain = TinyChain(llama, [Span(0, NUM_BLOCKS)])
    chain.open(A)
    (runner,) = chain.runners
    for shape in ((2, HIDDEN), (1, HIDDEN + 1)):
        with pytest.raises(FrameError, match=r"\(1, 64\)"):
            runner.forward(torch.ones(shape), [Step(A, 0, 0, 1, 1)], runner.span)


def test_a_skeleton_with_a_head_is_not_for_a_runner() -> None:
    span = Span(0, 1)
    with pytest.raises(AssertionError):
        Runner(build_skeleton(FAMILIES["llama"], span, head=True), span, KVCache(span, budget_tokens=1))
