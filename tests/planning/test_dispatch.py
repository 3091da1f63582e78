"""Dispatch policies against their definitions, their ties, and what the patient one is for."""

import math
import random
from collections.abc import Sequence
from fractions import Fraction

import pytest
from examples import CHECK_CAPACITIES, CHECK_RATES
from hypothesis import given, settings
from hypothesis import strategies as st
from markov import response_time, settled

from chainserve.planning.dispatch import (
    JoinFastestFree,
    JoinIdle,
    JoinPatiently,
    JoinShortestQueue,
    Policy,
    RandomChain,
    ShortestExpectedDelay,
)
from chainserve.planning.exact import exact_response_time


@st.composite
def occupied(draw: st.DrawFn, most_above: int = 3) -> tuple[list[float], list[int], list[int]]:
    """Rates, capacities, and sessions per chain, up to some more than it holds."""
    chains = draw(st.lists(st.tuples(st.sampled_from([0.2, 0.5, 1.0, 2.0]), st.integers(1, 4)), min_size=1, max_size=5))
    num_sessions = [draw(st.integers(0, capacity + most_above)) for _, capacity in chains]
    return [rate for rate, _ in chains], [capacity for _, capacity in chains], num_sessions


def free_chains(capacities: Sequence[int], num_sessions: Sequence[int]) -> list[int]:
    return [chain for chain, capacity in enumerate(capacities) if num_sessions[chain] < capacity]


def seen(policy: Policy, num_sessions: Sequence[int], *, num_draws: int = 300) -> set[int | None]:
    return {policy.choose(num_sessions) for _ in range(num_draws)}


@settings(max_examples=50, deadline=None)
@given(occupied())
def test_jffc_joins_the_fastest_chain_with_a_place_free(system: tuple[list[float], list[int], list[int]]) -> None:
    rates, capacities, num_sessions = system
    free = free_chains(capacities, num_sessions)
    expected = max(free, key=lambda chain: (rates[chain], -chain)) if free else None
    assert JoinFastestFree(rates, capacities).choose(num_sessions, 7) == expected


@settings(max_examples=50, deadline=None)
@given(occupied())
def test_jsq_joins_any_of_the_shortest_queues_and_sa_jsq_the_fastest_of_them(
    system: tuple[list[float], list[int], list[int]],
) -> None:
    rates, capacities, num_sessions = system
    queues = [
        Fraction(max(0, number - capacity + 1), capacity)
        for number, capacity in zip(num_sessions, capacities, strict=True)
    ]
    shortest = [chain for chain, queue in enumerate(queues) if queue == min(queues)]
    rng = random.Random(1)
    assert seen(JoinShortestQueue(rates, capacities, rng=rng), num_sessions) == set(shortest)
    fastest = max(shortest, key=lambda chain: (rates[chain], -chain))
    assert seen(JoinShortestQueue(rates, capacities, rng=rng, is_speed_aware=True), num_sessions) == {fastest}


@settings(max_examples=50, deadline=None)
@given(occupied())
def test_jiq_joins_any_free_chain_or_else_any(system: tuple[list[float], list[int], list[int]]) -> None:
    rates, capacities, num_sessions = system
    free = free_chains(capacities, num_sessions)
    assert seen(JoinIdle(rates, capacities, rng=random.Random(2)), num_sessions) == set(free or range(len(rates)))


@settings(max_examples=50, deadline=None)
@given(occupied())
def test_sed_joins_a_chain_with_the_least_expected_delay(system: tuple[list[float], list[int], list[int]]) -> None:
    rates, capacities, num_sessions = system
    delays = [
        1 / rate + max(0, number - capacity + 1) / (rate * capacity)
        for rate, capacity, number in zip(rates, capacities, num_sessions, strict=True)
    ]
    chosen = ShortestExpectedDelay(rates, capacities).choose(num_sessions)
    assert chosen is not None
    assert delays[chosen] == pytest.approx(min(delays))


def test_sed_breaks_a_tie_for_the_fastest_chain() -> None:
    assert ShortestExpectedDelay([0.5, 1.0], [1, 1]).choose([0, 1]) == 1


def test_a_random_chain_is_any_chain() -> None:
    assert seen(RandomChain([1.0, 2.0, 3.0], [1, 1, 1], rng=random.Random(3)), [9, 9, 0]) == {0, 1, 2}


def test_equal_seeds_give_equal_choices() -> None:
    for policy in (JoinShortestQueue, JoinIdle, RandomChain):
        first, second = (policy([1.0] * 4, [2] * 4, rng=random.Random(5)) for _ in range(2))
        assert [first.choose([0] * 4) for _ in range(50)] == [second.choose([0] * 4) for _ in range(50)]


