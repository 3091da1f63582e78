"""Which server's cache each running request holds, so that over-commitment is an error and not a rosy figure."""

from collections.abc import Mapping

from chainserve.simulator.engine import InvariantError
from chainserve.types import Chain, PeerId


class ServerLedger:
    """Block-slots (cache of one request for one block) free on every server; the routes of requests that hold some."""

    def __init__(self, slots: Mapping[PeerId, int]) -> None:
        self._free = dict(slots)
        self._routes: dict[int, Chain] = {}

    @property
    def num_held(self) -> int:
        """Requests that hold slots now."""
        return len(self._routes)

    def free_slots(self, peer: PeerId) -> int:
        """Block-slots that nobody holds on this server."""
        return self._free[peer]

    def fits(self, route: Chain) -> bool:
        """Whether every server of the route has a free slot for each of its blocks on it."""
        return all(num_slots <= self._free[peer] for peer, num_slots in slots_of(route).items())

    def hold(self, route: Chain, request: int) -> None:
        """Take a slot for every block of the route; InvariantError if one is not free or the request holds some."""
        if request in self._routes:
            raise InvariantError(request, "holds cache already")
        for peer, num_slots in slots_of(route).items():
            if num_slots > self._free[peer]:
                raise InvariantError(request, f"takes {num_slots} block-slots on {peer}, {self._free[peer]} are free")
            self._free[peer] -= num_slots
        self._routes[request] = route

    def free(self, request: int) -> Chain:
        """Give back all that the request holds, and return its route; InvariantError if it holds nothing."""
        route = self._routes.pop(request, None)
        if route is None:
            raise InvariantError(request, "holds no cache")
        for peer, num_slots in slots_of(route).items():
            self._free[peer] += num_slots
        return route


def slots_of(route: Chain) -> dict[PeerId, int]:
    """Block-slots that one session takes on each server of its route."""
    slots: dict[PeerId, int] = {}
    for hop in route.hops:
        slots[hop.peer] = slots.get(hop.peer, 0) + len(hop.span)
    return slots
