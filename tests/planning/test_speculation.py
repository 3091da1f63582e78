"""How many drafts pay."""

import random

import pytest

from chainserve.planning.speculation import Speculation, best_num_drafts


def test_the_best_number_gives_most_tokens_per_second_of_all() -> None:
    rng = random.Random(0)
    acceptances = [0.9, 0.3, 0.8]

    def tokens(num: int) -> int:
        return next((at for at in range(num) if rng.random() > acceptances[at]), num) + 1

    def step_s(num: int) -> float:
        return 0.1 + 0.02 * num

    rates = [sum(tokens(num) for _ in range(20_000)) / step_s(num) for num in range(4)]
    assert best_num_drafts(acceptances, step_s) == rates.index(max(rates)) == 1


def test_drafts_pay_where_the_way_is_long_and_not_where_steps_are_dear() -> None:
    def near(num: int) -> float:
        return 0.01 + 0.01 * num

    def far(num: int) -> float:
        return 0.2 + 0.01 * num

    assert best_num_drafts([0.5] * 8, near) == 0
    assert best_num_drafts([0.9] * 8, near) == 0
    assert best_num_drafts([0.5] * 8, far) >= 3
    assert best_num_drafts([0.95] * 8, far) == 8
    assert best_num_drafts([0.0] * 8, far) == 0
    assert best_num_drafts([], far) == 0


def test_nothing_is_drafted_before_a_step_was_timed() -> None:
    assert Speculation(lambda num: 0.0).num_drafts(match=2, most=8) == 0


def test_the_number_follows_what_is_accepted() -> None:
    speculation = Speculation(lambda num: 0.02 * num)
    speculation.took(0.1, num_drafts=0)
    for _ in range(20):
        speculation.verified(2, 4, num_wrong=0)
    assert speculation.acceptance(3) > 0.9
    assert speculation.num_drafts(match=2, most=8) == 8
    for _ in range(30):
        speculation.verified(2, 0, num_wrong=1)
    assert speculation.num_drafts(match=2, most=8) == 0
    for _ in range(10):  # the first of what was not sent was right
        speculation.verified(2, 1, num_wrong=0)
    assert speculation.num_drafts(match=2, most=8) > 0


def test_drafts_count_by_the_length_of_what_has_matched() -> None:
    speculation = Speculation(lambda num: 0.02 * num)
    speculation.took(0.1, num_drafts=0)
    shares = [speculation.acceptance(match) for match in range(1, 8)]
    assert shares == sorted(shares)
    for _ in range(20):
        speculation.verified(1, 0, num_wrong=1)
    for _ in range(20):
        speculation.verified(4, 8, num_wrong=0)
    assert speculation.num_drafts(match=1, most=8) == 0
    assert speculation.num_drafts(match=4, most=8) == 8
    assert speculation.acceptance(2) == shares[1]


def test_the_time_of_a_step_is_learnt_with_and_without_drafts() -> None:
    speculation = Speculation(lambda num: 0.05 * num)
    for _ in range(50):
        speculation.took(0.3, num_drafts=2)
    assert speculation.plain_s == pytest.approx(0.2)
    for _ in range(50):
        speculation.took(0.1, num_drafts=8)  # faster than drafts alone were thought to take
    assert speculation.plain_s == pytest.approx(0.1 / 9, rel=0.01)
