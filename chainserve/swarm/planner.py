"""When a swarm is planned again, and from what: decisions without I/O, by the live server with the smallest peer id.

`Planner.consider` looks at a view and returns a job if something has to be planned; `Job.carry_out` computes, for
seconds in a large swarm, and can run anywhere. All placement is decided by the planning library's `plan()`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from chainserve.errors import NoPlanError
from chainserve.planning.allocation import allocate
from chainserve.planning.moves import awaiting, next_step, stuck
from chainserve.planning.plan import Plan
from chainserve.planning.values import Placement, PlannedChain, ResponseTimeBounds
from chainserve.swarm.inputs import ModelFacts, inputs_of, membership_of, whereabouts
from chainserve.swarm.orders import Orders
from chainserve.swarm.plans import MAX_LEFT_OUT, Membership, PlanInputs, Shortage, SwarmPlan
from chainserve.swarm.records import Announcement, ServerState
from chainserve.swarm.view import View
from chainserve.types import Chain, PeerId, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTiming:
    """How long changes gather before they are planned for, in seconds."""

    settle_s: float = 3.0  # after the last join or leave
    settle_s_per_server: float = 0.2  # more of that in larger swarms, where a plan takes longer and matters less
    longest_settle: float = 4.0  # times the above, from the first of several changes on
    drift_gap_s: float = 60.0  # between plans because load or speed have changed
    drift: float = 1.5  # by which factor the load, or a server's speed, has to have changed


@dataclass(frozen=True, kw_only=True)
class Job:
    """Something to plan."""

    reason: str
    epoch: int
    planner: PeerId
    model_digest: str
    inputs: PlanInputs
    serving: Mapping[PeerId, Span]  # what servers serve now
    arriving: Mapping[PeerId, Span]  # where those are going that are under way
    left_out: Mapping[PeerId, str]
    towards: SwarmPlan | None = None  # with it only the next step to its goal is looked for

    def carry_out(self) -> SwarmPlan:
        """Plan, and find the first step that uncovers nothing; with a shortage everybody stays where they are."""
        return self._plan() if self.towards is None else self._step_towards(self.towards)

    def _step_towards(self, plan: SwarmPlan) -> SwarmPlan:
        step = next_step(self.serving, plan.goal)
        if step == plan.placement:  # whoever was in the way is gone
            step = plan.goal
        return replace(plan, epoch=self.epoch, planner=self.planner, placement=step, chains=_chains(plan.inputs, step))

    def _plan(self) -> SwarmPlan:
        where = self.inputs.before or Placement({})
        staying = SwarmPlan(
            epoch=self.epoch,
            planner=self.planner,
            model_digest=self.model_digest,
            inputs=self.inputs,
            goal=where,
            placement=where,
            chains=(),
            concurrency=0,
            bounds=ResponseTimeBounds(math.inf, math.inf),
            left_out=self.left_out,
        )
        try:
            inputs, planned = self._without_stuck()
        except NoPlanError as error:
            return replace(staying, shortage=Shortage(error.missing, error.missing_bytes))
        step = goal = planned.placement
        if not stuck(self.serving, goal):
            step = awaiting(next_step(self.serving, goal), self.serving, self.arriving)
        return replace(
            staying,
            inputs=inputs,
            goal=goal,
            placement=step,
            chains=planned.chains if step == goal and inputs.rule.has_chains else _chains(inputs, step),
            concurrency=planned.chosen.concurrency,
            bounds=planned.bounds,
        )

    def _without_stuck(self) -> tuple[PlanInputs, Plan]:
        """A plan in which everybody can move without uncovering a block, or the first one if there is none."""
        inputs, planned = first = self.inputs, self.inputs.plan()
        while waiting := stuck(self.serving, planned.placement):
            where = {**(inputs.before.spans if inputs.before else {}), **{peer: self.serving[peer] for peer in waiting}}
            inputs = replace(inputs, held=inputs.held | waiting, before=Placement(where))
            try:
                planned = inputs.plan()
            except (NoPlanError, ValueError):  # a server may hold more than the plan's figures have room for
                return first
        return inputs, planned


class Planner:
    """Watches views over time, and says when to plan."""

    def __init__(
        self,
        me: PeerId,
        *,
        model_digest: str,
        model: ModelFacts,
        timing: PlanTiming | None = None,
        orders: Orders | None = None,
    ) -> None:
        self._me = me
        self._model_digest = model_digest
        self._model = model
        self._timing = timing or PlanTiming()
        self._orders = orders or Orders()
        self._seen: frozenset[Membership] = frozenset()
        self._first_change_s = self._last_change_s = 0.0
        self._checked_s = -math.inf  # when we last planned, or looked whether load and speed are still as planned

    def is_planner(self, view: View) -> bool:
        """Whether nobody else of this model has a smaller peer id."""
        for peer, server in view.servers.items():  # by peer id
            if peer == self._me:
                return True
            if server.model_digest == self._model_digest and server.offer is not None:
                return False
        return False

    def consider(self, view: View, current: SwarmPlan | None, *, now_s: float) -> Job | None:
        """What to plan now, if anything; `now_s` is any clock that only grows, `current` the plan we follow."""
        if not self.is_planner(view):
            self._seen = frozenset()
            return None
        members, left_out = self._members(view)
        if not members:
            return None
        serving = {
            peer: server.span for peer, server in members.items() if server.state is ServerState.ONLINE and server.span
        }
        whereto = {peer: span for peer, server in members.items() if (span := whereabouts(server, current)) is not None}

        def job(reason: str, *, towards: SwarmPlan | None = None) -> Job:
            self._checked_s = now_s
            self._seen = frozenset()
            epochs = (record.epoch for record in view.plans.values() if record.model_digest == self._model_digest)
            return Job(
                reason=reason,
                epoch=max(current.epoch if current else 0, *epochs, 0) + 1,
                planner=self._me,
                model_digest=self._model_digest,
                inputs=towards.inputs if towards else self._inputs(members, current),
                serving=serving,
                arriving={peer: span for peer, span in whereto.items() if serving.get(peer) != span},
                left_out=MappingProxyType(left_out),
                towards=towards,
            )

        membership = membership_of(members)
        if current is None or membership != current.inputs.membership:
            if current is not None and (lost := self._uncovered(current, members)):
                return job(f"blocks {sorted(lost)} lost their last server")
            return job("servers came or went") if self._has_settled(membership, now_s) else None
        self._seen = frozenset()
        if not current.is_settled:
            arrived = all(serving.get(peer) == span for peer, span in current.placement.spans.items())
            return job("the next step", towards=current) if arrived else None
        if self._orders.is_fixed or now_s - self._checked_s < self._timing.drift_gap_s:
            return None
        self._checked_s = now_s
        return job(drift) if (drift := self._drift(self._inputs(members, current), current)) else None

    def _inputs(self, members: Mapping[PeerId, Announcement], current: SwarmPlan | None) -> PlanInputs:
        return inputs_of(members, self._model, current, orders=self._orders)

    def _members(self, view: View) -> tuple[dict[PeerId, Announcement], dict[PeerId, str]]:
        """Servers that take part in the plan, and those left out, each with the reason."""
        members: dict[PeerId, Announcement] = {}
        left_out = dict(view.refused)
        for peer, server in view.servers.items():
            if server.model_digest != self._model_digest or server.offer is None:
                continue
            if server.num_blocks != self._model.num_blocks:
                left_out[peer] = f"says that the model has {server.num_blocks} blocks, it has {self._model.num_blocks}"
            elif server.pinned and not self._orders.rule.is_ours:
                left_out[peer] = f"is pinned to blocks {server.span}: {self._orders.rule.name} places every server"
            else:
                members[peer] = server
        return members, dict(sorted(left_out.items())[:MAX_LEFT_OUT])

    def _has_settled(self, membership: frozenset[Membership], now_s: float) -> bool:
        """Whether the last join or leave is long enough ago, or the first one very long."""
        if not self._seen:
            self._first_change_s = now_s
        if membership != self._seen:
            self._seen, self._last_change_s = membership, now_s
        settle_s = self._timing.settle_s + self._timing.settle_s_per_server * len(membership)
        return (
            now_s - self._last_change_s >= settle_s
            or now_s - self._first_change_s >= settle_s * self._timing.longest_settle
        )

    def _uncovered(self, current: SwarmPlan, members: Mapping[PeerId, Announcement]) -> set[int]:
        """Blocks that the plan gave to servers of which none is left."""
        spans = current.placement.spans
        covered = set[int]().union(*spans.values())
        return covered.difference(*(span for peer, span in spans.items() if peer in members))

    def _drift(self, fresh: PlanInputs, current: SwarmPlan) -> str | None:
        """What has changed past the threshold since it was planned."""
        planned = current.inputs
        if self._differ(fresh.arrival_rate, planned.arrival_rate):
            return f"{fresh.arrival_rate:.3g} requests/s, planned for {planned.arrival_rate:.3g}"
        tokens = fresh.input_tokens, fresh.output_tokens
        if self._differ(sum(tokens), planned.input_tokens + planned.output_tokens):
            return f"requests of {tokens[0]:.0f} tokens in and {tokens[1]:.0f} out, planned for others"
        for chain in current.chains[:1]:
            service_s = [_service_s(chain.chain, inputs) for inputs in (fresh, planned)]
            if self._differ(*service_s):
                return f"the fastest chain takes {service_s[0]:.3g} s, planned for {service_s[1]:.3g} s"
        for now, before in zip(fresh.servers, planned.servers, strict=True):
            block_s = [server.times.block.request_s(*tokens) for server in (now, before)]
            if self._differ(*block_s):
                return f"{now.peer} takes {block_s[0] / block_s[1]:.2g} times as long per block as planned for"
        return None

    def _differ(self, now: float, planned: float) -> bool:
        return not 1 / self._timing.drift <= now / planned <= self._timing.drift


def _service_s(chain: Chain, inputs: PlanInputs) -> float:
    """Seconds of a mean request over a chain (Eq. 2)."""
    servers = {profile.peer: profile for profile in inputs.profiles()}
    service_s, before = 0.0, chain.head  # no server is a pair with itself
    for hop in chain.hops:
        server = servers[hop.peer]
        service_s += inputs.pair_s.get((before, hop.peer), server.communication_s) + server.block_s * len(hop.span)
        before = hop.peer
    return service_s


def _chains(inputs: PlanInputs, placement: Placement) -> tuple[PlannedChain, ...]:
    """Chains over a placement on its way to a goal; none if a server has less room than it holds, or if the rule
    leaves cache to clients' routes.
    """
    if not inputs.rule.has_chains:
        return ()
    try:
        return allocate(inputs.profiles(), inputs.model, placement, pair_s=inputs.pair_s or None)
    except ValueError:
        return ()
