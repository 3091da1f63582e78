"""The next tokens, from logits."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from chainserve.models.sampling import TokenSampler, filtered, uniform
from chainserve.protocol.messages import Choice
from chainserve.protocol.sampling import Sampling
from chainserve.types import SessionId

ID = SessionId(bytes(16))
LOGITS = torch.tensor([0.0, 3.0, 2.0, 1.0])
GREEDY = Sampling(num_prompt_tokens=2)
DRAWN = replace(GREEDY, temperature=1.0)


def choose(
    sampling: Sampling,
    logits: torch.Tensor = LOGITS,
    *,
    start: int = 0,
    drafts: Sequence[int] = (),
    history: Sequence[int] = (),
    max_tokens: int = 10**6,
) -> Choice:
    rows = logits.expand(1 + len(drafts), -1) if logits.dim() == 1 else logits
    sampler = TokenSampler(ID, sampling, max_tokens=max_tokens)
    if history:
        sampler.take(0, history)
        start = len(history) - 1 - len(drafts)
    return sampler.choose(rows, start=start, drafts=drafts, likeliest=rows.argmax(-1).tolist())


def draws(sampling: Sampling, num: int = 2000) -> list[int]:
    return [token for start in range(num) for token in choose(sampling, start=start).ids]


def test_temperature_zero_takes_the_likeliest() -> None:
    assert choose(GREEDY).ids == (1,)


def test_equal_seeds_draw_equal_tokens_at_equal_positions_and_others_do_not() -> None:
    one, same, other = (draws(replace(DRAWN, seed=seed), 200) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert one[100:] == [choose(replace(DRAWN, seed=1), start=start).ids[0] for start in range(100, 200)]


def test_draws_follow_the_probabilities() -> None:
    drawn, expected = Counter(draws(DRAWN)), torch.softmax(LOGITS, dim=0)
    for token in range(4):
        assert abs(drawn[token] / 2000 - expected[token]) < 0.04


def test_what_is_filtered_is_never_drawn() -> None:
    assert set(draws(replace(DRAWN, top_k=2), 200)) == {1, 2}
    assert set(draws(replace(DRAWN, top_p=0.7), 200)) == {1, 2}
    assert set(draws(replace(DRAWN, top_p=0.5), 200)) == {1}
    assert set(draws(replace(DRAWN, min_p=0.3), 200)) == {1, 2}


rows = st.lists(st.floats(-8, 8, width=32), min_size=5, max_size=40, unique=True).map(torch.tensor)


@settings(deadline=None)  # the first calls into torch take long
@given(rows, st.integers(1, 50), st.floats(0.05, 1), st.floats(0, 1))
def test_filters_keep_what_transformers_keep(scores: torch.Tensor, top_k: int, top_p: float, min_p: float) -> None:
    none = torch.zeros(1, 0, dtype=torch.long)
    top_k_only = TopKLogitsWarper(min(top_k, len(scores)))(none, scores[None])[0]
    torch.testing.assert_close(filtered(scores, top_k=top_k, top_p=1, min_p=0), top_k_only)
    ours, theirs = filtered(scores, top_k=0, top_p=top_p, min_p=0), TopPLogitsWarper(top_p)(none, scores[None])[0]
    differing = (ours == -torch.inf) != (theirs == -torch.inf)
    assert differing.sum() <= 1  # where the sum of probabilities is top_p but for rounding
    if min_p < 1:  # where rounding decides
        torch.testing.assert_close(
            filtered(scores, top_k=0, top_p=1, min_p=min_p), MinPLogitsWarper(min_p)(none, scores[None])[0]
        )


@settings(deadline=None)  # the first calls into torch take long
@given(rows, st.lists(st.integers(0, 4), min_size=1, max_size=9), st.floats(0.5, 2))
def test_the_repetition_penalty_is_transformers_own(scores: torch.Tensor, known: list[int], penalty: float) -> None:
    wanted = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([known]), scores[None].clone())[0]
    choice = choose(replace(GREEDY, repetition_penalty=penalty), scores, history=known)
    assert wanted[choice.ids[0]] == wanted.max()


def test_presence_and_frequency_count_in_the_answer_only() -> None:
    present = replace(GREEDY, presence_penalty=1.5)
    assert choose(present, history=[1, 1]).ids == (1,)  # the prompt
    assert choose(present, history=[0, 0, 1]).ids == (2,)
    often = replace(GREEDY, frequency_penalty=0.6)
    assert choose(often, history=[0, 0, 1]).ids == (1,)
    assert choose(often, history=[0, 0, 1, 1]).ids == (2,)


def test_history_is_forgotten_from_where_a_step_begins() -> None:
    sampler = TokenSampler(ID, replace(GREEDY, presence_penalty=1.5), max_tokens=100)
    sampler.take(0, [0, 0, 1, 2])  # 2 was drafted, and wrong
    sampler.take(3, [0])
    choice = sampler.choose(LOGITS[None], start=3, drafts=(), likeliest=[1])
    assert choice.ids == (2,)


def test_bias_makes_tokens_likelier_or_unlikelier() -> None:
    assert choose(replace(GREEDY, logit_bias=((0, 5.0), (1, -0.5)))).ids == (0,)
    assert set(draws(replace(DRAWN, logit_bias=((1, -1e4), (2, -1e4))), 200)) == {0, 3}


def test_right_drafts_are_taken_up_to_the_first_wrong_one() -> None:
    logits = torch.eye(5)[[1, 2, 3, 4]]
    assert choose(GREEDY, logits, start=7, drafts=[1, 2, 3]) == Choice(ID, 8, (1, 2, 3, 4), is_last=False)
    assert choose(GREEDY, logits, start=7, drafts=[1, 0, 3]).ids == (1, 2)
    assert choose(GREEDY, logits, start=7, drafts=[0, 2, 3]).ids == (1,)


@settings(deadline=None)  # the first calls into torch take long
@given(st.integers(0, 99), st.lists(st.integers(0, 3), min_size=1, max_size=4), st.sampled_from([0.0, 0.7, 2.0]))
def test_drafts_never_change_what_comes(seed: int, drafts: list[int], temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1 + len(drafts), 4, generator=generator)
    sampling = replace(GREEDY, temperature=temperature, seed=seed)
    together = choose(sampling, logits, start=5, drafts=drafts).ids
    for index, token in enumerate(together):
        assert choose(sampling, logits[index], start=5 + index).ids == (token,)
    assert list(together[:-1]) == drafts[: len(together) - 1]
    assert len(together) == 1 + len(drafts) or together[-1] != drafts[len(together) - 1]


def test_nothing_comes_after_an_end_token_or_the_last_position() -> None:
    logits = torch.eye(5)[[1, 2, 3, 4]]
    ending = replace(GREEDY, end_tokens=(2,))
    assert choose(ending, logits, start=0, drafts=[1, 2, 3]) == Choice(ID, 1, (1, 2), is_last=True)
    full = choose(GREEDY, logits, start=0, drafts=[1, 2, 3], max_tokens=2)
    assert full == Choice(ID, 1, (1, 2), is_last=True)
    assert not choose(GREEDY, logits, start=0, drafts=[1, 2, 3], max_tokens=5).is_last


def test_log_probabilities_are_the_models_own() -> None:
    choice = choose(replace(DRAWN, num_logprobs=2, temperature=50.0, seed=4))
    expected = torch.log_softmax(LOGITS, dim=-1)
    [known] = choice.logprobs
    assert known.chosen == pytest.approx(float(expected[choice.ids[0]]))
    assert [token for token, _ in known.likeliest] == [1, 2]
    assert known.likeliest[0][1] == pytest.approx(float(expected[1]))
    [bare] = choose(replace(GREEDY, num_logprobs=0)).logprobs
    assert bare.likeliest == ()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "sampling", [GREEDY, DRAWN, replace(DRAWN, top_p=0.5, min_p=0.1), replace(GREEDY, num_logprobs=2)]
)
def test_numbers_that_are_none_give_some_token_and_finite_log_probabilities(sampling: Sampling, value: float) -> None:
    for logits in (torch.full((4,), value), torch.tensor([0.0, value, 1.0, 2.0])):
        choice = choose(sampling, logits)
        assert 0 <= choice.ids[0] < 4
        for known in choice.logprobs:
            assert all(map(math.isfinite, (known.chosen, *(logprob for _, logprob in known.likeliest))))


def test_the_lowest_temperatures_take_the_likeliest() -> None:
    for temperature in (1e-3, 1e-30, 5e-324):
        assert set(draws(replace(DRAWN, temperature=temperature), 20)) == {1}


def test_uniform_numbers_are_spread_evenly() -> None:
    numbers = [uniform(3, position) for position in range(4000)]
    assert all(0 <= number < 1 for number in numbers)
    for tenth in range(10):
        assert abs(sum(tenth <= 10 * number < tenth + 1 for number in numbers) - 400) < 80
