"""How many drafts pay."""

import random

import pytest

from chainserve.planning.speculation import Speculation, best_num_drafts, expected_tokens


def test_expected_tokens_are_those_of_a_geometric_run() -> None:
    assert expected_tokens(0.0, 5) == 1
    assert expected_tokens(1.0, 5) == 6
    assert expected_tokens(0.5, 2) == pytest.approx(1 + 0.5 + 0.25)
    rng = random.Random(0)
    runs = [next((at for at in range(4) if rng.random() > 0.7), 4) + 1 for _ in range(20_000)]
    assert expected_tokens(0.7, 4) == pytest.approx(sum(runs) / len(runs), rel=0.02)


def test_drafts_pay_where_the_way_is_long_and_not_where_steps_are_dear() -> None:
    def near(num: int) -> float:
        return 0.01 + 0.01 * num

    def far(num: int) -> float:
        return 0.2 + 0.01 * num

    assert best_num_drafts(0.5, near, most=8) == 0
    assert best_num_drafts(0.9, near, most=8) == 0
    assert best_num_drafts(0.5, far, most=8) >= 3
    assert best_num_drafts(0.95, far, most=8) == 8
    assert best_num_drafts(0.0, far, most=8) == 0
    assert best_num_drafts(0.9, far, most=0) == 0


def test_nothing_is_drafted_before_a_step_was_timed() -> None:
    assert Speculation(lambda num: 0.0).num_drafts(most=8) == 0


def test_the_number_follows_what_is_accepted() -> None:
    speculation = Speculation(lambda num: 0.02 * num)
    speculation.took(0.1, num_drafts=0)
    for _ in range(20):
        speculation.verified(4, num_wrong=0)
    assert speculation.acceptance > 0.95
    assert speculation.num_drafts(most=8) == 8
    for _ in range(30):
        speculation.verified(0, num_wrong=1)
    assert speculation.num_drafts(most=8) == 0
    for _ in range(10):  # the first of what was not sent was right
        speculation.verified(1, num_wrong=0)
    assert speculation.num_drafts(most=8) > 0


def test_the_time_of_a_step_is_learnt_with_and_without_drafts() -> None:
    speculation = Speculation(lambda num: 0.05 * num)
    for _ in range(50):
        speculation.took(0.3, num_drafts=2)
    assert speculation.plain_s == pytest.approx(0.2)
    for _ in range(50):
        speculation.took(0.1, num_drafts=8)  # faster than drafts alone were thought to take
    assert speculation.plain_s == pytest.approx(0.1 / 9, rel=0.01)
