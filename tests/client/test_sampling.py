"""The next token, from logits."""

import torch

from chainserve_client.parameters import Parameters
from chainserve_client.sampling import Sampler

LOGITS = torch.tensor([0.0, 3.0, 2.0, 1.0])


def draws(parameters: Parameters, num: int = 200) -> list[int]:
    sampler = Sampler(parameters)
    return [sampler.next_token(LOGITS) for _ in range(num)]


def test_temperature_zero_takes_the_likeliest() -> None:
    assert set(draws(Parameters(temperature=0))) == {1}


def test_equal_seeds_draw_equal_tokens_and_others_do_not() -> None:
    one, same, other = (draws(Parameters(temperature=1, seed=seed)) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_top_k_and_top_p_leave_the_unlikely_out() -> None:
    assert set(draws(Parameters(temperature=1, top_k=2, seed=0))) == {1, 2}
    assert set(draws(Parameters(temperature=1, top_p=0.7, seed=0))) == {1, 2}
    assert set(draws(Parameters(temperature=1, top_p=0.5, seed=0))) == {1}


def test_draws_follow_the_probabilities() -> None:
    drawn = draws(Parameters(temperature=1, seed=0), num=2000)
    expected = torch.softmax(LOGITS, dim=0)
    for token in range(4):
        assert abs(drawn.count(token) / 2000 - expected[token]) < 0.05
