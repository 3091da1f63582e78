"""Seconds that planning takes, against the number of servers, and how they grow.

    python benchmarks/planning.py [--rounds N] [--servers J ...] [--output FILE]

A model of 126 blocks of 1.6 GB, with an embedding and a head of 2 GB each and 17 MB of cache for a session of 4,096
tokens in a block; cards of 24 to 80 GB, a tenth of them kept back; random times. Counted is the process's own CPU time,
so that neighbours on the machine matter less; it has one thread. Figures are medians over rounds.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
from circumstances import PROJECT, circumstances, keep
from sections.planning import section

from chainserve.planning.allocation import allocate
from chainserve.planning.placement import greedy_placement
from chainserve.planning.plan import plan
from chainserve.planning.tuning import choose_concurrency
from chainserve.planning.values import ModelSpec, ServerProfile, Workload, total_rate
from chainserve.types import PeerId

NUM_SERVERS = (30, 100, 300, 1000, 3000, 10000)
MOST_SEARCHED = 1000
"""Servers up to which the concurrency is searched too."""

MOST_PAIRS = 1000
"""Servers up to which chains are also allocated with a communication time for every pair."""

CONCURRENCY = 8
LOAD = 0.5  # of what the chains bear at the fixed concurrency, for the search
MODEL = ModelSpec(
    num_blocks=126,
    block_bytes=1.6e9,
    slot_bytes=4096 * 2 * 8 * 128 * 2,  # tokens, keys and values, heads, their size, bytes
    embedding_bytes=2e9,
    head_bytes=2e9,
)
SEED = 0


def swarm(num_servers: int, rng: np.random.Generator) -> list[ServerProfile]:
    """Servers with usual cards, half a second to four of communication, and about a tenth of a second per block."""
    memories = rng.choice([24e9, 40e9, 48e9, 80e9], num_servers, p=[0.4, 0.2, 0.25, 0.15])
    return [
        ServerProfile(
            peer=PeerId(f"s{number:05}"),
            memory_bytes=0.9 * float(memory),
            communication_s=float(rng.uniform(0.5, 4)),
            block_s=float(rng.lognormal(math.log(0.1), 0.5)),
        )
        for number, memory in enumerate(memories)
    ]


def cpu_s(work: Callable[[], object]) -> float:
    began_s = time.process_time()
    work()
    return time.process_time() - began_s


def measure(num_servers: int, options: argparse.Namespace) -> dict[str, float]:
    """CPU seconds by what was planned, and how many chains and values of c there were."""
    rng = np.random.default_rng(SEED)
    profiles = swarm(num_servers, rng)
    placement = greedy_placement(profiles, MODEL, concurrency=CONCURRENCY).placement
    chains = allocate(profiles, MODEL, placement)
    workload = Workload(arrival_rate=LOAD * total_rate(chains))
    figures: dict[str, float] = {"servers": num_servers, "chains": len(chains)}
    jobs: dict[str, Callable[[], object]] = {
        "placement": lambda: greedy_placement(profiles, MODEL, concurrency=CONCURRENCY),
        "allocation": lambda: allocate(profiles, MODEL, placement),
    }
    if num_servers <= MOST_PAIRS:
        times = iter(rng.uniform(0.5, 4, num_servers**2).tolist())
        pair_s = {(before.peer, after.peer): next(times) for before, after in product(profiles, repeat=2)}
        jobs["pairs"] = lambda: allocate(profiles, MODEL, placement, pair_s=pair_s)
    if num_servers <= MOST_SEARCHED:
        jobs["search"] = lambda: choose_concurrency(profiles, MODEL, workload)
        jobs["whole"] = lambda: plan(profiles, MODEL, workload)
        figures["candidates"] = len(choose_concurrency(profiles, MODEL, workload).candidates)
    for name, job in jobs.items():
        figures[name] = statistics.median(cpu_s(job) for _ in range(options.rounds))
    figures["both"] = figures["placement"] + figures["allocation"]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--servers", type=int, nargs="+", default=NUM_SERVERS)
    parser.add_argument("--output", type=Path, default=PROJECT / "benchmarks" / "results" / "planning.json")
    options = parser.parse_args()
    figures = [measure(num_servers, options) for num_servers in options.servers]
    about = circumstances(
        "planning",
        "numpy",
        model=f"{MODEL.num_blocks} blocks of {MODEL.block_bytes / 1e9:.1f} GB, concurrency {CONCURRENCY}",
        seed=SEED,
        rounds=options.rounds,
    )
    print(section(keep(options.output, about, figures)))


if __name__ == "__main__":
    main()
