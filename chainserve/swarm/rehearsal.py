"""A swarm that plans itself without models or a network: real members and planners, hosts that only pretend to load.

Run it on a `VirtualLoop` and a day of joins, leaves and lost servers passes in minutes. It counts what churn costs:
blocks that move, bytes that are loaded, and how long blocks are served by nobody.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from chainserve.planning.moves import overlap
from chainserve.planning.profile import BlockProfile
from chainserve.swarm.inputs import ModelFacts
from chainserve.swarm.member import Member, MemberTiming
from chainserve.swarm.memory import MemoryHub, MemorySwarm
from chainserve.swarm.offers import Offer
from chainserve.swarm.planner import Job, Planner, PlanTiming
from chainserve.swarm.plans import PlanRecord, SwarmPlan
from chainserve.swarm.records import Announcement, ServerState
from chainserve.swarm.view import View
from chainserve.types import PeerId, Span

MODEL_DIGEST = "0123456789abcdef"
MAX_TOKENS = 8192
WIRE_BYTES = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One kind of server."""

    profile: BlockProfile
    memory_bytes: int
    load_bytes_per_s: float = 200e6


@dataclass(slots=True)
class Ledger:
    """Who serves which blocks over time, and what that cost."""

    num_blocks: int
    clock: Callable[[], float]
    num_serving: Counter[int] = field(default_factory=Counter)  # by block
    uncovered_s: float = 0.0  # since every block was served for the first time: while some block was not
    num_believed: Counter[int] = field(default_factory=Counter)  # the same with servers whose loss nobody can know yet
    uncovered_by_moves: int = 0  # times that a move took away a block's last server, as far as anybody could know
    blocks_moved: int = 0  # given up by servers that held others after it
    bytes_loaded: float = 0.0  # by servers that held blocks before
    bytes_loaded_at_first: float = 0.0  # by servers that had just joined
    _uncovered_since: float | None = None
    _was_covered: bool = False

    def move(self, before: Span | None, after: Span | None) -> None:
        """A server that is there serves other blocks than before."""
        given_up = self._count(self.num_believed, before, after)
        self.blocks_moved += len(given_up)
        self.uncovered_by_moves += sum(self.num_believed[block] == 0 for block in given_up)
        self._change(before, after)

    def leave(self, before: Span | None) -> None:
        """A server has gone; until `forget` the others may still believe in it."""
        self._change(before, None)

    def forget(self, before: Span | None) -> None:
        """All know that a server has gone."""
        self._count(self.num_believed, before, None)

    @staticmethod
    def _count(numbers: Counter[int], before: Span | None, after: Span | None) -> set[int]:
        """Count a server's blocks anew; returns those that it gives up."""
        given_up = set(before or ()).difference(after or ())
        numbers.subtract(given_up)
        numbers.update(set(after or ()).difference(before or ()))
        return given_up

    def _change(self, before: Span | None, after: Span | None) -> None:
        self._count(self.num_serving, before, after)
        is_covered = all(self.num_serving[block] > 0 for block in range(self.num_blocks))
        self._was_covered |= is_covered
        if self._was_covered and not is_covered and self._uncovered_since is None:
            self._uncovered_since = self.clock()
        elif is_covered and self._uncovered_since is not None:
            self.uncovered_s += self.clock() - self._uncovered_since
            self._uncovered_since = None

    @property
    def is_covered(self) -> bool:
        """Whether every block is served now."""
        return self._was_covered and self._uncovered_since is None


class PretendHost:
    """A server that takes as long as a real one to load, and holds nothing."""

    def __init__(
        self, peer: PeerId, card: Card, ledger: Ledger, *, num_blocks: int, pinned: Span | None = None
    ) -> None:
        self.peer = peer
        self.pinned = pinned
        self.serving: Span | None = None
        self.epochs: list[int] = []
        """Of the plans it has followed, in that order."""
        self.on_change: Callable[[], None] = lambda: None
        self._card = card
        self._ledger = ledger
        self._num_blocks = num_blocks
        self._offer = Offer(memory_bytes=card.memory_bytes, profile=card.profile)
        self._announcement: Announcement | None = None
        self._state = ServerState.JOINING
        self._span: Span | None = pinned
        if pinned is not None:
            self._state = ServerState.LOADING

    @property
    def offered_bytes(self) -> int:
        return self._offer.memory_bytes

    def announcement(self, *, epoch: int) -> Announcement:
        if self._announcement is None or self._announcement.epoch != epoch:
            self._announcement = self._describe(epoch)
        return self._announcement

    def _describe(self, epoch: int) -> Announcement:
        profile, span = self._card.profile, self._span
        weight_bytes = self._weight_bytes(span)
        left = self._card.memory_bytes - profile.activation_bytes - weight_bytes
        tokens = max(0, left) // (profile.token_bytes * len(span)) if span else 0
        return Announcement(
            peer=self.peer,
            state=self._state,
            model="rehearsed",
            model_digest=MODEL_DIGEST,
            num_blocks=self._num_blocks,
            span=span,
            dtype="bfloat16",
            cache_tokens=tokens,
            free_tokens=tokens,
            addresses=(),
            version="0",
            started_at=0.0,
            pinned=self.pinned is not None,
            weight_bytes=weight_bytes,
            epoch=epoch,
            offer=self._offer,
        )

    def can_hold(self, span: Span) -> bool:
        return self._fits(self._weight_bytes(span))

    async def hold(self, span: Span) -> None:
        before = self.serving
        keep = overlap(before, span)
        new_bytes = self._weight_bytes(span) - self._weight_bytes(keep)
        is_first = before is None
        if not is_first and not self._fits(new_bytes + self._weight_bytes(before)):
            self._serve(keep)
            self._say(ServerState.ONLINE if keep else ServerState.LOADING, keep or span)
        elif is_first:
            self._say(ServerState.LOADING, span)
        await asyncio.sleep(new_bytes / self._card.load_bytes_per_s)
        if is_first:
            self._ledger.bytes_loaded_at_first += new_bytes
        else:
            self._ledger.bytes_loaded += new_bytes
        self._serve(span)
        self._say(ServerState.ONLINE, span)

    def told(self, plan: SwarmPlan) -> None:
        self.epochs.append(plan.epoch)

    def say(self, **changes: Any) -> None:
        """Announce an offer with other values, whatever the truth is."""
        self._offer = replace(self._offer, **changes)
        self._announcement = None
        self.on_change()

    def stop(self) -> Span | None:
        """Serve nothing any more; returns what it served."""
        before, self.serving = self.serving, None
        self._ledger.leave(before)
        return before

    def _weight_bytes(self, span: Span | None) -> int:
        model = self._card.profile.model(self._num_blocks, max_tokens=1)
        return int(model.weight_bytes(span)) if span else 0

    def _fits(self, weight_bytes: int) -> bool:
        return weight_bytes + self._card.profile.activation_bytes <= self._card.memory_bytes

    def _serve(self, span: Span | None) -> None:
        self._ledger.move(self.serving, span)
        self.serving = span

    def _say(self, state: ServerState, span: Span) -> None:
        self._state, self._span, self._announcement = state, span, None
        self.on_change()


