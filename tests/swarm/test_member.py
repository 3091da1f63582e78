"""Members plan for themselves, follow the plan, and move without a gap: whole swarms by a virtual clock."""

import asyncio
import random
from dataclasses import replace
from itertools import pairwise

import pytest
from rehearsed import BLOCK_BYTES, LOAD_BYTES_PER_S, NUM_BLOCKS, card, is_settled, peer, quickly, rehearse, until

from chainserve.swarm.interface import PLAN_LEASES
from chainserve.swarm.memory import MemoryHub
from chainserve.swarm.offers import Demand, StepCheck
from chainserve.swarm.plans import MAX_INLINE_BYTES
from chainserve.swarm.rehearsal import Rehearsal
from chainserve.types import PeerId, Span

LEASE_S = 30.0
SETTLE_S = 10.0  # joins gather, a plan is made, everybody sees it
LOAD_S = NUM_BLOCKS * BLOCK_BYTES / LOAD_BYTES_PER_S  # at most


async def swarm_of(*memory_gb: float) -> Rehearsal:
    """Servers that have just come to rest."""
    swarm = Rehearsal(NUM_BLOCKS, lease_s=LEASE_S, carry_out=quickly)
    for number, memory in enumerate(memory_gb):
        swarm.join(peer(number), card(memory, slowness=1 + number / 4))
    await until(lambda: is_settled(swarm), swarm, within_s=2 * SETTLE_S + LOAD_S)
    return swarm


def test_servers_that_come_together_are_planned_together() -> None:
    async def scenario() -> None:
        swarm = await swarm_of(5, 6, 7, 8, 9, 10)
        plan = swarm.plan
        assert plan is not None
        assert (plan.epoch, plan.planner) == (1, peer(0))
        assert swarm.ledger.is_covered
        again = plan.inputs.plan()
        assert (again.placement, again.chains) == (plan.placement, plan.chains)
        await swarm.close()

    rehearse(scenario)


def test_a_new_epoch_is_followed_by_all_within_ten_seconds() -> None:
    async def scenario() -> None:
        swarm = await swarm_of(5, 6, 7, 8, 9, 10)
        swarm.join(peer(9), card(12))
        await until(lambda: swarm.plan is not None and swarm.plan.epoch == 2, swarm, within_s=SETTLE_S)
        all_follow = lambda: all(m.plan and m.plan.epoch == 2 for m in swarm.members.values())  # noqa: E731
        assert await until(all_follow, swarm, within_s=10) < 10
        await swarm.close()

    rehearse(scenario)


@pytest.mark.parametrize("lost", [0, 3], ids=["the planner", "another"])
@pytest.mark.parametrize("withdraws", [True, False], ids=["leaves", "is lost"])
def test_what_a_server_leaves_uncovered_is_covered_again_within_lease_and_loading(lost: int, withdraws: bool) -> None:
    async def scenario() -> None:
        swarm = await swarm_of(5, 5, 5, 5)
        swarm.join(peer(7), card(14))  # whatever goes, the others have room
        await until(lambda: is_settled(swarm), swarm, within_s=2 * SETTLE_S + LOAD_S)
        before = swarm.plan
        assert before is not None
        await swarm.leave(peer(lost), withdraw=withdraws)
        await until(lambda: is_settled(swarm), swarm, within_s=LEASE_S + SETTLE_S + 2 * LOAD_S)
        plan = swarm.plan
        assert plan is not None
        assert plan.epoch > before.epoch
        assert plan.planner == peer(1 if lost == 0 else 0)
        assert swarm.ledger.is_covered
        assert swarm.ledger.uncovered_s <= LEASE_S + SETTLE_S + LOAD_S
        assert swarm.ledger.uncovered_by_moves == 0
        await swarm.close()

    rehearse(scenario)


def test_without_room_for_all_blocks_the_swarm_says_what_is_missing_and_waits() -> None:
    async def scenario() -> None:
        swarm = Rehearsal(NUM_BLOCKS, lease_s=LEASE_S, carry_out=quickly)
        swarm.join(peer(1), card(5))
        await until(lambda: swarm.plan is not None, swarm, within_s=SETTLE_S)
        plan = swarm.plan
        assert plan is not None
        assert plan.shortage is not None
        assert plan.shortage.missing == tuple(range(NUM_BLOCKS - len(plan.shortage.missing), NUM_BLOCKS))
        assert plan.shortage.missing_bytes > len(plan.shortage.missing) * BLOCK_BYTES
        assert not swarm.serving
        swarm.join(peer(2), card(12))
        await until(lambda: is_settled(swarm), swarm, within_s=2 * SETTLE_S + LOAD_S)
        assert swarm.ledger.is_covered
        await swarm.close()

    rehearse(scenario)


