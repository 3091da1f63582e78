"""BPRR under the virtual clock: each request takes the route of least expected waiting and service, and waits there.

The source leaves open who goes first. Here every server has a queue in order of arrival: a request starts when it is
first at all servers of its route and all have room, and holds no cache before. It overtakes nobody at a shared server,
and nobody elsewhere holds it up.
"""

from bisect import insort
from collections import deque
from collections.abc import Mapping

from chainserve.planning.baselines.bprr import expected_waiting_s
from chainserve.planning.baselines.routes import Routes
from chainserve.planning.baselines.windows import require_room
from chainserve.planning.values import Placement
from chainserve.simulator.engine import Engine, InvariantError
from chainserve.simulator.ledger import ServerLedger
from chainserve.simulator.times import RouteTime
from chainserve.types import Chain, Hop, PeerId


class BprrScheduler:
    """Routes by WS-RR on what is believed of the sessions sent out, and a FIFO queue per server for what is true."""

    def __init__(
        self, placement: Placement, routes: Routes, *, slots: Mapping[PeerId, int], service_s: RouteTime
    ) -> None:
        """`slots`: block-slots of each server. ValueError if a server has not one slot for each of its blocks."""
        require_room(placement, slots)
        self._routes, self._service_s = routes, service_s
        self._ledger = ServerLedger(slots)
        self._believed = {peer: _Believed(slots[peer]) for peer in placement}
        self._queues: dict[PeerId, deque[int]] = {peer: deque() for peer in placement}
        self._waiting: dict[int, Chain] = {}

    def bind(self, engine: Engine) -> None:
        self._engine = engine

    def arrive(self, request: int) -> None:
        route = self._choose()
        self._waiting[request] = route
        for hop in route.hops:
            self._queues[hop.peer].append(request)
        self._start_waiting([route.head])

    def wake(self, key: int) -> None:
        raise InvariantError(key, "is woken, though it never asked for it")

    def finish(self, request: int) -> None:
        route = self._ledger.free(request)
        self._start_waiting([hop.peer for hop in route.hops])

    def _choose(self) -> Chain:
        """WS-RR; the request is then believed to start once the longest wait on its route is over.

        Sessions are believed to take their mean time, whether they have really ended or not.
        """
        now_s = self._engine.now_s
        for believed in self._believed.values():
            believed.forget_before(now_s)
        waiting_s = {hop: self._believed[hop.peer].waiting_s(hop, now_s) for hop in self._routes.hops}
        route = self._routes.cheapest(list(waiting_s.values()))
        assert route is not None  # every server has room for a session once all have ended
        end_s = now_s + max(waiting_s[hop] for hop in route.hops) + self._routes.cost_s(route)
        for hop in route.hops:
            self._believed[hop.peer].add(end_s, len(hop.span))
        return route

    def _start_waiting(self, peers: list[PeerId]) -> None:
        """Start whoever is first at these servers and can, and whoever is first after them."""
        queues, engine = self._queues, self._engine
        while peers:
            queue = queues[peers.pop()]
            if not queue:
                continue
            request = queue[0]
            route = self._waiting[request]
            if all(queues[hop.peer][0] == request for hop in route.hops) and self._ledger.fits(route):
                del self._waiting[request]
                self._ledger.hold(route, request)
                for hop in route.hops:
                    queues[hop.peer].popleft()
                    peers.append(hop.peer)
                engine.start(request, self._service_s(request, route))


class _Believed:
    """Sessions believed active on one server, by the time at which they should end."""

    def __init__(self, num_slots: int) -> None:
        self._free_slots = num_slots  # negative when some of the sessions have to wait
        self._endings: list[tuple[float, int]] = []

    def forget_before(self, now_s: float) -> None:
        num_ended = 0
        for end_s, num_slots in self._endings:
            if end_s > now_s:
                break
            num_ended += 1
            self._free_slots += num_slots
        del self._endings[:num_ended]

    def waiting_s(self, hop: Hop, now_s: float) -> float:
        return expected_waiting_s(len(hop.span), self._free_slots, self._endings, now_s=now_s)

    def add(self, end_s: float, num_slots: int) -> None:
        insort(self._endings, (end_s, num_slots))
        self._free_slots -= num_slots
