"""Bounds on the mean response time: check values, closed forms, the exact chain, and sizes that would overflow."""

import math
import random
from collections.abc import Sequence

import pytest
from examples import CHECK_ARRIVAL_RATE, CHECK_CAPACITIES, CHECK_LOWER_S, CHECK_RATES, CHECK_UPPER_S
from hypothesis import given, settings
from hypothesis import strategies as st

from chainserve.planning.bounds import response_time_bounds
from chainserve.planning.exact import exact_response_time

SYSTEMS = st.lists(st.tuples(st.floats(0.01, 10), st.integers(1, 3)), min_size=1, max_size=4)
LOADS = st.floats(0.001, 0.999)


def m_m_c(rate: float, num_places: int, *, arrival_rate: float) -> float:
    """Mean response time of one queue before equal places (Erlang C)."""
    offered = arrival_rate / rate
    load = offered / num_places
    blocked = 1.0  # Erlang B, by its recursion over places
    for place in range(1, num_places + 1):
        blocked = offered * blocked / (place + offered * blocked)
    waits = blocked / (1 - load * (1 - blocked))
    return 1 / rate + waits / (num_places * rate - arrival_rate)


def test_the_check_values_hold() -> None:
    bounds = response_time_bounds(CHECK_RATES, CHECK_CAPACITIES, arrival_rate=CHECK_ARRIVAL_RATE)
    assert bounds.lower_s == pytest.approx(CHECK_LOWER_S, abs=5e-6)
    assert bounds.upper_s == pytest.approx(CHECK_UPPER_S, abs=5e-6)


@pytest.mark.parametrize(("rate", "num_places"), [(1.0, 1), (0.25, 3), (3.0, 40), (0.1, 1000)])
@pytest.mark.parametrize("load", [1e-9, 0.3, 0.8, 0.999])
def test_both_bounds_of_equal_chains_are_erlang_s(rate: float, num_places: int, load: float) -> None:
    arrival_rate = load * rate * num_places
    bounds = response_time_bounds([rate, rate], [num_places, num_places], arrival_rate=2 * arrival_rate)
    expected = pytest.approx(m_m_c(rate, 2 * num_places, arrival_rate=2 * arrival_rate), rel=1e-9)
    assert bounds.lower_s == expected
    assert bounds.upper_s == expected


@settings(max_examples=60, deadline=None)
@given(SYSTEMS, LOADS)
def test_the_exact_value_lies_between_the_bounds(system: list[tuple[float, int]], load: float) -> None:
    rates, capacities = zip(*system, strict=True)
    arrival_rate = load * sum(rate * capacity for rate, capacity in system)
    exact_s = exact_response_time(rates, capacities, arrival_rate=arrival_rate)
    bounds = response_time_bounds(rates, capacities, arrival_rate=arrival_rate)
    assert bounds.lower_s <= exact_s * (1 + 1e-9)
    assert exact_s <= bounds.upper_s * (1 + 1e-9)


@settings(max_examples=100, deadline=None)
@given(SYSTEMS, LOADS, LOADS)
def test_more_load_raises_the_lower_bound(system: list[tuple[float, int]], load: float, other: float) -> None:
    rates, capacities = zip(*system, strict=True)
    total = sum(rate * capacity for rate, capacity in system)
    less = response_time_bounds(rates, capacities, arrival_rate=min(load, other) * total)
    more = response_time_bounds(rates, capacities, arrival_rate=max(load, other) * total)
    assert less.lower_s <= more.lower_s * (1 + 1e-9)


@settings(max_examples=50, deadline=None)
@given(SYSTEMS, LOADS, st.randoms(use_true_random=False))
def test_the_order_of_the_chains_does_not_matter(
    system: list[tuple[float, int]], load: float, rng: random.Random
) -> None:
    arrival_rate = load * sum(rate * capacity for rate, capacity in system)
    shuffled = list(system)
    rng.shuffle(shuffled)
    first, second = (
        response_time_bounds(*zip(*chains, strict=True), arrival_rate=arrival_rate) for chains in (system, shuffled)
    )
    assert first == second


@pytest.mark.parametrize("load", [1e-12, 0.01, 0.5, 0.9, 1 - 1e-6, 1 - 1e-13])
def test_fifty_thousand_places_neither_overflow_nor_lose_the_tail(load: float) -> None:
    rates, capacities = [1.0, 0.5, 0.001], [20_000, 20_000, 10_000]
    total = 30_010.0
    bounds = response_time_bounds(rates, capacities, arrival_rate=load * total)
    assert 1 - 1e-9 <= bounds.lower_s < bounds.upper_s < math.inf


@pytest.mark.parametrize("num_places", [1, 100, 50_000])
def test_close_to_the_total_rate_what_counts_is_the_queue(num_places: int) -> None:
    arrival_rate = (1 - 1e-10) * num_places
    bounds = response_time_bounds([1.0], [num_places], arrival_rate=arrival_rate)
    assert bounds.lower_s == pytest.approx(1 / (num_places - arrival_rate), rel=1e-3)


@pytest.mark.parametrize("load", [1.0, 1.5, 1e6])
def test_from_the_total_rate_on_both_are_infinite(load: float) -> None:
    bounds = response_time_bounds(CHECK_RATES, CHECK_CAPACITIES, arrival_rate=load * 4.7)
    assert (bounds.lower_s, bounds.upper_s) == (math.inf, math.inf)


def test_just_below_the_total_rate_they_are_finite() -> None:
    bounds = response_time_bounds([1.0], [1], arrival_rate=math.nextafter(1.0, 0))
    assert 1e15 < bounds.lower_s <= bounds.upper_s < math.inf


@pytest.mark.parametrize(
    ("rates", "capacities", "arrival_rate", "fact"),
    [
        ([], [], 1.0, "no chains"),
        ([1.0], [1, 2], 1.0, "1 rates and 2 capacities"),
        ([1.0, 0.0], [1, 1], 1.0, "rate of chain 1 is 0"),
        ([-1.0], [1], 1.0, "rate of chain 0 is -1"),
        ([math.nan], [1], 1.0, "rate of chain 0 is nan"),
        ([math.inf], [1], 1.0, "rate of chain 0 is inf"),
        ([1.0], [0], 1.0, "capacity of chain 0 is 0"),
        ([1.0], [1], 0.0, "arrival_rate is 0"),
        ([1.0], [1], -1.0, "arrival_rate is -1"),
        ([1.0], [1], math.nan, "arrival_rate is nan"),
    ],
)
def test_what_cannot_be_is_refused(
    rates: Sequence[float], capacities: Sequence[int], arrival_rate: float, fact: str
) -> None:
    for response_time in (response_time_bounds, exact_response_time):
        with pytest.raises(ValueError, match=fact):
            response_time(rates, capacities, arrival_rate=arrival_rate)
