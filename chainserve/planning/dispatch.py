"""Which chain a request joins: the paper's rule and those it is compared with.

The live system and the simulator ask the same objects. A policy knows each chain's rate (sessions per second of one
place) and capacity, and is told how many sessions are there; it keeps no state but its random numbers.
"""

import random
from collections.abc import Sequence
from typing import Protocol

from chainserve.planning.values import ROUNDING, require


class Policy(Protocol):
    """A rule of dispatch, asked after every arrival and after every end of a session."""

    is_central: bool
    """Whether requests wait in one queue for all chains (FIFO, its head is dispatched) or each at its chain."""

    def choose(self, num_sessions: Sequence[int], num_waiting: int = 1) -> int | None:
        """Index of the chain that the next request joins; None if it waits in the central queue.

        `num_sessions` counts per chain the sessions on it and the requests queueing for it (Z_l). `num_waiting`
        counts the central queue with the request in question, which is its head: 1 if nobody else waits. A central
        policy is asked again until it says None or nobody waits, and names only chains with a place free; any other
        policy is asked once per request, when it arrives, and always names a chain.
        """
        ...


class JoinFastestFree:
    """Join the fastest chain with a place free, else wait in the one queue: JFFC (Sun et al. 2026, Alg. 3).

    Stable for every arrival rate below the total rate (Lemma 3).
    """

    is_central = True

    def __init__(self, rates: Sequence[float], capacities: Sequence[int]) -> None:
        self._chains = tuple((chain, capacities[chain]) for chain in fastest_first(rates, capacities))

    def choose(self, num_sessions: Sequence[int], num_waiting: int = 1) -> int | None:
        for chain, capacity in self._chains:
            if num_sessions[chain] < capacity:
                return chain
        return None


class JoinPatiently:
    """Join the fastest chain with a place free, unless waiting for the faster ones, all full, costs less.

    Beyond the paper. With q waiting, the last of them would have all faster chains (n places, together S per second)
    free for it after q / (S - lambda) seconds, as later arrivals keep them busy too, and be served there in n / S on
    average. A slower chain frees everybody behind its newcomer from this wait, and so is joined once

        q >= (S - lambda) * (1 / mu_l - n / S),

    for lambda = 0 the rule of Agrawala et al. 1984. Chains as fast as the faster ones, and all chains if
    lambda >= S, are joined at once, as JFFC does. The right side is finite: from some length of the queue on no place
    stays free, so this is stable for every arrival rate below the total rate, as JFFC is, even if `arrival_rate`
    is a wrong guess. Too high a guess gives JFFC; too low a one waits too long, so guess high.
    """

    is_central = True

    def __init__(self, rates: Sequence[float], capacities: Sequence[int], *, arrival_rate: float) -> None:
        queues = patience(rates, capacities, arrival_rate=arrival_rate)
        self._chains = tuple((chain, capacities[chain], queues[chain]) for chain in fastest_first(rates, capacities))

    def choose(self, num_sessions: Sequence[int], num_waiting: int = 1) -> int | None:
        for chain, capacity, queue in self._chains:
            if num_sessions[chain] < capacity:
                return chain if num_waiting >= queue else None
        return None


class JoinShortestQueue:
    """Join the chain with the fewest requests too many per place: least max(0, Z_l - c_l + 1) / c_l.

    Ties fall at random (JSQ), or with `is_speed_aware` to the fastest chain (SA-JSQ).
    """

    is_central = False

    def __init__(
        self, rates: Sequence[float], capacities: Sequence[int], *, rng: random.Random, is_speed_aware: bool = False
    ) -> None:
        self._chains = tuple((chain, capacities[chain]) for chain in fastest_first(rates, capacities))
        self._pick = rng.choice
        self._is_speed_aware = is_speed_aware

    def choose(self, num_sessions: Sequence[int], num_waiting: int = 1) -> int | None:
        queues = [max(0, num_sessions[chain] - capacity + 1) / capacity for chain, capacity in self._chains]
        shortest = min(queues)
        if self._is_speed_aware:
            return self._chains[queues.index(shortest)][0]
        return self._pick([self._chains[place][0] for place, queue in enumerate(queues) if queue == shortest])


class JoinIdle:
    """Join any chain with a place free, else any chain: JIQ."""

    is_central = False

    def __init__(self, rates: Sequence[float], capacities: Sequence[int], *, rng: random.Random) -> None:
        self._chains = tuple((chain, capacities[chain]) for chain in sorted(fastest_first(rates, capacities)))
        self._pick = rng.choice

    def choose(self, num_sessions: Sequence[int], num_waiting: int = 1) -> int | None:
        free = [chain for chain, capacity in self._chains if num_sessions[chain] < capacity]
        return self._pick(free or range(len(self._chains)))


class ShortestExpectedDelay:
    """Join the chain with the least (1 + max(0, Z_l - c_l + 1) / c_l) / mu_l, of equals the fastest: SED."""

    is_central = False

    def __init__(self, rates: Sequence[float], capacities: Sequence[int]) -> None:
        self._chains = tuple((chain, capacities[chain], 1 / rates[chain]) for chain in fastest_first(rates, capacities))

    def choose(self, num_sessions: Sequence[int], num_waiting: int = 1) -> int | None:
        best, least_s = None, float("inf")
        for chain, capacity, service_s in self._chains:
            num_ahead = num_sessions[chain] - capacity + 1
            delay_s = service_s if num_ahead <= 0 else service_s * (1 + num_ahead / capacity)
            if delay_s < least_s:
                best, least_s = chain, delay_s
        return best


class RandomChain:
    """Join any chain."""

    is_central = False

    def __init__(self, rates: Sequence[float], capacities: Sequence[int], *, rng: random.Random) -> None:
        self._num_chains = len(fastest_first(rates, capacities))
        self._pick = rng.randrange

    def choose(self, num_sessions: Sequence[int], num_waiting: int = 1) -> int | None:
        return self._pick(self._num_chains)


def patience(rates: Sequence[float], capacities: Sequence[int], *, arrival_rate: float) -> list[float]:
    """How many have to wait before one of them joins each chain while the faster ones are full: `JoinPatiently`'s rule.

    0 or less: it is joined at once.
    """
    require("arrival_rate", arrival_rate, positive=False)
    queues, num_faster, faster_rate = [0.0] * len(rates), 0, 0.0
    for chain in fastest_first(rates, capacities):
        if num_faster > 0:
            wait = (faster_rate - arrival_rate) * (1 / rates[chain] - num_faster / faster_rate)
            queues[chain] = wait - ROUNDING
        num_faster += capacities[chain]
        faster_rate += capacities[chain] * rates[chain]
    return queues


def fastest_first(rates: Sequence[float], capacities: Sequence[int]) -> list[int]:
    """Indices of the chains by falling rate, then as given; ValueError for rates or capacities no chain can have."""
    if len(rates) != len(capacities):
        raise ValueError(f"{len(rates)} rates and {len(capacities)} capacities: each chain has one of both")
    if len(rates) == 0:
        raise ValueError("there are no chains")
    for chain, (rate, capacity) in enumerate(zip(rates, capacities, strict=True)):
        require(f"rate of chain {chain}", rate)
        if not capacity >= 1:
            raise ValueError(f"capacity of chain {chain} is {capacity}: it holds at least one session")
    return sorted(range(len(rates)), key=lambda chain: -rates[chain])
