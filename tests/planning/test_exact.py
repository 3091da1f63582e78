"""The exact mean response time of small systems: check value, closed forms, and an enumeration with the queue in it."""

import math

import pytest
from examples import CHECK_ARRIVAL_RATE, CHECK_CAPACITIES, CHECK_EXACT_S, CHECK_RATES
from hypothesis import given, settings
from hypothesis import strategies as st
from markov import response_time

from chainserve.planning.dispatch import JoinFastestFree
from chainserve.planning.exact import exact_response_time


def test_the_check_value_holds_in_any_order_of_the_chains() -> None:
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        rates, capacities = [CHECK_RATES[chain] for chain in order], [CHECK_CAPACITIES[chain] for chain in order]
        exact_s = exact_response_time(rates, capacities, arrival_rate=CHECK_ARRIVAL_RATE)
        assert exact_s == pytest.approx(CHECK_EXACT_S, abs=5e-6)


def test_one_place_is_the_m_m_1_queue() -> None:
    assert exact_response_time([2.0], [1], arrival_rate=1.5) == pytest.approx(1 / (2.0 - 1.5))


@pytest.mark.parametrize("load", [1e-6, 0.5, 0.99])
def test_two_equal_places_are_the_m_m_2_queue_on_one_chain_or_on_two(load: float) -> None:
    expected = pytest.approx(1 / (1 - load**2))
    assert exact_response_time([1.0], [2], arrival_rate=2 * load) == expected
    assert exact_response_time([1.0, 1.0], [1, 1], arrival_rate=2 * load) == expected


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.2, 2), st.integers(1, 2)), min_size=1, max_size=3),
    st.floats(0.01, 0.6),
)
def test_it_agrees_with_an_enumeration_that_has_the_queue_in_it(system: list[tuple[float, int]], load: float) -> None:
    rates, capacities = zip(*system, strict=True)
    arrival_rate = load * sum(rate * capacity for rate, capacity in system)
    policy = JoinFastestFree(rates, capacities)
    enumerated_s = response_time(policy, rates, capacities, arrival_rate=arrival_rate, max_waiting=60)
    exact_s = exact_response_time(rates, capacities, arrival_rate=arrival_rate)
    assert exact_s == pytest.approx(enumerated_s, rel=1e-8)


def test_from_the_total_rate_on_it_is_infinite() -> None:
    assert exact_response_time(CHECK_RATES, CHECK_CAPACITIES, arrival_rate=4.7) == math.inf


def test_too_many_states_are_refused_before_they_are_laid_out() -> None:
    with pytest.raises(ValueError, match="1030301 states are too many"):
        exact_response_time([3.0, 2.0, 1.0], [100, 100, 100], arrival_rate=1.0)
