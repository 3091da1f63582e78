"""Planned chains under a policy: against closed forms and the exact Markov chain, FIFO order, limits."""

import math
import random
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainserve.planning.dispatch import (
    JoinFastestFree,
    JoinIdle,
    JoinShortestQueue,
    Policy,
    RandomChain,
    ShortestExpectedDelay,
)
from chainserve.planning.exact import exact_response_time
from chainserve.planning.values import PlannedChain
from chainserve.simulator.chains import ChainScheduler
from chainserve.simulator.engine import InvariantError, Outcome, run
from chainserve.simulator.report import batch_means
from chainserve.simulator.times import by_size
from chainserve.simulator.workloads import Requests, make_requests, paper_requests
from chainserve.types import Chain, Hop, PeerId, Span

MakePolicy = Callable[[Sequence[float], Sequence[int]], Policy]
POLICIES: dict[str, MakePolicy] = {
    "JFFC": JoinFastestFree,
    "JSQ": lambda rates, capacities: JoinShortestQueue(rates, capacities, rng=random.Random(1)),
    "SA-JSQ": lambda rates, capacities: JoinShortestQueue(rates, capacities, rng=random.Random(1), is_speed_aware=True),
    "JIQ": lambda rates, capacities: JoinIdle(rates, capacities, rng=random.Random(1)),
    "SED": ShortestExpectedDelay,
    "random": lambda rates, capacities: RandomChain(rates, capacities, rng=random.Random(1)),
}


def chains_of(rates: Sequence[float], capacities: Sequence[int]) -> list[PlannedChain]:
    """Chains of one server and one block each."""
    pairs = zip(rates, capacities, strict=True)
    return [
        PlannedChain(Chain((Hop(PeerId(str(place)), Span(0, 1)),)), capacity, 1 / rate)
        for place, (rate, capacity) in enumerate(pairs)
    ]


def simulate(
    requests: Requests, rates: Sequence[float], capacities: Sequence[int], *, make_policy: MakePolicy = JoinFastestFree
) -> Outcome:
    chains = chains_of(rates, capacities)
    return run(requests, ChainScheduler(make_policy(rates, capacities), chains, by_size(requests, chains)))


def erlang_response_s(rate: float, num_servers: int, *, arrival_rate: float) -> float:
    """Mean response time of M/M/c by the formula of Erlang C."""
    offered = arrival_rate / rate
    full = offered**num_servers / math.factorial(num_servers) * num_servers / (num_servers - offered)
    waits = full / (sum(offered**n / math.factorial(n) for n in range(num_servers)) + full)
    return 1 / rate + waits / (num_servers * rate - arrival_rate)


@pytest.mark.parametrize(("num_servers", "load"), [(1, 0.5), (1, 0.8), (4, 0.8)])
def test_one_chain_is_the_queue_of_erlang(num_servers: int, load: float) -> None:
    arrival_rate = load * num_servers * 0.5
    requests = paper_requests(100_000, rate=arrival_rate, rng=np.random.default_rng(0))
    outcome = simulate(requests, [0.5], [num_servers])
    measured = batch_means(outcome.response_s, warm_up=0.1)
    assert erlang_response_s(0.5, num_servers, arrival_rate=arrival_rate) in measured
    assert measured.half_width_s < 0.12 * measured.mean_s


@pytest.mark.parametrize("load", [0.3, 0.7])
@pytest.mark.parametrize(
    ("rates", "capacities"), [((1.0, 0.7, 0.3), (2, 3, 2)), ((0.2, 2.0), (5, 1)), ((1.0, 1.0, 0.1, 0.5), (1, 2, 3, 1))]
)
def test_simulated_jffc_meets_the_exact_response_time(
    rates: tuple[float, ...], capacities: tuple[int, ...], load: float
) -> None:
    arrival_rate = load * float(np.dot(rates, capacities))
    requests = paper_requests(60_000, rate=arrival_rate, rng=np.random.default_rng(1))
    measured = batch_means(simulate(requests, rates, capacities).response_s, warm_up=0.1)
    assert exact_response_time(rates, capacities, arrival_rate=arrival_rate) in measured
    assert measured.half_width_s < 0.08 * measured.mean_s


def test_random_dispatch_makes_queues_of_their_own() -> None:
    requests = paper_requests(60_000, rate=1.2, rng=np.random.default_rng(2))
    measured = batch_means(simulate(requests, [1.0, 1.0], [1, 1], make_policy=POLICIES["random"]).response_s)
    assert erlang_response_s(1.0, 1, arrival_rate=0.6) in measured


@pytest.mark.parametrize("name", POLICIES)
def test_the_same_seed_gives_the_same_run(name: str) -> None:
    requests = paper_requests(2_000, rate=2.0, rng=np.random.default_rng(3))
    first, second = (
        simulate(requests, [1.0, 0.5], [2, 2], make_policy=POLICIES[name]).finish_s.tolist() for _ in range(2)
    )
    assert first == second


