"""Figures of a run."""

import math

import numpy as np
import pytest

from chainserve.simulator.engine import Outcome
from chainserve.simulator.report import Interval, Summary, batch_means, summarize
from chainserve.simulator.workloads import make_requests


def outcome_of(start_s: list[float], finish_s: list[float]) -> Outcome:
    """Of requests that arrive at 0, 1, 2, ..."""
    requests = make_requests(np.arange(len(start_s)))
    return Outcome(
        requests=requests, start_s=np.array(start_s), finish_s=np.array(finish_s), chain=np.zeros(len(start_s), int)
    )


def test_sums_up_what_users_met() -> None:
    values = Summary.of(np.arange(101.0))
    assert values == Summary(mean_s=50, median_s=50, p95_s=95, p99_s=99)


def test_refused_requests_and_the_warm_up_do_not_count_as_served() -> None:
    outcome = outcome_of([100, 1, math.nan, 5], [200, 3, math.nan, 6])
    report = summarize(outcome, warm_up=0.25)
    assert (report.num_requests, report.num_refused) == (3, 1)
    assert report.waiting.mean_s == 1
    assert report.service.mean_s == 1.5
    assert report.response.mean_s == 2.5
    assert summarize(outcome).num_requests == 4


def test_nothing_served_has_no_figures() -> None:
    with pytest.raises(ValueError, match="no requests to sum up"):
        summarize(outcome_of([math.nan], [math.nan]))


def test_the_interval_holds_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(300, 1000))
    values = 5 + noise + 0.9 * np.roll(noise, 1, axis=1)  # neighbours depend on each other
    intervals = [batch_means(row, deviations=2.093) for row in values]  # 95 % with 19 degrees of freedom
    assert 0.92 <= np.mean([5.0 in interval for interval in intervals]) <= 0.98


def test_an_interval_holds_what_is_near_its_mean() -> None:
    interval = Interval(mean_s=2.0, half_width_s=0.5)
    assert 2.5 in interval
    assert 1.4 not in interval


def test_the_warm_up_is_left_out_of_the_interval() -> None:
    assert batch_means(np.array([1e9] * 100 + [3.0] * 900), warm_up=0.1) == Interval(mean_s=3, half_width_s=0)


def test_too_few_values_give_no_interval() -> None:
    with pytest.raises(ValueError, match="19 values do not fill 2 batches"):
        batch_means(np.ones(19), num_batches=2)
    with pytest.raises(ValueError, match="do not fill 1 batches"):
        batch_means(np.ones(99), num_batches=1)


@pytest.mark.parametrize("warm_up", [-0.1, 1.0, math.nan])
def test_the_warm_up_is_a_share(warm_up: float) -> None:
    with pytest.raises(ValueError, match="warm_up is"):
        batch_means(np.ones(100), warm_up=warm_up)
