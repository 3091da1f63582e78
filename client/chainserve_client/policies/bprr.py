"""BPRR's clients, for benchmarks: the route of least expected waiting and service (WS-RR), then FIFO at its servers.

The source has one place that knows all sessions. A client here knows those of its own, which it believes to take their
mean time as the source does; of others' it knows the cache that servers announce as taken, and takes them to end evenly
over a mean service time. Who goes first is kept within a client: a request tries to open its session when it is first
at all servers of its route, keeps its turn while one of them has no room, and tries again when something has ended or a
moment later. It holds no cache while it waits.
"""

import asyncio
import time
from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from chainserve.planning.baselines import bprr
from chainserve.planning.baselines.routes import Routes
from chainserve.planning.route import Holding, fewest_hops
from chainserve.planning.values import Placement
from chainserve.protocol.search import PlaceSearch
from chainserve.swarm.plans import SwarmPlan
from chainserve.swarm.records import Announcement
from chainserve.types import Chain, PeerId
from chainserve_client.network import ModelInSwarm
from chainserve_client.policies.rules import Router

RETRY_S = 0.5
"""After which a session is tried again that found no room, as others' sessions may have ended."""

Endings = list[tuple[float, int]]
"""When sessions are believed to end, and the cache of each in tokens times blocks."""


@dataclass(slots=True)
class _Server:
    """What this client knows of one server."""

    queue: deque["BprrRouter"] = field(default_factory=deque)  # own requests that wait for it
    believed: Endings = field(default_factory=list)  # own sessions
    held: int = 0  # cache that own sessions really hold, in tokens times blocks
    num_held: int = 0


class BprrDispatch:
    """All requests of one client."""

    name = "bprr"

    def __init__(self, model: ModelInSwarm, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._num_blocks = model.num_blocks
        self._clock = clock
        self._servers: dict[PeerId, _Server] = {}
        self._changed = asyncio.Event()

    async def prepare(self) -> None:
        """Nothing has to be known."""

    def router(self, *, num_tokens: int) -> Router | None:
        return BprrRouter(self, num_tokens=num_tokens)

    def search(self, *_: object, **__: object) -> PlaceSearch:
        raise AssertionError("BPRR's clients take no places")

    def began(self, chain: Chain, *, num_tokens: int) -> None:
        self._count(chain, 1, num_tokens=num_tokens)

    def ended(self, chain: Chain, *, num_tokens: int) -> None:
        self._count(chain, -1, num_tokens=num_tokens)
        self.notify()

    def _count(self, chain: Chain, num_sessions: int, *, num_tokens: int) -> None:
        for hop in chain.hops:
            server = self.server(hop.peer)
            server.num_held += num_sessions
            server.held += num_sessions * num_tokens * len(hop.span)

    def server(self, peer: PeerId) -> _Server:
        return self._servers.setdefault(peer, _Server())

    def choose(self, servers: Sequence[Announcement], plan: SwarmPlan | None, *, num_tokens: int) -> Chain:
        """WS-RR; the session is believed from now on to start when the longest wait on its route is over.

        Before there is a plan nothing is known of times: the fewest hops then.
        """
        fitting = {server.peer: server for server in servers if server.span and server.cache_tokens >= num_tokens}
        spans = {peer: server.span for peer, server in fitting.items() if server.span is not None}
        profiles = {profile.peer: profile for profile in plan.inputs.profiles()} if plan is not None else {}
        if plan is None or not spans.keys() <= profiles.keys():
            holdings = [Holding(peer, span, fitting[peer].free_tokens) for peer, span in spans.items()]
            return fewest_hops(holdings, num_blocks=self._num_blocks)
        routes = bprr.routes(
            Placement(spans),
            [replace(profiles[peer], pinned=None) for peer in spans],
            plan.inputs.model,
            pair_s=plan.inputs.pair_s,
        )
        now_s = self._clock()
        mean_s = _fastest_s(routes)
        state = {peer: self._state(server, now_s=now_s, mean_s=mean_s) for peer, server in fitting.items()}
        waiting_s = {
            hop: bprr.expected_waiting_s(num_tokens * len(hop.span), *state[hop.peer], now_s=now_s)
            for hop in routes.hops
        }
        route = routes.cheapest(list(waiting_s.values()))
        assert route is not None  # every server has room for the session once all have ended
        end_s = now_s + max(waiting_s[hop] for hop in route.hops) + routes.cost_s(route)
        for hop in route.hops:
            insort(self.server(hop.peer).believed, (end_s, num_tokens * len(hop.span)))
        return route

    def _state(self, server: Announcement, *, now_s: float, mean_s: float) -> tuple[int, Endings]:
        """What a server has free, in tokens times blocks, and when the sessions there are believed to end."""
        known, num_blocks = self.server(server.peer), len(server.span or ())
        known.believed = [(end_s, cost) for end_s, cost in known.believed if end_s > now_s]
        taken = (server.cache_tokens - server.free_tokens) * num_blocks
        others = max(0, taken - known.held)
        num_others = max(1, server.num_sessions - known.num_held) if others else 0
        shares = [others * (at + 1) // num_others - others * at // num_others for at in range(num_others)]
        ends = [(now_s + mean_s * at / (num_others + 1), share) for at, share in enumerate(shares, start=1)]
        free = server.cache_tokens * num_blocks - others - sum(cost for _, cost in known.believed)
        return free, sorted([*known.believed, *ends])

    def notify(self) -> None:
        """Something has ended, or somebody has left a queue."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def change(self, *, within_s: float | None = None) -> None:
        """Wait for that."""
        changed = self._changed
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await changed.wait()


class BprrRouter:
    """One request: its route, its turn, and the cache that it holds."""

    def __init__(self, dispatch: BprrDispatch, *, num_tokens: int) -> None:
        self._dispatch = dispatch
        self._num_tokens = num_tokens
        self._route: Chain | None = None
        self._was_refused = False

    async def route(self, servers: Sequence[Announcement], plan: SwarmPlan | None) -> Chain:
        dispatch = self._dispatch
        if self._route is None:
            self._route = dispatch.choose(servers, plan, num_tokens=self._num_tokens)
            for hop in self._route.hops:
                dispatch.server(hop.peer).queue.append(self)
        elif self._was_refused:
            await dispatch.change(within_s=RETRY_S)
        while any(dispatch.server(hop.peer).queue[0] is not self for hop in self._route.hops):
            await dispatch.change()
        return self._route

    def refused(self, peer: PeerId) -> float:
        self._was_refused = True
        return 0.0

    def opened(self) -> None:
        self.leave()

    def leave(self) -> None:
        if self._route is not None:
            for hop in self._route.hops:
                self._dispatch.server(hop.peer).queue.remove(self)
            self._route, self._was_refused = None, False
            self._dispatch.notify()


def _fastest_s(routes: Routes) -> float:
    """Seconds of the fastest route when nobody waits."""
    route = routes.cheapest([0.0] * len(routes.hops))
    assert route is not None
    return routes.cost_s(route)
