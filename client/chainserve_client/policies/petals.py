"""PETALS' clients, for benchmarks: each takes the route that looks fastest to it, and tries again if there is no room.

What a client knows: its own round trips, those between servers and the cache they have free as they announce them, and
how fast they run a block. Servers announce sooner here than PETALS' do (every 2 minutes), which is to its advantage.
"""

import asyncio
import math
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from chainserve.errors import LinkLostError, SwarmError
from chainserve.planning.baselines import petals
from chainserve.planning.values import Placement
from chainserve.protocol.search import PlaceSearch
from chainserve.swarm.inputs import corrected, round_trips
from chainserve.swarm.plans import SwarmPlan
from chainserve.swarm.records import Announcement
from chainserve.types import Chain, PeerId
from chainserve_client.network import ModelInSwarm, Network
from chainserve_client.policies.rules import Router

MEASURE_S = 4.0
"""For connecting to all servers, and two beats of each link."""
NUM_BEATS = 2


class PetalsDispatch:
    """What one client knows of the ways to servers."""

    name = "petals"

    def __init__(self, network: Network, model: ModelInSwarm, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._network = network
        self._model = model
        self._clock = clock
        self._tried: set[PeerId] = set()

    async def prepare(self) -> None:
        """Measure the ways to all servers, as PETALS' clients ping them."""
        await self.measure(self._network.usable(self._model.digest))

    async def measure(self, servers: Collection[Announcement]) -> None:
        """Measure the ways to servers to which that was not tried before."""
        new = {server.peer for server in servers} - self._tried
        self._tried |= new
        await asyncio.gather(*map(self._measure, new))

    async def _measure(self, peer: PeerId) -> None:
        with suppress(LinkLostError, SwarmError, TimeoutError):
            async with asyncio.timeout(MEASURE_S):
                await self._network.links.connect(peer)
                for _ in range(NUM_BEATS):
                    await self._network.links.next_beat(peer)

    def router(self, *, num_tokens: int) -> Router | None:
        return PetalsRouter(self, num_tokens=num_tokens, num_blocks=self._model.num_blocks, clock=self._clock)

    def search(self, *_: object, **__: object) -> PlaceSearch:
        raise AssertionError("PETALS' clients take no places")

    def began(self, chain: Chain, *, num_tokens: int) -> None:
        """Nothing is counted: what servers have free they announce."""

    def ended(self, chain: Chain, *, num_tokens: int) -> None:
        """Nothing was counted."""

    def round_trips(self, servers: Sequence[Announcement]) -> dict[tuple[PeerId | None, PeerId], float]:
        """From here to servers, and between them, as far as they are known."""
        offers = {server.peer: server.offer for server in servers if server.offer is not None}
        known: dict[tuple[PeerId | None, PeerId], float] = dict(round_trips(offers).items())
        for server in servers:
            if (own_s := self._network.links.round_trip_s(server.peer)) is not None:
                known[None, server.peer] = own_s
        return known


class PetalsRouter:
    """The tries of one request."""

    def __init__(
        self, dispatch: PetalsDispatch, *, num_tokens: int, num_blocks: int, clock: Callable[[], float]
    ) -> None:
        self._dispatch = dispatch
        self._num_tokens = num_tokens
        self._num_blocks = num_blocks
        self._clock = clock
        self._num_failures = 0
        self._banned_until_s: dict[PeerId, float] = {}

    async def route(self, servers: Sequence[Announcement], plan: SwarmPlan | None) -> Chain:
        await self._dispatch.measure(servers)
        return self.fastest(servers)

    def fastest(self, servers: Sequence[Announcement]) -> Chain:
        """The route that looks fastest, around servers that just refused the session if there is a way."""
        fitting = {s.peer: s for s in servers if s.offer is not None and s.span and s.cache_tokens >= self._num_tokens}
        routes = petals.routes(
            Placement({peer: server.span for peer, server in fitting.items() if server.span is not None}),
            self._num_blocks,
            round_trip_s=self._dispatch.round_trips(list(fitting.values())),
            step_s={peer: corrected(server.offer).decode_s for peer, server in fitting.items() if server.offer},
        )
        now_s = self._clock()
        banned = {peer for peer, until_s in self._banned_until_s.items() if until_s > now_s}
        lacking = {peer for peer, server in fitting.items() if server.free_tokens < self._num_tokens}

        def extra_s(peer: PeerId) -> float:
            return petals.NO_CACHE_S if peer in lacking else 0.0

        route = routes.cheapest([math.inf if hop.peer in banned else extra_s(hop.peer) for hop in routes.hops])
        if route is None:
            route = routes.cheapest([extra_s(hop.peer) for hop in routes.hops])
        assert route is not None  # without bans every cost is finite
        return route

    def refused(self, peer: PeerId) -> float:
        self._num_failures += 1
        self._banned_until_s[peer] = self._clock() + petals.BANNED_FOR_S
        return petals.retry_delay_s(self._num_failures)

    def opened(self) -> None:
        self._num_failures = 0
        self._banned_until_s.clear()

    def leave(self) -> None:
        """Nobody keeps anything for it."""