@given(
    name=st.sampled_from(sorted(POLICIES)),
    gaps_s=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=40),
    chains=st.lists(st.tuples(st.sampled_from([0.5, 1.0, 2.0]), st.integers(1, 3)), min_size=1, max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_no_chain_holds_more_than_its_capacity_and_nobody_overtakes(
    name: str, gaps_s: list[float], chains: list[tuple[float, int]]
) -> None:
    rates, capacities = zip(*chains, strict=True)
    requests = make_requests(np.cumsum(gaps_s))
    outcome = simulate(requests, rates, capacities, make_policy=POLICIES[name])
    assert not outcome.is_refused.any()
    for chain, capacity in enumerate(capacities):
        here = outcome.chain == chain
        starts_s, finishes_s = outcome.start_s[here], outcome.finish_s[here]
        running = (starts_s[:, None] <= starts_s) & (starts_s < finishes_s[:, None])
        assert not here.any() or running.sum(axis=0).max() <= capacity
        assert (np.diff(starts_s) >= 0).all()
    if name == "JFFC":
        assert (np.diff(outcome.start_s) >= 0).all()


def test_the_head_of_the_queue_takes_the_place_that_is_freed() -> None:
    requests = make_requests([0.0, 0.0, 1.0, 2.0], size=[3.0, 1.0, 1.0, 1.0])
    outcome = simulate(requests, [1.0, 0.1], [1, 1])
    assert outcome.chain.tolist() == [0, 1, 0, 0]
    assert outcome.start_s.tolist() == [0, 0, 3, 4]


class Always:
    """A policy that answers the same whatever is asked."""

    def __init__(self, answer: int | None, *, is_central: bool) -> None:
        self.answer = answer
        self.is_central = is_central

    def choose(self, num_sessions: Sequence[int], num_waiting: int = 1) -> int | None:
        return self.answer


def test_a_policy_that_overfills_a_chain_is_stopped() -> None:
    with pytest.raises(InvariantError, match="request 1 joins chain 0, whose 1 places are taken"):
        simulate(
            make_requests([0.0, 0.5]), [1.0], [1], make_policy=lambda rates, capacities: Always(0, is_central=True)
        )


def test_a_policy_that_leaves_requests_in_the_queue_for_ever_is_found_out() -> None:
    with pytest.raises(InvariantError, match="request 0 and 1 others never started"):
        simulate(
            make_requests([0.0, 0.5]), [1.0], [1], make_policy=lambda rates, capacities: Always(None, is_central=True)
        )


def test_a_policy_without_a_central_queue_has_to_name_a_chain() -> None:
    with pytest.raises(InvariantError, match="request 0 is to wait in a central queue"):
        simulate(make_requests([0.0]), [1.0], [1], make_policy=lambda rates, capacities: Always(None, is_central=False))


class InPairs:
    """A policy that lets nobody start alone."""

    is_central = True

    def choose(self, num_sessions: Sequence[int], num_waiting: int = 1) -> int | None:
        return 0 if num_waiting >= 2 or num_sessions[0] % 2 else None


def test_a_policy_may_start_several_at_once() -> None:
    requests = make_requests([0.0, 1.0, 2.0, 5.0], size=9.0)
    outcome = simulate(requests, [1.0], [4], make_policy=lambda rates, capacities: InPairs())
    assert outcome.start_s.tolist() == [1, 1, 5, 5]


class LastInFirstOut(deque[int]):
    """A queue whose tail is served first."""

    def popleft(self) -> int:
        return self.pop()


@pytest.mark.parametrize("make_policy", [JoinFastestFree, ShortestExpectedDelay])
def test_overtaking_is_found_out(make_policy: MakePolicy) -> None:
    requests, chains = make_requests([0.0, 0.1, 0.2]), chains_of([1.0], [1])
    scheduler = ChainScheduler(make_policy([1.0], [1]), chains, by_size(requests, chains))
    scheduler._queues = [LastInFirstOut()]
    with pytest.raises(InvariantError, match="request 1 is overtaken by request 2"):
        run(requests, scheduler)


def test_wakes_and_empty_plans_make_no_sense_here() -> None:
    requests, chains = make_requests([0.0]), chains_of([1.0], [1])
    scheduler = ChainScheduler(JoinFastestFree([1.0], [1]), chains, by_size(requests, chains))
    with pytest.raises(InvariantError, match="request 0 is woken"):
        scheduler.wake(0)
    with pytest.raises(ValueError, match="there are no chains"):
        ChainScheduler(JoinFastestFree([1.0], [1]), [], by_size(requests, []))