def test_a_shortage_moves_nobody() -> None:
    async def scenario() -> None:
        swarm = await swarm_of(5, 5, 5)
        serving = dict(swarm.serving)
        await swarm.leave(peer(2), withdraw=True)
        await until(lambda: swarm.plan is not None and swarm.plan.shortage is not None, swarm, within_s=SETTLE_S)
        await asyncio.sleep(LEASE_S)
        assert swarm.serving == {p: span for p, span in serving.items() if p != peer(2)}
        await swarm.close()

    rehearse(scenario)


def test_pinned_servers_keep_their_blocks_and_are_planned_around() -> None:
    async def scenario() -> None:
        swarm = Rehearsal(NUM_BLOCKS, lease_s=LEASE_S, carry_out=quickly)
        swarm.join(peer(1), card(9), pinned=Span(4, 16))
        swarm.join(peer(2), card(7))
        swarm.join(peer(3), card(8))
        await until(lambda: is_settled(swarm), swarm, within_s=2 * SETTLE_S + LOAD_S)
        assert swarm.serving[peer(1)] == Span(4, 16)
        assert swarm.ledger.is_covered
        await swarm.close()

    rehearse(scenario)


def test_two_planners_in_a_split_move_nobody_back_and_forth_and_the_higher_epoch_wins() -> None:
    async def scenario() -> None:
        swarm = await swarm_of(9, 9, 9, 9, 9, 9)
        here, there = swarm.hub, MemoryHub(clock=swarm.clock)
        there.records, there.plans = dict(here.records), dict(here.plans)
        far = [peer(number) for number in (1, 4, 5)]
        for other in far:
            swarm.swarms[other].meet(there)
        moves = swarm.ledger.blocks_moved
        await asyncio.sleep(20 * LEASE_S)
        plans = {p: member.plan for p, member in swarm.members.items()}
        epochs = {p: plan.epoch for p, plan in plans.items() if plan}
        assert {plan.planner for plan in plans.values() if plan} == {peer(0), peer(1)}
        assert all(len(host.epochs) <= 4 for host in swarm.hosts.values()), "each half is planned once, in steps"
        in_the_split = swarm.ledger.blocks_moved - moves

        here.records.update(there.records)
        here.plans.update(there.plans)
        there.records, there.plans = here.records, here.plans
        await until(lambda: is_settled(swarm), swarm, within_s=4 * LEASE_S)
        plan = swarm.plan
        assert plan is not None
        assert plan.epoch > max(epochs.values())
        assert plan.planner == peer(0)
        for host in swarm.hosts.values():
            assert all(before < after for before, after in pairwise(host.epochs)), host.epochs
        num_epochs = len(swarm.epochs)
        await asyncio.sleep(20 * LEASE_S)
        assert len(swarm.epochs) == num_epochs, "nothing changes any more"
        assert swarm.ledger.blocks_moved - moves <= in_the_split + 6 * NUM_BLOCKS
        assert swarm.ledger.uncovered_by_moves == 0
        await swarm.close()

    rehearse(scenario)


def test_a_plan_too_large_for_its_record_is_fetched() -> None:
    async def scenario() -> None:
        swarm = Rehearsal(NUM_BLOCKS, lease_s=LEASE_S, carry_out=quickly)
        for number in range(110):
            swarm.join(peer(number), card(6 + number % 5))
        await until(lambda: is_settled(swarm), swarm, within_s=5 * SETTLE_S + LOAD_S)
        assert swarm.plan is not None
        assert len(swarm.plan.body) > MAX_INLINE_BYTES
        assert all(record.body is None for record, _ in swarm.hub.plans.values())
        await swarm.close()

    rehearse(scenario)


def test_a_server_that_contradicts_the_model_is_left_out_and_named() -> None:
    async def scenario() -> None:
        swarm = await swarm_of(9, 9)
        liar = peer(5)
        swarm.join(liar, card(9))
        await until(lambda: liar in swarm.hub.records, swarm, within_s=1)
        record, expires_at = swarm.hub.records[liar]
        await swarm.leave(liar, withdraw=False)
        swarm.hub.records[liar] = replace(record, num_blocks=NUM_BLOCKS + 1), expires_at + 1000
        swarm.join(peer(6), card(9))  # so that there is something to plan
        await until(lambda: swarm.plan is not None and peer(6) in swarm.plan.placement.spans, swarm, within_s=60)
        assert swarm.plan is not None
        assert liar not in swarm.plan.placement.spans
        assert f"{NUM_BLOCKS + 1} blocks" in swarm.plan.left_out[liar]
        await swarm.close()

    rehearse(scenario)


