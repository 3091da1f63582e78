"""Sessions that find a way of their own, over servers with room in their caches: PETALS and BPRR, token by token.

As in `simulator.petals` and `simulator.bprr`, with cache counted in tokens times blocks. A session takes its cache on
all servers of its route at once or, if one has no room, on none.
"""

import math
from bisect import insort
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from chainserve.planning.baselines import petals
from chainserve.planning.baselines.bprr import expected_waiting_s
from chainserve.planning.baselines.routes import Routes
from chainserve.planning.values import Placement, PlannedChain
from chainserve.simulator.tokens.admission import Route
from chainserve.simulator.tokens.servers import Server, Session
from chainserve.types import Chain, PeerId

Servers = Mapping[PeerId, Server]
Later = Callable[[float, Callable[[float, object], None], object], None]
"""Calls a function with the time and a subject, so many seconds from now."""


class Routing(Protocol):
    """A rule, and what all clients together know for it."""

    period_s: float
    """Between two looks of the rule at one server; infinite: it does not look."""

    def choose(self, session: Session, now_s: float) -> Chain:
        """The route to try now."""

    def refused(self, session: Session, peer: PeerId, now_s: float) -> float | None:
        """A server had no room; seconds to the next try, None: when it is its turn and something has ended."""

    def is_first(self, session: Session) -> bool:
        """Whether it is the session's turn."""

    def started(self, session: Session) -> None:
        """It has its cache."""

    def look(self, peer: PeerId) -> None:
        """See what a server has free."""


MakeRouting = Callable[[Servers], Routing]


class RoutedAdmission:
    """In place of `Admission`: sessions that run, those that try again later, and those that wait for their turn."""

    def __init__(
        self,
        make_routing: MakeRouting,
        *,
        start: Callable[[Session, Route], None],
        refuse: Callable[[Session], None],
        later: Later,
        trip_s: Callable[[Sequence[PeerId]], float],
    ) -> None:
        self.running: dict[Session, Route] = {}
        self._make_routing = make_routing
        self._start = start
        self._refuse = refuse
        self._later = later
        self._trip_s = trip_s
        self._waiting: dict[Session, Route] = {}  # for their turn, or for something to end
        self._now_s = 0.0
        self._known: dict[Chain, Route] = {}

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def adopt(self, chains: Sequence[PlannedChain], servers: Servers, *, lost: Sequence[Session] = ()) -> None:
        """Begin: there are no chains."""
        self._servers = servers
        self._routing = self._make_routing(servers)
        if math.isfinite(self._routing.period_s):
            for number, peer in enumerate(servers):  # not all of them at once
                self._later(self._routing.period_s * (number + 1) / len(servers), self._look, peer)

    def add(self, session: Session, now_s: float = 0.0) -> None:
        """Look for a way."""
        self._later(0.0, self._try, session)

    def end(self, session: Session) -> None:
        """Free what a session holds."""
        route = self.running.pop(session)
        route.count(session, -1)
        for leg in route.legs:
            leg.server.release(session, leg.span)

    def refuse_all(self) -> None:
        """Give up on all that wait."""
        waiting, self._waiting = self._waiting, {}
        for session in waiting:
            self._refuse(session)

    def dispatch(self) -> None:
        """Start whoever waits and can start now."""
        has_started = True
        while has_started:
            has_started = False
            for session, route in list(self._waiting.items()):
                if self._routing.is_first(session) and route.fits(session):
                    del self._waiting[session]
                    self._run(session, route)
                    has_started = True

    def _look(self, now_s: float, subject: object) -> None:
        peer = PeerId(str(subject))
        self._routing.look(peer)
        self._later(self._routing.period_s, self._look, peer)

    def _try(self, now_s: float, subject: object) -> None:
        assert isinstance(subject, Session)
        session = subject
        route = self._route(self._routing.choose(session, now_s))
        if session.max_tokens > route.max_tokens:
            self._refuse(session)
            return
        full = next((leg for leg in route.legs if session.max_tokens * len(leg.span) > leg.server.num_free), None)
        if full is None and self._routing.is_first(session):
            self._run(session, route)
            return
        peer = full.server.peer if full is not None else route.head.server.peer
        pause_s = self._routing.refused(session, peer, now_s)
        if pause_s is None:
            self._waiting[session] = route
            return
        peers = [leg.server.peer for leg in route.legs]
        there = peers[: peers.index(peer) + 1]
        self._later(self._trip_s([*there, *reversed(there[:-1])]) + pause_s, self._try, session)

    def _route(self, chain: Chain) -> Route:
        if chain not in self._known:
            planned = PlannedChain(chain, 1, 1.0)  # its places and its time play no part
            self._known[chain] = Route(len(self._known), planned, servers=self._servers)
        return self._known[chain]

    def _run(self, session: Session, route: Route) -> None:
        self._routing.started(session)
        for leg in route.legs:
            leg.server.reserve(session, leg.span)
        route.count(session, 1)
        self.running[session] = route
        self._start(session, route)


