"""A swarm inside one process, with the interface of the real one: for tests."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from chainserve.swarm.poll import poll
from chainserve.swarm.records import Announcement
from chainserve.swarm.view import View, make_view
from chainserve.types import PeerId


@dataclass(slots=True)
class MemoryHub:
    """Where the peers of one swarm meet. Records expire by `clock` (unix seconds)."""

    clock: Callable[[], float] = time.time
    records: dict[PeerId, tuple[Announcement, float]] = field(default_factory=dict)
    """The last record of each peer, and when it expires."""


class MemorySwarm:
    """One peer's side of a hub."""

    def __init__(self, hub: MemoryHub, peer_id: PeerId, *, lease_s: float = 30.0) -> None:
        self.peer_id = peer_id
        self.lease_s = lease_s
        self.view = View()
        self._hub = hub

    async def refresh(self) -> View:
        """Read all records now."""
        now = self._hub.clock()
        records = (record for record, expires_at in self._hub.records.values() if expires_at > now)
        self.view = make_view(records, taken_at=now)
        return self.view

    async def wait_for(self, condition: Callable[[View], bool], *, timeout_s: float) -> View:
        """Read until `condition` holds; TimeoutError if it does not within the time."""
        return await poll(self.refresh, condition, timeout_s=timeout_s)

    async def publish(self, announcement: Announcement) -> None:
        """Tell the swarm what we hold, for `lease_s`."""
        if announcement.peer != self.peer_id:
            raise ValueError(f"{self.peer_id} cannot publish a record of {announcement.peer}")
        self._hub.records[self.peer_id] = announcement, self._hub.clock() + self.lease_s

    async def withdraw(self) -> None:
        """Take our record back."""
        self._hub.records.pop(self.peer_id, None)

    async def close(self) -> None:
        """Leave; as with a real swarm the record stays until it expires."""
