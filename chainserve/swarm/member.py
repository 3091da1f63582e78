"""A server's life in its swarm: it announces itself, follows the plan, moves when that says so, and plans if it is the
planner. Knows nothing of models: what holds the blocks is a `Host`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from chainserve.errors import PeerError, RecordError, SwarmError
from chainserve.swarm.interface import Swarm
from chainserve.swarm.planner import Job, Planner
from chainserve.swarm.plans import PlanRecord, SwarmPlan, record_of
from chainserve.swarm.records import Announcement
from chainserve.swarm.view import View
from chainserve.types import Span

logger = logging.getLogger(__name__)


class Host(Protocol):
    """What holds the blocks."""

    @property
    def pinned(self) -> Span | None:
        """Blocks that its owner chose; None: those of the plan."""

    def announcement(self, *, epoch: int) -> Announcement:
        """What there is to say now, as one that follows the plan of this epoch (0: none)."""

    def can_hold(self, span: Span) -> bool:
        """Whether the weights of these blocks fit, whatever it holds now."""

    async def hold(self, span: Span) -> None:
        """Move: serve what stays, give up what goes, load what comes; returns when all of the span is served."""

    def told(self, plan: SwarmPlan) -> None:
        """A new plan is followed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberTiming:
    """How often a member speaks and listens, in seconds."""

    refresh_s: float = 2.0  # between two looks at the swarm
    announce_gap_s: float = 0.5  # changes within this time are announced together


FetchPlan = Callable[[PlanRecord, View], Awaitable[bytes]]
"""Gets the bytes of a plan that is too large for its record; PeerError if nobody hands them out."""

CarryOut = Callable[[Job], Awaitable[SwarmPlan]]
"""Runs `Job.carry_out` where it holds up nobody."""


class Member:
    """One server in its swarm, from `run` until cancelled."""

    def __init__(
        self,
        swarm: Swarm,
        host: Host,
        planner: Planner,
        *,
        model_digest: str,
        fetch: FetchPlan,
        carry_out: CarryOut,
        clock: Callable[[], float],
        timing: MemberTiming | None = None,
    ) -> None:
        """`clock` is one that only grows, in seconds."""
        self._swarm = swarm
        self._host = host
        self._planner = planner
        self._model_digest = model_digest
        self._fetch = fetch
        self._carry_out = carry_out
        self._clock = clock
        self._timing = timing or MemberTiming()
        self._changed = asyncio.Event()
        self._assigned = asyncio.Event()
        self._published_plan_s = 0.0
        self.plan: SwarmPlan | None = None
        """The plan we follow."""

    def changed(self) -> None:
        """What the host has to say has changed: announce it soon."""
        self._changed.set()

    async def run(self) -> None:
        """Take part until cancelled; what keeps the host from serving ends it."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._announce())
            tasks.create_task(self._follow())
            tasks.create_task(self._move())

    async def announce(self) -> None:
        """Publish our record now; if the swarm does not take it, that is tried again soon."""
        try:
            await self._swarm.publish(self._host.announcement(epoch=self.plan.epoch if self.plan else 0))
        except SwarmError as error:
            logger.warning("the swarm did not take our record, trying again: %s", error)

    async def _announce(self) -> None:
        """Publish our record before it expires, and soon after it changes."""
        while True:
            self._changed.clear()
            await self.announce()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._swarm.lease_s / 3):
                    await self._changed.wait()
            await asyncio.sleep(self._timing.announce_gap_s)

    async def _follow(self) -> None:
        """Look at the swarm again and again: adopt newer plans, and plan if that is up to us."""
        while True:
            try:
                await self.look()
            except SwarmError as error:
                logger.warning("the swarm could not be read, trying again: %s", error)
            await asyncio.sleep(self._timing.refresh_s)

    async def look(self) -> None:
        """One look at the swarm; SwarmError if it cannot be read, or does not take our plan."""
        view = await self._swarm.refresh()
        record = view.plan(self._model_digest)
        if record is not None and record.supersedes(self.plan):
            await self._adopt(record, view)
        if (job := self._planner.consider(view, self.plan, now_s=self._clock())) is not None:
            logger.info("planning epoch %d: %s", job.epoch, job.reason)
            planned = await self._carry_out(job)
            if record_of(planned).supersedes(self.plan):
                self._take(planned)
                await self._publish_plan(planned)
        elif (
            self.plan is not None
            and self.plan.planner == self._swarm.peer_id
            and self._clock() - self._published_plan_s > self._swarm.lease_s
        ):
            await self._publish_plan(self.plan)

    async def _publish_plan(self, plan: SwarmPlan) -> None:
        await self._swarm.publish_plan(record_of(plan))
        self._published_plan_s = self._clock()

    async def _adopt(self, record: PlanRecord, view: View) -> None:
        """Follow a plan; one that cannot be had or read is tried again at the next look."""
        try:
            body = record.body if record.body is not None else await self._fetch(record, view)
            self._take(record.open(body))
        except (PeerError, RecordError) as error:
            logger.warning("the plan of epoch %d cannot be followed: %s", record.epoch, error)

    def _take(self, plan: SwarmPlan) -> None:
        self.plan = plan
        self._host.told(plan)
        self._assigned.set()
        self.changed()

    @property
    def _target(self) -> Span | None:
        """The blocks to hold: the owner's choice, or the plan's."""
        if self._host.pinned is not None:
            return self._host.pinned
        span = self.plan.placement.spans.get(self._swarm.peer_id) if self.plan is not None else None
        if span is not None and not self._host.can_hold(span):
            logger.warning("the plan gives us blocks %s, which do not fit", span)
            return None
        return span

    async def _move(self) -> None:
        """Go where the plan wants us; if that changes meanwhile, from there on."""
        held: Span | None = None
        while True:
            self._assigned.clear()
            target = self._target
            if target is None or target == held:
                await self._assigned.wait()
                continue
            await self._host.hold(target)
            held = target