class Rehearsal:
    """Members that come and go; use it within a running loop, whose time is everybody's."""

    def __init__(
        self,
        num_blocks: int,
        *,
        lease_s: float = 30.0,
        snapshot_s: float = 0.0,
        timing: MemberTiming | None = None,
        plan_timing: PlanTiming | None = None,
        carry_out: Callable[[Job], SwarmPlan] = Job.carry_out,
    ) -> None:
        self.num_blocks = num_blocks
        self.clock = asyncio.get_running_loop().time
        self.hub = MemoryHub(clock=self.clock, snapshot_s=snapshot_s)
        self.ledger = Ledger(num_blocks, self.clock)
        self.hosts: dict[PeerId, PretendHost] = {}
        self.members: dict[PeerId, Member] = {}
        self.swarms: dict[PeerId, MemorySwarm] = {}
        self.epochs: dict[int, SwarmPlan] = {}  # by epoch, those that were published
        self._lease_s = lease_s
        self._timing = timing
        self._plan_timing = plan_timing
        self._carry_out = carry_out
        self._tasks: dict[PeerId, asyncio.Task[None]] = {}

    def join(self, peer: PeerId, card: Card, *, pinned: Span | None = None) -> None:
        """A server comes."""
        swarm = MemorySwarm(self.hub, peer, lease_s=self._lease_s)
        host = PretendHost(peer, card, self.ledger, num_blocks=self.num_blocks, pinned=pinned)
        member = Member(
            swarm,
            host,
            Planner(
                peer,
                model_digest=MODEL_DIGEST,
                model=ModelFacts(num_blocks=self.num_blocks, longest_tokens=MAX_TOKENS, wire_bytes=WIRE_BYTES),
                timing=self._plan_timing,
            ),
            model_digest=MODEL_DIGEST,
            fetch=self._fetch,
            carry_out=self._plan,
            clock=self.clock,
            timing=self._timing,
        )
        host.on_change = member.changed
        self.hosts[peer], self.members[peer], self.swarms[peer] = host, member, swarm
        self._tasks[peer] = asyncio.create_task(member.run())

    async def leave(self, peer: PeerId, *, withdraw: bool) -> None:
        """A server goes: politely, or without a word."""
        task = self._tasks.pop(peer)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        swarm = self.swarms.pop(peer)
        served = self.hosts.pop(peer).stop()
        if withdraw:
            await swarm.withdraw()
            self.ledger.forget(served)
        else:
            asyncio.get_running_loop().call_later(self._lease_s, self.ledger.forget, served)
        self.members.pop(peer)

    async def close(self) -> None:
        for peer in list(self._tasks):
            await self.leave(peer, withdraw=True)

    @property
    def plan(self) -> SwarmPlan | None:
        """The one of the highest epoch."""
        return self.epochs[max(self.epochs)] if self.epochs else None

    @property
    def serving(self) -> Mapping[PeerId, Span]:
        return {peer: host.serving for peer, host in self.hosts.items() if host.serving is not None}

    @property
    def failures(self) -> Sequence[BaseException]:
        """What ended members that should still run."""
        done = (task for task in self._tasks.values() if task.done() and not task.cancelled())
        return [error for task in done if (error := task.exception()) is not None]

    async def _plan(self, job: Job) -> SwarmPlan:
        plan = self._carry_out(job)
        self.epochs[plan.epoch] = plan
        return plan

    async def _fetch(self, record: PlanRecord, _view: View) -> bytes:
        plan = next(plan for plan in self.epochs.values() if plan.digest == record.digest)
        return plan.body
