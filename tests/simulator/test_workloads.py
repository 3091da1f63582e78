"""Requests: their statistics, the trace, and what is no workload."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainserve.simulator.workloads import (
    Requests,
    at_rate,
    gamma_arrivals,
    make_requests,
    paper_requests,
    part,
    poisson_arrivals,
    read_trace,
    varying_arrivals,
)

TRACE = [
    "TIMESTAMP,ContextTokens,GeneratedTokens",
    "2023-11-16 18:17:03.9799600,4808,10",
    "2023-11-16 18:17:04.0319600,3180,8",
    "2023-11-16 18:17:05,110,27",
]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_poisson_gaps_vary_as_much_as_they_last() -> None:
    gaps_s = np.diff(poisson_arrivals(50_000, rate=4.0, rng=rng()))
    assert gaps_s.mean() == pytest.approx(0.25, rel=0.02)
    assert gaps_s.std() == pytest.approx(0.25, rel=0.02)


@pytest.mark.parametrize("variation", [0.3, 1.0, 3.0])
def test_gamma_gaps_have_the_rate_and_the_variation_asked_for(variation: float) -> None:
    gaps_s = np.diff(gamma_arrivals(100_000, rate=2.0, variation=variation, rng=rng()))
    assert gaps_s.mean() == pytest.approx(0.5, rel=0.04)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(variation, rel=0.04)


def test_the_rate_varies_as_its_pieces_say() -> None:
    arrival_s = varying_arrivals(60_000, pieces=[(10.0, 5.0), (5.0, 0.0), (20.0, 1.0)], rng=rng())
    within_s, num_cycles = arrival_s % 35, arrival_s[-1] / 35
    in_pieces = [np.sum((start <= within_s) & (within_s < end)) for start, end in [(0, 10), (10, 15), (15, 35)]]
    assert np.array(in_pieces) / num_cycles == pytest.approx([50, 0, 20], rel=0.03)
    assert (np.diff(arrival_s) >= 0).all()


def test_a_rate_that_does_not_vary_is_poisson() -> None:
    assert varying_arrivals(100, pieces=[(3.0, 2.0)], rng=rng()) == pytest.approx(
        poisson_arrivals(100, rate=2.0, rng=rng())
    )


def test_the_papers_requests_are_exponential_in_size_and_equal_in_tokens() -> None:
    requests = paper_requests(50_000, rate=0.2, rng=rng(), input_tokens=2000, output_tokens=20)
    assert len(requests) == 50_000
    assert requests.rate == pytest.approx(0.2, rel=0.02)
    assert requests.size.mean() == pytest.approx(1, rel=0.02)
    assert requests.size.std() == pytest.approx(1, rel=0.02)
    assert set(requests.input_tokens.tolist()) == {2000}
    assert set(requests.output_tokens.tolist()) == {20}


def test_the_same_seed_gives_the_same_requests() -> None:
    first, second = (paper_requests(100, rate=1.0, rng=rng(7)) for _ in range(2))
    assert first.arrival_s.tolist() == second.arrival_s.tolist()
    assert first.size.tolist() == second.size.tolist()
    assert first.size.tolist() != paper_requests(100, rate=1.0, rng=rng(8)).size.tolist()


def test_reads_a_trace() -> None:
    requests = read_trace(TRACE)
    assert requests.arrival_s == pytest.approx([0, 0.052, 1.02004])
    assert requests.input_tokens.tolist() == [4808, 3180, 110]
    assert requests.output_tokens.tolist() == [10, 8, 27]
    assert requests.size.tolist() == [1, 1, 1]


@pytest.mark.parametrize("row", ["2023-11-16 18:17:05,110", "yesterday,110,27", "2023-11-16 18:17:05,many,27", ""])
def test_names_the_line_of_a_trace_it_cannot_read(row: str) -> None:
    with pytest.raises(ValueError, match="line 5 of the trace is"):
        read_trace([*TRACE, row])


def test_a_trace_starts_with_its_headings() -> None:
    for lines in ([], TRACE[1:]):
        with pytest.raises(ValueError, match="the first line has to be TIMESTAMP"):
            read_trace(lines)
    with pytest.raises(ValueError, match="there are no requests"):
        read_trace(TRACE[:1])


@given(rate=st.floats(1e-3, 1e3))
@settings(max_examples=30, deadline=None)
def test_a_trace_is_replayed_at_any_rate(rate: float) -> None:
    requests = read_trace(TRACE)
    scaled = at_rate(requests, rate)
    assert scaled.rate == pytest.approx(rate)
    assert np.diff(scaled.arrival_s) / np.diff(requests.arrival_s) == pytest.approx([requests.rate / rate] * 2)
    assert scaled.input_tokens.tolist() == requests.input_tokens.tolist()


def test_a_part_of_a_trace_starts_at_zero() -> None:
    requests = part(read_trace(TRACE), start=1, num_requests=2)
    assert requests.arrival_s == pytest.approx([0, 0.96804])
    assert requests.output_tokens.tolist() == [8, 27]
    with pytest.raises(ValueError, match="there are no requests"):
        part(requests, start=2, num_requests=1)


def test_requests_at_one_time_have_no_rate() -> None:
    with pytest.raises(ValueError, match="no rate"):
        _ = make_requests([1.0, 1.0]).rate


def test_requests_cannot_be_changed() -> None:
    given_s = np.array([1.0, 2.0])
    requests = make_requests(given_s)
    given_s[0] = 9.0
    assert requests.arrival_s.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        requests.size[0] = 2.0


@pytest.mark.parametrize(
    ("wrong", "fact"),
    [
        ({"arrival_s": [2.0, 1.0]}, "in order"),
        ({"arrival_s": [-1.0, 1.0]}, "not negative"),
        ({"arrival_s": [1.0, math.nan]}, "finite"),
        ({"arrival_s": [1.0, math.inf]}, "finite"),
        ({"arrival_s": []}, "there are no requests"),
        ({"input_tokens": [1]}, "as many arrivals"),
        ({"output_tokens": [1, 0]}, "at least one token"),
        ({"input_tokens": [0, 1]}, "at least one token"),
        ({"size": [1.0, 0.0]}, "sizes have to be"),
        ({"size": [1.0, math.nan]}, "sizes have to be"),
    ],
)
def test_refuses_what_are_no_requests(wrong: dict[str, Any], fact: str) -> None:
    right = {"arrival_s": [0.0, 1.0], "input_tokens": [1, 1], "output_tokens": [1, 1], "size": [1.0, 1.0]}
    with pytest.raises(ValueError, match=fact):
        Requests(**{**right, **wrong})


def test_refuses_rates_that_are_none() -> None:
    for rate in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="rate is"):
            poisson_arrivals(3, rate=rate, rng=rng())
        with pytest.raises(ValueError, match="rate is"):
            gamma_arrivals(3, rate=rate, variation=1.0, rng=rng())
        with pytest.raises(ValueError, match="rate is"):
            at_rate(make_requests([0.0, 1.0]), rate)
    with pytest.raises(ValueError, match="variation is 0"):
        gamma_arrivals(3, rate=1.0, variation=0.0, rng=rng())
    with pytest.raises(ValueError, match="duration of a piece is 0"):
        varying_arrivals(3, pieces=[(0.0, 1.0)], rng=rng())
    with pytest.raises(ValueError, match="rate of a piece is -1"):
        varying_arrivals(3, pieces=[(1.0, -1.0)], rng=rng())
    for pieces in ([], [(1.0, 0.0)]):
        with pytest.raises(ValueError, match="no piece has a positive rate"):
            varying_arrivals(3, pieces=pieces, rng=rng())
