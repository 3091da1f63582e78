"""Watches a swarm for as long as the page is served: takes snapshots, sees what happens, keeps the history."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from chainserve.errors import PeerError, RecordError, SwarmError
from chainserve.swarm.plans import PlanRecord, SwarmPlan
from chainserve.types import PeerId
from chainserve_client.health.events import Event, events_between
from chainserve_client.health.history import History, Sample
from chainserve_client.health.hub import Hub, encoded
from chainserve_client.health.reach import Reach
from chainserve_client.health.snapshot import Snapshot
from chainserve_client.health.state import state_json, totals_json
from chainserve_client.live_json import plan_json, record_json
from chainserve_client.live_plan import LivePlan, can_plan, examine
from chainserve_client.network import Network
from chainserve_client.status import Unreadable

logger = logging.getLogger(__name__)

TICK_S = 1.0
FRESH_S = 2.0
"""As old the view may be while somebody looks."""
RETRY_S = 5.0
"""After which a plan that could not be read is asked for again."""
MAX_EVENTS = 200

ReadPlan = LivePlan | Unreadable


class Watch:
    """One swarm, watched from here."""

    def __init__(self, network: Network, *, swarm: str, examine_plan: Callable[..., LivePlan] = examine) -> None:
        """`examine_plan` is called in a thread, as it takes seconds."""
        self._network = network
        self._swarm = swarm
        self._examine = examine_plan
        self._reach = Reach(network.links)
        self._plans: dict[str, tuple[PlanRecord | None, ReadPlan]] = {}  # None: to be read again
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._snapshot: Snapshot | None = None
        self._linked: set[PeerId] = set()
        self.hub = Hub()
        self.history = History()
        self.events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self.state: dict[str, Any] = {}
        self.look()

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            while True:
                await self._refresh()
                self.look()
                await asyncio.sleep(TICK_S)
        finally:
            self._reach.close()
            self.hub.end()
            for task in self._reading.values():
                task.cancel()

    def look(self) -> None:
        """Take a snapshot, and tell who listens what is new."""
        view, swarm = self._network.swarm.view, self._network.swarm
        self._read_plans()
        ways, silent = self._reach.look(view.servers.values())
        after = Snapshot(
            swarm=self._swarm,
            view=view,
            is_current=swarm.now() - view.taken_at <= swarm.lease_s,
            ways=ways,
            silent=silent,
            plans={digest: plan for digest, (_, plan) in self._plans.items()},
            can_plan=can_plan(),
        )
        before, self._snapshot = self._snapshot, after
        self._linked = set(ways)
        state = state_json(after)
        if state != self.state:
            self.state = state
            self.hub.tell("state", encoded("state", state))
        if before is not None and (happened := events_between(before, after)):
            self.events.extend(happened)
            self.hub.tell("events", encoded("events", self.events_json()))
        self._sample(after)

    def events_json(self) -> list[dict[str, Any]]:
        """The last ones, newest first."""
        return [event.to_json() for event in reversed(self.events)]

    def plans_json(self) -> list[dict[str, Any]]:
        """All that is known of the plan of each model, as `chainserve status --json` has it."""
        view = self._network.swarm.view
        plans: list[dict[str, Any]] = []
        for digest, servers in view.models().items():
            record, (read, live) = view.plan(digest), self._plans.get(digest, (None, None))
            if record is None:
                plan = None
            elif isinstance(live, LivePlan) and read == record:
                plan = plan_json(live, record, servers)
            else:
                plan = record_json(record, servers)
            plans.append({"name": servers[0].model, "digest": digest, "plan": plan})
        return plans

    def welcome(self) -> list[bytes]:
        """What somebody needs to know who begins to listen."""
        return [
            encoded("clock", {"now": self._network.swarm.now()}),
            encoded("state", self.state),
            encoded("events", self.events_json()),
            encoded("history", [sample.to_json() for sample in self.history.samples()]),
        ]

    async def _refresh(self) -> None:
        """Look at the swarm if somebody looks at us, or a link has just been lost: did its server say goodbye?"""
        swarm = self._network.swarm
        is_old = swarm.now() - swarm.view.taken_at > FRESH_S
        has_lost = any(self._network.links.kind(peer) is None for peer in self._linked)
        if (len(self.hub) and is_old) or has_lost:
            with suppress(SwarmError):
                await swarm.refresh()

    def _sample(self, snapshot: Snapshot) -> None:
        at = self._network.swarm.now()
        if not self.history.is_due(at):
            return
        totals = [totals_json(snapshot, digest) for digest in snapshot.view.models()]
        sample = Sample(
            at=at,
            load=max((one["load"] for one in totals), default=0.0),
            tokens_per_s=sum(one["tokens_per_s"] for one in totals),
            num_waiting=sum(one["num_waiting"] for one in totals),
            num_online=sum(one["num_online"] for one in totals),
        )
        self.history.add(sample)
        self.hub.tell("sample", encoded("sample", sample.to_json()))

    def _read_plans(self) -> None:
        """Begin to read the plans that are new, and forget those of models that are gone."""
        view = self._network.swarm.view
        for digest in self._plans.keys() - view.models().keys():
            del self._plans[digest]
        for digest in view.models():
            record = view.plan(digest)
            known = self._plans.get(digest)
            if record is not None and (known is None or known[0] != record) and digest not in self._reading:
                self._reading[digest] = asyncio.create_task(self._read_plan(digest, record))

    async def _read_plan(self, digest: str, record: PlanRecord) -> None:
        """Read a plan and see what follows from it: first what is quick."""
        try:
            plan = await self._network.read_plan(record, self._network.swarm.view)
            for is_thorough in (False, True):
                self._plans[digest] = record, await self._examined(plan, is_thorough=is_thorough)
        except (PeerError, RecordError) as error:
            logger.info("the plan of epoch %d cannot be read: %s", record.epoch, error)
            self._plans[digest] = None, Unreadable(str(error))
            await asyncio.sleep(RETRY_S)
        finally:
            self._reading.pop(digest, None)

    async def _examined(self, plan: SwarmPlan, *, is_thorough: bool) -> ReadPlan:
        try:
            return await asyncio.to_thread(self._examine, plan, is_thorough=is_thorough)
        except ValueError as error:
            return Unreadable(str(error))


@asynccontextmanager
async def watching(network: Network, *, swarm: str) -> AsyncIterator[Watch]:
    """Watch a swarm meanwhile."""
    watch = Watch(network, swarm=swarm)
    task = asyncio.create_task(watch.run())
    task.add_done_callback(_tell_of_failure)
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.wait([task])


def _tell_of_failure(task: asyncio.Task[None]) -> None:
    """Answers go on without the page."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("the swarm is not watched any more", exc_info=error)