def test_only_those_with_one_queue_for_all_are_central() -> None:
    rng = random.Random(0)
    assert JoinFastestFree([1.0], [1]).is_central
    assert JoinPatiently([1.0], [1], arrival_rate=0.5).is_central
    for policy in (JoinShortestQueue, JoinIdle, RandomChain):
        assert not policy([1.0], [1], rng=rng).is_central
    assert not ShortestExpectedDelay([1.0], [1]).is_central


@settings(max_examples=50, deadline=None)
@given(occupied(), st.integers(1, 30), st.floats(0, 20))
def test_patience_joins_the_fastest_free_chain_once_the_queue_is_long_enough(
    system: tuple[list[float], list[int], list[int]], num_waiting: int, arrival_rate: float
) -> None:
    rates, capacities, num_sessions = system
    chosen = JoinPatiently(rates, capacities, arrival_rate=arrival_rate).choose(num_sessions, num_waiting)
    fastest = JoinFastestFree(rates, capacities).choose(num_sessions)
    if fastest is None:
        assert chosen is None
        return
    faster = [chain for chain, rate in enumerate(rates) if (rate, -chain) > (rates[fastest], -fastest)]
    patience = 0.0
    if faster:
        num_places = sum(capacities[chain] for chain in faster)
        faster_rate = sum(capacities[chain] * rates[chain] for chain in faster)
        patience = (faster_rate - arrival_rate) * (1 / rates[fastest] - num_places / faster_rate)
    assert chosen == (fastest if num_waiting >= patience - 1e-9 else None)


@settings(max_examples=50, deadline=None)
@given(occupied(), st.floats(0, 20))
def test_patience_leaves_no_place_free_before_a_long_queue(
    system: tuple[list[float], list[int], list[int]], arrival_rate: float
) -> None:
    rates, capacities, _ = system
    longest = math.ceil(sum(map(math.prod, zip(rates, capacities, strict=True))) / min(rates))
    sessions, num_waiting = settled(
        JoinPatiently(rates, capacities, arrival_rate=arrival_rate), [0] * len(rates), longest + sum(capacities)
    )
    assert list(sessions) == capacities
    assert num_waiting == longest


def test_patience_with_equal_chains_or_too_many_requests_is_jffc() -> None:
    equal = JoinPatiently([1.0, 1.0, 1.0], [1, 2, 3], arrival_rate=0.1)
    assert [equal.choose(sessions) for sessions in ([0, 0, 0], [1, 0, 0], [1, 2, 0], [1, 2, 3])] == [0, 1, 2, None]
    flooded = JoinPatiently([1.0, 0.01], [1, 1], arrival_rate=1.0)
    assert flooded.choose([1, 0]) == 1


@pytest.mark.parametrize("load", [0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize(
    ("rates", "capacities"), [(CHECK_RATES, CHECK_CAPACITIES), ((1.0, 0.2), (2, 3)), ((1.0, 0.1), (1, 1))]
)
def test_patience_answers_no_later_than_jffc_on_average(
    rates: Sequence[float], capacities: Sequence[int], load: float
) -> None:
    arrival_rate = load * sum(map(math.prod, zip(rates, capacities, strict=True)))
    patient = JoinPatiently(rates, capacities, arrival_rate=arrival_rate)
    patient_s = response_time(patient, rates, capacities, arrival_rate=arrival_rate, max_waiting=60)
    assert patient_s <= exact_response_time(rates, capacities, arrival_rate=arrival_rate) * (1 + 1e-6)


def test_patience_gains_what_sed_gains_at_low_load() -> None:
    arrival_rate = 0.3 * 4.7
    policy = JoinPatiently(CHECK_RATES, CHECK_CAPACITIES, arrival_rate=arrival_rate)
    patient_s = response_time(policy, CHECK_RATES, CHECK_CAPACITIES, arrival_rate=arrival_rate, max_waiting=30)
    assert patient_s == pytest.approx(1.1330, abs=1e-4)
    jffc_s = exact_response_time(CHECK_RATES, CHECK_CAPACITIES, arrival_rate=arrival_rate)
    assert jffc_s == pytest.approx(1.1594, abs=1e-4)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_a_rate_that_cannot_be_is_refused_by_all(rate: float) -> None:
    rng = random.Random(0)
    for build in (
        lambda: JoinFastestFree([1.0, rate], [1, 1]),
        lambda: JoinPatiently([1.0, rate], [1, 1], arrival_rate=1.0),
        lambda: JoinShortestQueue([1.0, rate], [1, 1], rng=rng),
        lambda: JoinIdle([1.0, rate], [1, 1], rng=rng),
        lambda: ShortestExpectedDelay([1.0, rate], [1, 1]),
        lambda: RandomChain([1.0, rate], [1, 1], rng=rng),
    ):
        with pytest.raises(ValueError, match="rate of chain 1 is"):
            build()


def test_patience_refuses_a_negative_arrival_rate() -> None:
    with pytest.raises(ValueError, match="arrival_rate is -1"):
        JoinPatiently([1.0], [1], arrival_rate=-1)
