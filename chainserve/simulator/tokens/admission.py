"""Which chain a session joins, and who waits: a dispatch policy over planned chains, with cache counted in tokens.

A session starts on a chain that has a place free (its capacity) and room for all its tokens on every server. What
opening and closing change is known everywhere at once: the messages are the simulation's, the queue is an ideal one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from chainserve.planning.dispatch import Policy
from chainserve.planning.values import PlannedChain
from chainserve.simulator.engine import InvariantError
from chainserve.simulator.tokens.servers import Leg, Server, Session
from chainserve.types import Chain, PeerId

MakePolicy = Callable[[Sequence[float], Sequence[int]], Policy]
"""From the chains' rates and capacities, as the policies' own constructors."""


class Queue:
    """Sessions that wait, in order of arrival: one that lost its chain comes before those that never had one."""

    def __init__(self) -> None:
        self._waiting: list[Session] = []
        self._last_new = -1

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def first(self) -> Session:
        return self._waiting[0]

    def push(self, session: Session) -> None:
        heappush(self._waiting, session)

    def pop(self) -> Session:
        """Remove the first; InvariantError if one that came later and never had a chain was before it."""
        session = heappop(self._waiting)
        if not session.num_replays:
            if session.request < self._last_new:
                raise InvariantError(session.request, f"is overtaken by request {self._last_new}")
            self._last_new = session.request
        return session

    def clear(self) -> list[Session]:
        """Remove all, in order."""
        waiting, self._waiting = sorted(self._waiting), []
        return waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """Places that count in tokens, as those of live heads: a chain holds its capacity times so many."""

    slot_tokens: int
    mean_tokens: float  # of a session, by which a policy that counts sessions counts places

    def num_sessions(self, capacity: int) -> int:
        """Mean sessions that a capacity holds."""
        return max(1, int(capacity * self.slot_tokens / self.mean_tokens))


class Route:
    """A planned chain over servers that are there, and how many sessions run on it."""

    def __init__(
        self, index: int, planned: PlannedChain, *, servers: Mapping[PeerId, Server], slots: Slots | None = None
    ) -> None:
        peers = [hop.peer for hop in planned.chain.hops]
        if absent := sorted(set(peers).difference(servers)):
            raise ValueError(f"a planned chain runs over servers that are not there: {', '.join(absent)}")
        if len(set(peers)) < len(peers):
            raise ValueError(f"a planned chain runs twice over one server: {planned.chain}")
        self.index = index
        self.chain: Chain = planned.chain
        self.capacity = planned.capacity if slots is None else slots.num_sessions(planned.capacity)
        self.room_tokens = math.inf if slots is None else planned.capacity * slots.slot_tokens
        self.counts_tokens = slots is not None
        self.used_tokens = 0
        self.num_running = 0
        self.queue = Queue()  # where the policy has no central one
        self.legs: list[Leg] = []
        for hop in planned.chain.hops:
            leg = Leg(servers[hop.peer], hop.span, head=self.legs[0] if self.legs else None)
            if self.legs:
                self.legs[-1].next = leg
            self.legs.append(leg)
        for leg in self.legs:
            leg.num_hops = len(self.legs)
        self.max_tokens = min(self.room_tokens, *(leg.server.cache_tokens // len(leg.span) for leg in self.legs))

    @property
    def head(self) -> Leg:
        return self.legs[0]

    def fits(self, session: Session) -> bool:
        """Whether every server has room for the session now."""
        return all(session.max_tokens * len(leg.span) <= leg.server.num_free for leg in self.legs)

    def has_room(self, session: Session) -> bool:
        """Whether the session can start here now: a place is free, and cache."""
        if self.counts_tokens:
            return self.used_tokens + session.max_tokens <= self.room_tokens and self.fits(session)
        return self.num_running < self.capacity and self.fits(session)

    def counted(self, session: Session) -> int:
        """Sessions that run here, for a policy that counts places where there are tokens: fewer than the capacity if
        there is room for this one, else as many at least."""
        if self.has_room(session):
            return min(self.num_running, self.capacity - 1)
        return max(self.num_running, self.capacity)

    def count(self, session: Session, num_sessions: int) -> None:
        """A session runs here, or (-1) runs no more."""
        self.num_running += num_sessions
        self.used_tokens += num_sessions * session.max_tokens


class Admission:
    """The chains of the plan in force, the sessions that run and those that wait."""

    def __init__(
        self,
        make_policy: MakePolicy,
        *,
        start: Callable[[Session, Route], None],
        refuse: Callable[[Session], None],
        slots: Slots | None = None,
    ) -> None:
        self.running: dict[Session, Route] = {}
        self._make_policy = make_policy
        self._start = start
        self._refuse = refuse
        self._slots = slots
        self._routes: list[Route] = []
        self._policy: Policy | None = None  # without chains there is none
        self._queue = Queue()  # the central one, and where all wait while there are no chains

    @property
    def num_waiting(self) -> int:
        return len(self._queue) + sum(len(route.queue) for route in self._routes)

    def adopt(
        self, chains: Sequence[PlannedChain], servers: Mapping[PeerId, Server], *, lost: Sequence[Session] = ()
    ) -> None:
        """Put a new plan in force: sessions that run stay where they are, those that wait are dispatched again, and
        with them those that lost their chain."""
        if len({planned.chain.num_blocks for planned in chains}) > 1:
            raise ValueError("planned chains have to run equally many blocks")
        waiting = sorted([*self._clear_queues(), *lost])
        routes = [Route(index, planned, servers=servers, slots=self._slots) for index, planned in enumerate(chains)]
        by_legs = {tuple((leg.server, leg.span) for leg in route.legs): route for route in routes}
        for session, old in self.running.items():  # those on a chain that is still planned count there
            if same := by_legs.get(tuple((leg.server, leg.span) for leg in old.legs)):
                same.count(session, 1)
                self.running[session] = same
        self._routes = routes
        rates, capacities = [planned.rate for planned in chains], [route.capacity for route in routes]
        self._policy = self._make_policy(rates, capacities) if chains else None
        for session in waiting:
            self._enqueue(session)
        self.dispatch()

    def add(self, session: Session) -> None:
        """Let a session start as soon as it can."""
        self._enqueue(session)
        self.dispatch()

    def end(self, session: Session) -> None:
        """Free what a session holds; the next to start does so at `dispatch`."""
        route = self.running.pop(session)
        route.count(session, -1)
        for leg in route.legs:
            leg.server.release(session, leg.span)

    def refuse_all(self) -> None:
        """Give up on all that wait."""
        for session in self._clear_queues():
            self._refuse(session)

    def dispatch(self) -> None:
        """Start whoever can start now."""
        while self._queue and (route := self._central_route(self._queue.first)):
            self._run(self._queue.pop(), route)
        for route in self._routes:
            while route.queue and route.has_room(route.queue.first):
                self._run(route.queue.pop(), route)

    def _clear_queues(self) -> list[Session]:
        queues = [self._queue, *(route.queue for route in self._routes)]
        return [session for queue in queues for session in queue.clear()]

    def _enqueue(self, session: Session) -> None:
        """Put a session into its queue; refuse it if no chain could hold it even when empty."""
        fitting = [route for route in self._routes if session.max_tokens <= route.max_tokens]
        if self._policy is None or (self._policy.is_central and fitting):
            self._queue.push(session)
        elif not fitting:
            self._refuse(session)
        else:
            index = self._policy.choose([route.num_running + len(route.queue) for route in self._routes])
            if index is None:
                raise InvariantError(session.request, "is to wait in a central queue, by a policy that has none")
            route = self._routes[index]
            if session.max_tokens > route.max_tokens:  # the policy knows nothing of tokens: the least busy that can
                route = min(fitting, key=lambda route: (route.num_running + len(route.queue)) / route.capacity)
            route.queue.push(session)

    def _central_route(self, session: Session) -> Route | None:
        """The chain that the head of the central queue joins now; one without room for its tokens counts as full."""
        if self._policy is None:
            return None
        num_sessions = [route.counted(session) if route.counts_tokens else route.num_running for route in self._routes]
        while (index := self._policy.choose(num_sessions, len(self._queue))) is not None:
            route = self._routes[index]
            if num_sessions[index] >= route.capacity:
                raise InvariantError(session.request, f"is sent to chain {index}, which is full")
            if route.has_room(session):
                return route
            num_sessions[index] = route.capacity
        return None

    def _run(self, session: Session, route: Route) -> None:
        for leg in route.legs:
            leg.server.reserve(session, leg.span)
        route.count(session, 1)
        self.running[session] = route
        self._start(session, route)
