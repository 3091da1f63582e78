"""What a session takes beside others: servers compute prompts one after another, and decode for all at once.

The paper's servers are as fast for each session as for one alone, until their memory is full. Here a session also keeps
the others of its servers waiting, by its turns there (`BlockTimes.turn_s`). Without turns all is as in the paper.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from chainserve.planning.values import ROUNDING, PlannedChain, ServerProfile, require
from chainserve.types import Chain, PeerId

Turns = Mapping[PeerId, float]
"""Seconds per block for which one session keeps all others of a server waiting."""


def turns_of(profiles: Iterable[ServerProfile]) -> Turns:
    """Of mean requests."""
    return {profile.peer: profile.turn_s for profile in profiles}


class Sharing:
    """Servers, the sessions on them, and what one session more would take beside those."""

    def __init__(self, turn_s: Turns) -> None:
        """Nobody is there; servers that `turn_s` does not name keep nobody waiting."""
        self._turn_s = turn_s
        self._busy_s: dict[PeerId, float] = defaultdict(float)

    def add(self, chain: Chain, num_sessions: int = 1) -> None:
        """So many sessions run on this chain: each is at one of its servers at a time."""
        for peer, turn_s in self._turns(chain):
            self._busy_s[peer] += num_sessions * turn_s

    def wait_s(self, chain: Chain) -> float:
        """By how many seconds a session on this chain takes longer than alone."""
        return math.fsum(self._busy_s[hop.peer] for hop in chain.hops)

    def own_s(self, chain: Chain) -> float:
        """What a session on this chain has added to `wait_s` there."""
        return math.fsum(turn_s for _, turn_s in self._turns(chain))

    def service_s(self, planned: PlannedChain) -> float:
        """Seconds of a session on this chain now, if it takes `planned.service_s` alone."""
        return planned.service_s + self.wait_s(planned.chain)

    def _turns(self, chain: Chain) -> Iterator[tuple[PeerId, float]]:
        for hop in chain.hops:
            yield hop.peer, self._turn_s.get(hop.peer, 0.0) * len(hop.span) / len(chain.hops)


class _Full:
    """Chains that are full, and how fast they are together."""

    def __init__(self, turn_s: Turns) -> None:
        self.num_places = 0
        self.sharing = Sharing(turn_s)
        self._chains: list[PlannedChain] = []
        self._rates: list[float] = []  # of all places of each
        self._over: dict[PeerId, set[int]] = defaultdict(set)  # the chains over each server

    @property
    def rate(self) -> float:
        """Sessions per second."""
        return math.fsum(self._rates)

    def add(self, planned: PlannedChain) -> None:
        """One more is full: the chains that share its servers become slower."""
        for hop in planned.chain.hops:
            self._over[hop.peer].add(len(self._chains))
        self._chains.append(planned)
        self._rates.append(0.0)
        self.num_places += planned.capacity
        self.sharing.add(planned.chain, planned.capacity)
        for index in set().union(*(self._over[hop.peer] for hop in planned.chain.hops)):
            other = self._chains[index]
            beside_s = self.sharing.wait_s(other.chain) - self.sharing.own_s(other.chain)
            self._rates[index] = other.capacity / (other.service_s + max(0.0, beside_s))


def rate_when_full(chains: Sequence[PlannedChain], turn_s: Turns) -> float:
    """Sessions per second of all chains when every place is taken: nu (Eq. 4), less what sharing costs."""
    full = _Full(turn_s)
    for planned in chains:
        full.add(planned)
    return full.rate


def patience_beside(chains: Sequence[PlannedChain], turn_s: Turns, *, arrival_rate: float) -> list[float]:
    """As `dispatch.patience`, where the faster chains are as fast as they are when full."""
    require("arrival_rate", arrival_rate, positive=False)
    queues, full = [0.0] * len(chains), _Full(turn_s)
    for index in sorted(range(len(chains)), key=lambda index: chains[index].service_s):
        planned = chains[index]
        if (rate := full.rate) > 0:
            queues[index] = (rate - arrival_rate) * (
                full.sharing.service_s(planned) - full.num_places / rate
            ) - ROUNDING
        full.add(planned)
    return queues
