"""Servers that fail and join, and the chains there are then."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chainserve.planning.values import PlannedChain, require
from chainserve.simulator.tokens.values import TokenServer
from chainserve.types import PeerId


@dataclass(frozen=True, slots=True)
class Fail:
    """A server stops without a word; all it holds is lost."""

    at_s: float
    peer: PeerId

    def __post_init__(self) -> None:
        require("at_s", self.at_s, positive=False)


@dataclass(frozen=True, slots=True)
class Join:
    """A server has loaded its blocks and serves from now on."""

    at_s: float
    server: TokenServer

    def __post_init__(self) -> None:
        require("at_s", self.at_s, positive=False)

    @property
    def peer(self) -> PeerId:
        return self.server.peer


Change = Fail | Join

Replan = Callable[[frozenset[PeerId]], Sequence[PlannedChain]]
"""From the servers known to be there to the chains from now on."""


def while_live(chains: Sequence[PlannedChain]) -> Replan:
    """Of these chains always those whose servers are all there."""
    return lambda live: [planned for planned in chains if live.issuperset(hop.peer for hop in planned.chain.hops)]


def in_order(changes: Sequence[Change], *, peers: Sequence[PeerId]) -> list[Change]:
    """Changes by time, for a swarm that starts with `peers`; ValueError if a server joins that is there, or fails
    that is not."""
    live: set[PeerId] = set()
    for peer in peers:
        if peer in live:
            raise ValueError(f"two servers of one id: {peer}")
        live.add(peer)
    ordered = sorted(changes, key=lambda change: change.at_s)
    for change in ordered:
        if isinstance(change, Join) == (change.peer in live):
            state = "joins, but is there" if change.peer in live else "fails, but is not there"
            raise ValueError(f"{change.peer} {state} at {change.at_s} s")
        live ^= {change.peer}
    return ordered
