"""A swarm that plans itself through a day of joins, leaves and lost servers: what that costs, by a virtual clock.

    python benchmarks/churn.py [--servers N] [--hours H] [--only CASE] [--output FILE]

Real members and planners (`chainserve.swarm.member`, `.planner`), with hosts that take as long to load as real ones and
hold nothing. Every server stays for an exponential time, half of them then leave politely and half are lost without a
word, and as many come as go. Each case runs with the price that the product puts on loading, and without any.
"""

import argparse
import asyncio
import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from circumstances import PROJECT, circumstances, keep
from sections.churn import section

from chainserve.planning.profile import BlockProfile, StepTimes
from chainserve.runtime.virtual import VirtualLoop
from chainserve.swarm.member import MemberTiming
from chainserve.swarm.planner import Job
from chainserve.swarm.plans import SwarmPlan
from chainserve.swarm.rehearsal import Card, Rehearsal
from chainserve.types import PeerId

SEED = 1
NUM_BLOCKS = 80
BLOCK_BYTES = 1_712_000_000  # of a 70B model in 16 bits
TOKEN_BYTES = 4096
ACTIVATION_BYTES = 500_000_000
GPUS = {  # memory, relative seconds per block
    "24 GB": (22_000_000_000, 1.0),
    "16 GB": (14_500_000_000, 1.6),
    "12 GB": (10_500_000_000, 2.5),
    "40 GB": (37_000_000_000, 0.8),
}
LOAD_BYTES_PER_S = 200e6


@dataclass(frozen=True)
class Case:
    """A swarm and how long its servers stay."""

    num_servers: int
    stay_s: float
    lease_s: float
    refresh_s: float
    snapshot_s: float


CASES = {
    "1,000 servers that stay a day": Case(1000, 86_400.0, lease_s=600.0, refresh_s=100.0, snapshot_s=1.0),
    "20 servers that stay 8 hours": Case(20, 28_800.0, lease_s=30.0, refresh_s=5.0, snapshot_s=0.5),
}


def as_priced(job: Job) -> SwarmPlan:
    """As the product plans."""
    return job.carry_out()


def without_price(job: Job) -> SwarmPlan:
    """Loading costs nothing."""
    return replace(job, inputs=replace(job.inputs, s_per_byte=0.0)).carry_out()


PRICES: dict[str, Callable[[Job], SwarmPlan]] = {
    "with the price": as_priced,
    "loading is free": without_price,
}


def card(rng: random.Random) -> Card:
    memory_bytes, speed = GPUS[rng.choice(list(GPUS))]
    times = StepTimes(
        forward_s=2e-4,
        prefill=((8, 5e-4 * speed), (512, 9e-3 * speed)),
        decode=((1, 4.5e-4 * speed), (16, 6e-4 * speed)),
        head=((1, 6e-4 * speed), (16, 8e-4 * speed)),
    )
    profile = BlockProfile(
        times=times,
        block_bytes=BLOCK_BYTES,
        embedding_bytes=0,
        head_bytes=0,
        is_tied=False,
        token_bytes=TOKEN_BYTES,
        activation_bytes=ACTIVATION_BYTES,
    )
    return Card(profile=profile, memory_bytes=memory_bytes, load_bytes_per_s=LOAD_BYTES_PER_S)


async def rehearse(case: Case, hours: float, price: Callable[[Job], SwarmPlan]) -> dict[str, Any]:
    """One day; AssertionError if epochs go back, a member breaks, or a move uncovers a block."""
    rng = random.Random(SEED)
    began_s = time.perf_counter()
    plan_s = 0.0

    def timed(job: Job) -> SwarmPlan:
        nonlocal plan_s
        began_s = time.perf_counter()
        plan = price(job)
        plan_s += time.perf_counter() - began_s
        return plan

    swarm = Rehearsal(
        NUM_BLOCKS,
        lease_s=case.lease_s,
        snapshot_s=case.snapshot_s,
        timing=MemberTiming(refresh_s=case.refresh_s),
        carry_out=timed,
    )
    names = (PeerId(f"{rng.randrange(16**8):08x}-{number}") for number in range(10**9))
    leaves_at: list[tuple[float, PeerId]] = []

    def join() -> None:
        peer = next(names)
        swarm.join(peer, card(rng))
        leaves_at.append((swarm.clock() + rng.expovariate(1 / case.stay_s), peer))

    for _ in range(case.num_servers):
        join()
    end_s, join_s = hours * 3600, rng.expovariate(case.num_servers / case.stay_s)
    num_joins = num_leaves = num_losses = 0
    while True:
        leave_s, peer = min(leaves_at, default=(end_s, PeerId("")))
        at_s = min(leave_s, join_s, end_s)
        await asyncio.sleep(at_s - swarm.clock())
        assert not swarm.failures, swarm.failures[0]
        if at_s == end_s:
            break
        if at_s == join_s:
            num_joins += 1
            join()
            join_s += rng.expovariate(case.num_servers / case.stay_s)
            continue
        is_polite = rng.random() < 0.5
        num_leaves, num_losses = num_leaves + is_polite, num_losses + (not is_polite)
        leaves_at.remove((leave_s, peer))
        await swarm.leave(peer, withdraw=is_polite)
    ledger, num_events = swarm.ledger, num_joins + num_leaves + num_losses
    epochs = [member.plan.epoch for member in swarm.members.values() if member.plan]
    plans = [plan for plan in swarm.epochs.values() if plan.shortage is None]
    assert list(swarm.epochs) == sorted(swarm.epochs), "epochs went back"
    await swarm.close()
    return {
        "joins": num_joins,
        "leaves": num_leaves,
        "losses": num_losses,
        "epochs": len(swarm.epochs),
        "blocks_moved_per_event": ledger.blocks_moved / num_events,
        "gb_loaded_again_per_event": ledger.bytes_loaded / 1e9 / num_events,
        "gb_loaded_at_first": ledger.bytes_loaded_at_first / 1e9,
        "uncovered_s": ledger.uncovered_s,
        "uncovered_by_moves": ledger.uncovered_by_moves,
        "epochs_behind_at_the_end": max(swarm.epochs) - min(epochs),
        "mean_response_s": statistics.fmean(
            plan.bounds.lower_s for plan in plans if math.isfinite(plan.bounds.lower_s)
        ),
        "plan_body_kb": len(plans[-1].body) / 1000,
        "planning_s": plan_s,
        "took_s": time.perf_counter() - began_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", type=int, help="another size of every case")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--only", help="cases whose name contains this")
    parser.add_argument("--price", help="prices whose name contains this")
    parser.add_argument("--output", type=Path, default=PROJECT / "benchmarks" / "results" / "churn.json")
    options = parser.parse_args()
    figures: dict[str, dict[str, Any]] = {}
    for name, case in CASES.items():
        if options.only and options.only not in name:
            continue
        if options.servers:
            case = replace(case, num_servers=options.servers)
        for price, carry_out in PRICES.items():
            if options.price and options.price not in price:
                continue
            with asyncio.Runner(loop_factory=VirtualLoop) as runner:
                row = runner.run(rehearse(case, options.hours, carry_out))
            figures.setdefault(name, {})[price] = row
            print(name, price, row, flush=True)
    about = circumstances("churn", "numpy", seed=SEED, hours=options.hours, num_blocks=NUM_BLOCKS)
    print(section(keep(options.output, about, figures)))


if __name__ == "__main__":
    main()
