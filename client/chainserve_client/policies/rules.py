"""What a rule of dispatch is asked, and ours: join the chain that is free and now the fastest."""

import random
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Protocol

from chainserve.errors import RequestError
from chainserve.planning.rules import PETALS, ROUTED
from chainserve.planning.sharing import Sharing, Turns
from chainserve.planning.values import PlannedChain
from chainserve.protocol.search import Candidate, PlaceSearch
from chainserve.swarm.plans import SwarmPlan
from chainserve.swarm.records import Announcement
from chainserve.types import Chain, PeerId
from chainserve_client.network import ModelInSwarm, Network
from chainserve_client.running import RunningSessions

JFFC = "jffc"
DISPATCHES = (JFFC, *ROUTED, "sed", "jsq", "random")
"""Names of the rules; all but the first are for benchmarks."""


class Router(Protocol):
    """Finds the way of one request that takes no place on a planned chain."""

    async def route(self, servers: Sequence[Announcement], plan: SwarmPlan | None) -> Chain:
        """The next route to try, when it is time to; NoChainError names blocks that none of these servers holds."""

    def refused(self, peer: PeerId) -> float:
        """A server had no room for the session; returns seconds to pause before the next route is asked for."""

    def opened(self) -> None:
        """The session runs on the route asked for last."""

    def leave(self) -> None:
        """Nothing more is asked for, or the last route cannot be opened for another reason than room."""


class Dispatch(Protocol):
    """A rule, and what one client knows for it of all its requests."""

    @property
    def name(self) -> str: ...

    async def prepare(self) -> None:
        """Find out what the first request should not have to wait for."""

    def router(self, *, num_tokens: int) -> Router | None:
        """For a request that needs so many tokens of cache; None if the rule is one over the plan's chains."""

    def search(
        self,
        candidates: Sequence[Candidate],
        chains: Sequence[PlannedChain],
        *,
        servers: Sequence[Announcement],
        plan: SwarmPlan,
        turn_s: Turns,
        num_tokens: int,
        rng: random.Random,
    ) -> PlaceSearch:
        """Look for a place on one of these chains, which come with their candidates, the fastest first.

        Their `service_s` is what the request would take alone; a request like it keeps others waiting by `turn_s`.
        """

    def began(self, chain: Chain, *, num_tokens: int) -> None:
        """A session of this client is opened on a chain."""

    def ended(self, chain: Chain, *, num_tokens: int) -> None:
        """It is over, or could not be opened."""


class JoinFastestFree:
    """The rule of this project (see `protocol.search`): the fastest is that beside the sessions that run already."""

    name = JFFC

    def __init__(self) -> None:
        self._running = RunningSessions()
        self._searches: list[PlaceSearch] = []  # whose requests will run soon, where they ask first most likely

    async def prepare(self) -> None:
        """Nothing has to be known."""

    def router(self, *, num_tokens: int) -> Router | None:
        return None

    def search(
        self,
        candidates: Sequence[Candidate],
        chains: Sequence[PlannedChain],
        *,
        servers: Sequence[Announcement],
        plan: SwarmPlan,
        turn_s: Turns,
        num_tokens: int,
        rng: random.Random,
    ) -> PlaceSearch:
        sharing = Sharing(turn_s)
        for hops, num_sessions in self._running.counted(plan, servers).items():
            sharing.add(Chain(hops), num_sessions)
        self._searches = [search for search in self._searches if search.found is None and not search.has_failed]
        for search in self._searches:
            sharing.add(Chain(search.candidates[0].hops))
        now_s = {
            candidate.session: sharing.service_s(planned) for candidate, planned in zip(candidates, chains, strict=True)
        }
        ordered = sorted(candidates, key=lambda candidate: now_s[candidate.session])
        search = PlaceSearch(ordered, epoch=plan.epoch, num_tokens=num_tokens, rng=rng)
        self._searches.append(search)
        return search

    def began(self, chain: Chain, *, num_tokens: int) -> None:
        self._running.began(chain)

    def ended(self, chain: Chain, *, num_tokens: int) -> None:
        self._running.ended(chain)


def check_name(name: str) -> None:
    """RequestError if no rule is called so, or if what it takes is not installed."""
    if name not in DISPATCHES:
        raise RequestError(f"no dispatch is called {name!r}: known are {', '.join(DISPATCHES)}")
    if name in ROUTED and find_spec("numpy") is None:
        raise RequestError(f"dispatch {name} takes numpy: pip install chainserve[planning]")


def make_dispatch(name: str, network: Network, model: ModelInSwarm) -> Dispatch:
    """The rule of this name for one client; RequestError as in `check_name`."""
    check_name(name)
    if name == JFFC:
        return JoinFastestFree()
    if name in ROUTED:
        from chainserve_client.policies.bprr import BprrDispatch
        from chainserve_client.policies.petals import PetalsDispatch

        return PetalsDispatch(network, model) if name == PETALS else BprrDispatch(model)
    from chainserve_client.policies.joining import JoinOne

    return JoinOne(name)


def check_fits(dispatch: Dispatch, plan: SwarmPlan, *, is_routed: bool) -> None:
    """RequestError where rule and plan are of different systems: what was measured would be neither."""
    if is_routed and plan.chains:
        raise RequestError(
            f"dispatch {dispatch.name} composes routes, but heads of this swarm give places: start its servers with "
            f"--bench-placement {dispatch.name}, or with --bench-chains no"
        )
    if not is_routed and dispatch.name != JFFC and not plan.inputs.rule.has_chains:
        raise RequestError(
            f"dispatch {dispatch.name} joins chains, and this swarm has none: start its servers with --bench-chains yes"
        )