def test_a_server_that_claims_all_the_memory_in_the_world_holds_up_nobody() -> None:
    async def scenario() -> None:
        swarm = await swarm_of(9, 9)
        swarm.join(peer(5), card(60_000))
        await until(lambda: is_settled(swarm), swarm, within_s=2 * SETTLE_S + LOAD_S)
        await swarm.close()

    rehearse(scenario)


def test_a_load_that_has_changed_is_planned_for_but_not_at_once_nor_again_and_again() -> None:
    async def scenario() -> None:
        swarm = await swarm_of(9, 9, 9)
        demand = Demand(num_requests=600, window_s=600.0, input_tokens=2000.0, output_tokens=300.0)
        swarm.hosts[peer(1)].say(demand=demand)
        took_s = await until(lambda: swarm.plan is not None and swarm.plan.epoch == 2, swarm, within_s=200)
        assert took_s > 10
        assert swarm.plan is not None
        inputs = swarm.plan.inputs
        assert (inputs.arrival_rate, inputs.input_tokens, inputs.output_tokens) == (1.0, 2000.0, 300.0)
        await asyncio.sleep(600)
        assert is_settled(swarm)
        assert swarm.plan.inputs == inputs, "what follows are steps to the same goal"
        await swarm.close()

    rehearse(scenario)


def test_a_server_that_turns_out_slow_is_planned_as_slow() -> None:
    async def scenario() -> None:
        swarm = await swarm_of(9, 9, 9)
        check = StepCheck(predicted_s=0.01, observed_s=0.03)
        swarm.hosts[peer(1)].say(prefill=check, decode=check)
        await until(lambda: swarm.plan is not None and swarm.plan.epoch == 2, swarm, within_s=200)
        first, second = swarm.epochs[1].inputs, swarm.epochs[2].inputs
        assert second.servers[1].times.block.decode_s == pytest.approx(3 * first.servers[1].times.block.decode_s)
        assert second.servers[0].times == first.servers[0].times
        await swarm.close()

    rehearse(scenario)


def test_a_plan_outlives_its_planner_until_the_next_one_has_planned() -> None:
    async def scenario() -> None:
        swarm = await swarm_of(9, 9, 9)
        await swarm.leave(peer(0), withdraw=False)
        seen: list[bool] = []
        for _ in range(int(PLAN_LEASES * LEASE_S * 2)):
            view = await swarm.swarms[peer(1)].refresh()
            seen.append(view.plan("0123456789abcdef") is not None)
            await asyncio.sleep(1)
        assert all(seen)
        assert swarm.plan is not None
        assert swarm.plan.planner == peer(1)
        await swarm.close()

    rehearse(scenario)


@pytest.mark.parametrize("seed", range(6))
def test_however_servers_come_and_go_no_move_uncovers_a_block_and_epochs_only_grow(seed: int) -> None:
    async def scenario() -> None:
        rng = random.Random(seed)
        swarm = Rehearsal(NUM_BLOCKS, lease_s=LEASE_S, carry_out=quickly)
        numbers = list(range(100))
        rng.shuffle(numbers)
        for _ in range(8):
            swarm.join(peer(numbers.pop()), card(rng.uniform(3, 8), slowness=rng.uniform(1, 3)))
        for _ in range(25):
            await asyncio.sleep(rng.expovariate(1 / 60))
            assert not swarm.failures, swarm.failures[0]
            if rng.random() < 0.5 or len(swarm.hosts) < 6:
                swarm.join(peer(numbers.pop()), card(rng.uniform(3, 8), slowness=rng.uniform(1, 3)))
            else:
                gone: PeerId = rng.choice(sorted(swarm.hosts))
                await swarm.leave(gone, withdraw=rng.random() < 0.5)
        await until(lambda: is_settled(swarm) or _is_short(swarm), swarm, within_s=20 * LEASE_S)
        assert swarm.ledger.uncovered_by_moves == 0
        for host in swarm.hosts.values():
            assert all(before < after for before, after in pairwise(host.epochs)), host.epochs
        assert swarm.plan is not None
        if swarm.plan.shortage is None:
            again = swarm.plan.inputs.plan()
            assert (again.placement, again.chains) == (swarm.plan.placement, swarm.plan.chains)
            assert swarm.ledger.is_covered
        await swarm.close()

    rehearse(scenario)


def _is_short(swarm: Rehearsal) -> bool:
    members = {(p, host.pinned, host.offered_bytes) for p, host in swarm.hosts.items()}
    return swarm.plan is not None and swarm.plan.shortage is not None and swarm.plan.inputs.membership == members
