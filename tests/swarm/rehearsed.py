"""Swarms of pretended servers under a virtual clock, for tests."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from chainserve.planning.profile import BlockProfile, StepTimes
from chainserve.runtime.virtual import VirtualLoop
from chainserve.swarm.planner import Job
from chainserve.swarm.plans import SwarmPlan
from chainserve.swarm.rehearsal import Card, Rehearsal
from chainserve.types import PeerId

T = TypeVar("T")

NUM_BLOCKS = 24
BLOCK_BYTES = 500_000_000
ACTIVATION_BYTES = 300_000_000
LOAD_BYTES_PER_S = 200e6
GB = 10**9

PROFILE = BlockProfile(
    times=StepTimes(
        forward_s=1e-4, prefill=((8, 1e-4), (512, 3e-3)), decode=((1, 2e-4), (16, 6e-4)), head=((1, 3e-4), (16, 9e-4))
    ),
    block_bytes=BLOCK_BYTES,
    embedding_bytes=0,
    head_bytes=0,
    is_tied=False,
    token_bytes=65_536,
    activation_bytes=ACTIVATION_BYTES,
)


def card(memory_gb: float, *, slowness: float = 1.0) -> Card:
    """A server with so much memory, whose blocks take `slowness` times as long."""
    times = PROFILE.times
    slower = replace(
        times,
        prefill=tuple((size, seconds * slowness) for size, seconds in times.prefill),
        decode=tuple((size, seconds * slowness) for size, seconds in times.decode),
    )
    return Card(
        profile=replace(PROFILE, times=slower),
        memory_bytes=int(memory_gb * GB),
        load_bytes_per_s=LOAD_BYTES_PER_S,
    )


def peer(number: int) -> PeerId:
    """Ids in the order of their numbers."""
    return PeerId(f"peer-{number:03}")


def quickly(job: Job) -> SwarmPlan:
    """Plan with little of the local search, whose seconds are real."""
    return replace(job, inputs=replace(job.inputs, search_effort=100)).carry_out()


def rehearse(scenario: Callable[[], Awaitable[T]]) -> T:
    """Run a scenario under a virtual clock."""

    async def run() -> T:
        return await scenario()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(run())


async def until(condition: Callable[[], bool], swarm: Rehearsal, *, within_s: float) -> float:
    """Wait by the virtual clock; returns how long it took."""
    began_s = swarm.clock()
    async with asyncio.timeout(within_s):
        while not condition():
            assert not swarm.failures, swarm.failures[0]
            await asyncio.sleep(0.1)
    return swarm.clock() - began_s


def is_settled(swarm: Rehearsal) -> bool:
    """Whether all follow the last plan, and hold what it says."""
    plan = swarm.plan
    return (
        plan is not None
        and plan.is_settled
        and plan.inputs.membership == {(p, host.pinned, host.offered_bytes) for p, host in swarm.hosts.items()}
        and all(member.plan == plan for member in swarm.members.values())
        and swarm.serving == plan.placement.spans
    )