class PetalsRouting:
    """The route that looks fastest, around servers that announced to lack cache or have just refused the session."""

    def __init__(self, placement: Placement, routes: Routes, servers: Servers, *, period_s: float) -> None:
        self.period_s = period_s
        self._placement = placement
        self._routes = routes
        self._servers = servers
        self._free = {peer: server.num_free for peer, server in servers.items()}  # as announced
        self._num_failures: dict[Session, int] = {}
        self._banned_until_s: dict[Session, dict[PeerId, float]] = {}

    def choose(self, session: Session, now_s: float) -> Chain:
        until_s = self._banned_until_s.get(session, {})

        def extra_s(peer: PeerId) -> float:
            needed = session.max_tokens * len(self._placement[peer])
            return petals.NO_CACHE_S if self._free[peer] < needed else 0.0

        hops = self._routes.hops
        route = self._routes.cheapest(
            [math.inf if until_s.get(hop.peer, now_s) > now_s else extra_s(hop.peer) for hop in hops]
        ) or self._routes.cheapest([extra_s(hop.peer) for hop in hops])
        assert route is not None  # without bans every cost is finite
        return route

    def refused(self, session: Session, peer: PeerId, now_s: float) -> float | None:
        num_failures = self._num_failures[session] = self._num_failures.get(session, 0) + 1
        self._banned_until_s.setdefault(session, {})[peer] = now_s + petals.BANNED_FOR_S
        return petals.retry_delay_s(num_failures)

    def is_first(self, session: Session) -> bool:
        return True

    def started(self, session: Session) -> None:
        self._num_failures.pop(session, None)
        self._banned_until_s.pop(session, None)

    def look(self, peer: PeerId) -> None:
        self._free[peer] = self._servers[peer].num_free


@dataclass(slots=True)
class _Believed:
    """What is believed of one server."""

    free: int  # tokens times blocks; negative when some of the sessions have to wait
    endings: list[tuple[float, int]] = field(default_factory=list)
    queue: deque[Session] = field(default_factory=deque)

    def forget_before(self, now_s: float) -> None:
        while self.endings and self.endings[0][0] <= now_s:
            self.free += self.endings.pop(0)[1]


class BprrRouting:
    """The route of least believed waiting and service, and a queue at each server in order of arrival."""

    period_s = math.inf

    def __init__(self, routes: Routes, servers: Servers) -> None:
        self._routes = routes
        self._believed = {peer: _Believed(server.num_free) for peer, server in servers.items()}
        self._chosen: dict[Session, Chain] = {}

    def choose(self, session: Session, now_s: float) -> Chain:
        for believed in self._believed.values():
            believed.forget_before(now_s)
        waiting_s = {
            hop: expected_waiting_s(
                session.max_tokens * len(hop.span),
                self._believed[hop.peer].free,
                self._believed[hop.peer].endings,
                now_s=now_s,
            )
            for hop in self._routes.hops
        }
        route = self._routes.cheapest(list(waiting_s.values()))
        if route is None:  # longer than any server's cache: it will be refused
            route = self._routes.cheapest([0.0] * len(waiting_s))
        assert route is not None
        end_s = now_s + max(waiting_s[hop] for hop in route.hops) + self._routes.cost_s(route)
        for hop in route.hops:
            believed, cost = self._believed[hop.peer], session.max_tokens * len(hop.span)
            insort(believed.endings, (end_s, cost))
            believed.free -= cost
            believed.queue.append(session)
        self._chosen[session] = route
        return route

    def refused(self, session: Session, peer: PeerId, now_s: float) -> float | None:
        return None

    def is_first(self, session: Session) -> bool:
        return all(self._believed[hop.peer].queue[0] is session for hop in self._chosen[session].hops)

    def started(self, session: Session) -> None:
        for hop in self._chosen.pop(session).hops:
            self._believed[hop.peer].queue.remove(session)

    def look(self, peer: PeerId) -> None:
        """It believes, and does not look."""
