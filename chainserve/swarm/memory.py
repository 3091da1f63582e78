"""A swarm inside one process, with the interface of the real one: for tests."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from chainserve.swarm.interface import PLAN_LEASES
from chainserve.swarm.plans import PlanRecord
from chainserve.swarm.poll import poll
from chainserve.swarm.records import Announcement
from chainserve.swarm.view import View, make_view
from chainserve.types import PeerId

T = TypeVar("T")


@dataclass(slots=True)
class MemoryHub:
    """Where the peers of one swarm meet. Records expire by `clock` (unix seconds).

    Reads within `snapshot_s` of each other see the same snapshot, as reads of a DHT take a while: this is what lets
    a thousand peers read at the cost of one.
    """

    clock: Callable[[], float] = time.time
    snapshot_s: float = 0.0
    records: dict[PeerId, tuple[Announcement, float]] = field(default_factory=dict)
    """The last record of each peer, and when it expires."""
    plans: dict[PeerId, tuple[PlanRecord, float]] = field(default_factory=dict)
    """The last plan of each peer, and when its record expires."""
    _snapshot: View = field(default_factory=View)
    _until: float = -math.inf

    def view(self) -> View:
        """What is known now."""
        now = self.clock()
        if now >= self._until:
            self._snapshot = make_view(_alive(self.records, now), taken_at=now, plans=_alive(self.plans, now))
            self._until = now + self.snapshot_s
        return self._snapshot


class MemorySwarm:
    """One peer's side of a hub."""

    def __init__(self, hub: MemoryHub, peer_id: PeerId, *, lease_s: float = 30.0) -> None:
        self.peer_id = peer_id
        self.lease_s = lease_s
        self.view = View()
        self._hub = hub

    def now(self) -> float:
        """Swarm time, in unix seconds."""
        return self._hub.clock()

    def meet(self, hub: MemoryHub) -> None:
        """Read and publish there from now on, as when a network falls apart, or comes together again."""
        self._hub = hub

    async def refresh(self) -> View:
        """Read all records now."""
        self.view = self._hub.view()
        return self.view

    async def wait_for(self, condition: Callable[[View], bool], *, timeout_s: float) -> View:
        """Read until `condition` holds; TimeoutError if it does not within the time."""
        return await poll(self.refresh, condition, timeout_s=timeout_s)

    async def publish(self, announcement: Announcement) -> None:
        """Tell the swarm what we hold, for `lease_s`."""
        if announcement.peer != self.peer_id:
            raise ValueError(f"{self.peer_id} cannot publish a record of {announcement.peer}")
        self._hub.records[self.peer_id] = announcement, self._hub.clock() + self.lease_s

    async def publish_plan(self, record: PlanRecord) -> None:
        """Tell the swarm of a plan of ours."""
        if record.planner != self.peer_id:
            raise ValueError(f"{self.peer_id} cannot publish a plan of {record.planner}")
        self._hub.plans[self.peer_id] = record, self._hub.clock() + self.lease_s * PLAN_LEASES

    async def withdraw(self) -> None:
        """Take our record back."""
        self._hub.records.pop(self.peer_id, None)

    async def close(self) -> None:
        """Leave; as with a real swarm the record stays until it expires."""


def _alive(records: Mapping[PeerId, tuple[T, float]], now: float) -> list[T]:
    return [record for record, expires_at in records.values() if expires_at > now]
