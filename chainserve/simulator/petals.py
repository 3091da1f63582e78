"""PETALS under the virtual clock: clients route by what servers announced, and try again where there was no room.

Servers have settled before the first request (chainserve/planning/baselines/petals.py), so none moves under a session.
A session takes its cache on all servers of its route at once or, if one has no room, on none: the source opens it hop
by hop and lets the earlier hops wait, which only costs it more.
"""

import math
from collections.abc import Mapping

import numpy as np

from chainserve.planning.baselines.petals import BANNED_FOR_S, NO_CACHE_S, retry_delay_s, seems_to_lack_cache
from chainserve.planning.baselines.routes import Routes
from chainserve.planning.baselines.windows import require_room
from chainserve.planning.values import Placement, require
from chainserve.simulator.engine import Engine
from chainserve.simulator.ledger import ServerLedger
from chainserve.simulator.times import RouteTime
from chainserve.types import Chain, PeerId

ANNOUNCED_EVERY_S = 120.0


class PetalsScheduler:
    """Clients that each find their own way: a session starts on the route that looks fastest, or fails and retries."""

    def __init__(
        self,
        placement: Placement,
        routes: Routes,
        *,
        slots: Mapping[PeerId, int],
        service_s: RouteTime,
        rng: np.random.Generator,
        announced_every_s: float = ANNOUNCED_EVERY_S,
        banned_for_s: float = BANNED_FOR_S,
    ) -> None:
        """`slots`: block-slots of each server; `rng` draws when in each period a server announces what it has free.

        As in the source, a client leaves a server that had no room out of its routes for `banned_for_s`, as long as
        there is a way without. With 0 it would come back to the same server until that announces that it is full.
        ValueError if a server has not one slot for each of its blocks.
        """
        require("announced_every_s", announced_every_s)
        require("banned_for_s", banned_for_s, positive=False)
        require_room(placement, slots)
        self._placement, self._routes, self._service_s = placement, routes, service_s
        self._announced_every_s, self._banned_for_s = announced_every_s, banned_for_s
        self._peers = tuple(placement)
        self._first_announced_s = (rng.random(len(self._peers)) * announced_every_s).tolist()
        self._ledger = ServerLedger(slots)
        self._lacking: frozenset[PeerId] = frozenset()  # cache, going by the last announcements
        self._num_failures: dict[int, int] = {}
        self._banned_until_s: dict[int, dict[PeerId, float]] = {}
        self._known: dict[tuple[frozenset[PeerId], frozenset[PeerId]], Chain | None] = {}

    def bind(self, engine: Engine) -> None:
        self._engine = engine
        for number, at_s in enumerate(self._first_announced_s, start=len(engine.requests)):
            engine.wake_at(number, at_s)

    def arrive(self, request: int) -> None:
        engine = self._engine
        route = self._route(request)
        full = next((hop.peer for hop in route.hops if self._ledger.free_slots(hop.peer) < len(hop.span)), None)
        if full is None:
            self._ledger.hold(route, request)
            self._num_failures.pop(request, None)
            self._banned_until_s.pop(request, None)
            engine.start(request, self._service_s(request, route))
        else:
            num_failures = self._num_failures[request] = self._num_failures.get(request, 0) + 1
            self._banned_until_s.setdefault(request, {})[full] = engine.now_s + self._banned_for_s
            engine.wake_at(request, engine.now_s + retry_delay_s(num_failures))

    def wake(self, key: int) -> None:
        number = key - len(self._engine.requests)
        if number < 0:
            self.arrive(key)
        else:
            self._announce(self._peers[number])
            self._engine.wake_at(key, self._engine.now_s + self._announced_every_s)

    def finish(self, request: int) -> None:
        self._ledger.free(request)

    def _announce(self, peer: PeerId) -> None:
        if seems_to_lack_cache(self._placement[peer], self._ledger.free_slots(peer)):
            self._lacking |= {peer}
        else:
            self._lacking -= {peer}

    def _route(self, request: int) -> Chain:
        """The route that looks fastest to this client, around servers that just refused it if there is a way."""
        until_s = self._banned_until_s.get(request, {})
        banned = frozenset(peer for peer, end_s in until_s.items() if end_s > self._engine.now_s)
        route = self._cheapest(self._lacking, banned) or self._cheapest(self._lacking, frozenset())
        assert route is not None  # without bans every cost is finite
        return route

    def _cheapest(self, lacking: frozenset[PeerId], banned: frozenset[PeerId]) -> Chain | None:
        if (lacking, banned) not in self._known:
            extra_s = [
                math.inf if hop.peer in banned else NO_CACHE_S if hop.peer in lacking else 0.0
                for hop in self._routes.hops
            ]
            self._known[lacking, banned] = self._routes.cheapest(extra_s)
        return self._known[lacking, banned]
