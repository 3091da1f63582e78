"""The mean response time of any central dispatch policy on a small system, by enumeration: an oracle for tests."""

from collections.abc import Sequence

import numpy as np

from chainserve.planning.dispatch import Policy

State = tuple[tuple[int, ...], int]  # sessions per chain, requests waiting


def response_time(
    policy: Policy, rates: Sequence[float], capacities: Sequence[int], *, arrival_rate: float, max_waiting: int
) -> float:
    """Mean seconds from arrival to end, for Poisson arrivals and exponential work.

    Requests that would be more than `max_waiting` in the queue are turned away: choose it so large that none is.
    """
    numbers: dict[State, int] = {((0,) * len(rates), 0): 0}
    flows: list[tuple[State, State, float]] = []
    for state in (pending := list(numbers)):
        sessions, num_waiting = state
        followers = [(settled(policy, sessions, num_waiting + 1), arrival_rate)] if num_waiting < max_waiting else []
        for chain, num_sessions in enumerate(sessions):
            if num_sessions:
                ended = (*sessions[:chain], num_sessions - 1, *sessions[chain + 1 :])
                followers.append((settled(policy, ended, num_waiting), num_sessions * rates[chain]))
        for follower, rate in followers:
            assert all(number <= capacity for number, capacity in zip(follower[0], capacities, strict=True))
            if follower not in numbers:
                numbers[follower] = len(numbers)
                pending.append(follower)
            flows.append((state, follower, rate))
    generator = np.zeros((len(numbers), len(numbers)))
    for state, follower, rate in flows:
        generator[numbers[follower], numbers[state]] += rate
        generator[numbers[state], numbers[state]] -= rate
    generator[-1] = 1
    shares = np.linalg.solve(generator, np.eye(len(numbers))[-1])
    return (
        sum(
            float(shares[number]) * (sum(sessions) + num_waiting) for (sessions, num_waiting), number in numbers.items()
        )
        / arrival_rate
    )


def settled(policy: Policy, sessions: Sequence[int], num_waiting: int) -> State:
    """Where a system is once the policy has dispatched all that it wants to."""
    after = list(sessions)
    while num_waiting and (chain := policy.choose(after, num_waiting)) is not None:
        after[chain] += 1
        num_waiting -= 1
    return tuple(after), num_waiting
