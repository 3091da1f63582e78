"""What a peer can ask of the swarm, whatever carries the records."""

from collections.abc import Callable
from typing import Protocol

from chainserve.swarm.plans import PlanRecord
from chainserve.swarm.records import Announcement
from chainserve.swarm.view import View
from chainserve.types import PeerId

PLAN_LEASES = 4
"""A plan outlives the announcement of its planner, until the next planner has taken over."""


class Swarm(Protocol):
    """Membership: publish what we hold, see what others hold."""

    @property
    def peer_id(self) -> PeerId:
        """Who we are."""

    @property
    def lease_s(self) -> float:
        """How long a published record counts, in seconds."""

    @property
    def view(self) -> View:
        """The last snapshot read; cheap."""

    def now(self) -> float:
        """Swarm time, in unix seconds."""

    async def refresh(self) -> View:
        """Read all records now."""

    async def wait_for(self, condition: Callable[[View], bool], *, timeout_s: float) -> View:
        """Read until `condition` holds; TimeoutError if it does not within the time."""

    async def publish(self, announcement: Announcement) -> None:
        """Tell the swarm what we hold. Call again before `lease_s` is over, or the record expires."""

    async def publish_plan(self, record: PlanRecord) -> None:
        """Tell the swarm of a plan of ours; its record counts for PLAN_LEASES times `lease_s`."""

    async def withdraw(self) -> None:
        """Take our record back: from now on others' views do not show us."""

    async def close(self) -> None:
        """Leave. Withdraw first, or the record stays until it expires."""
