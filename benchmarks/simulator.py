"""Requests per second that the simulator plays at the paper's level, against the number of chains and the policy.

    python benchmarks/simulator.py [--rounds N] [--requests N] [--output FILE]

Chains of capacity 5 whose service times grow from 1 s by 0.1 s, Poisson arrivals at a load of 0.9, exponential sizes.
Counted is the process's own CPU time, so that neighbours on the machine matter less; it has one thread. Figures are
medians over rounds.
"""

import argparse
import random
import statistics
import time
from pathlib import Path

import numpy as np
from circumstances import PROJECT, circumstances, keep
from sections.simulator import section

from chainserve.planning.dispatch import (
    JoinFastestFree,
    JoinIdle,
    JoinShortestQueue,
    Policy,
    RandomChain,
    ShortestExpectedDelay,
)
from chainserve.planning.values import PlannedChain, total_rate
from chainserve.simulator.chains import ChainScheduler
from chainserve.simulator.engine import run
from chainserve.simulator.times import by_size
from chainserve.simulator.workloads import paper_requests
from chainserve.types import Chain, Hop, PeerId, Span

NUM_CHAINS = (1, 3, 10, 30, 100)
CAPACITY = 5
LOAD = 0.9
SEED = 0


def policies(chains: list[PlannedChain]) -> dict[str, Policy]:
    """Every policy for these chains."""
    rates, capacities = [chain.rate for chain in chains], [chain.capacity for chain in chains]
    rng = random.Random(SEED)
    return {
        "JFFC": JoinFastestFree(rates, capacities),
        "JSQ": JoinShortestQueue(rates, capacities, rng=rng),
        "SA-JSQ": JoinShortestQueue(rates, capacities, rng=rng, is_speed_aware=True),
        "JIQ": JoinIdle(rates, capacities, rng=rng),
        "SED": ShortestExpectedDelay(rates, capacities),
        "random": RandomChain(rates, capacities, rng=rng),
    }


def measure(options: argparse.Namespace) -> dict[str, dict[int, float]]:
    """Requests per second by policy and number of chains."""
    speeds: dict[str, dict[int, list[float]]] = {}
    for _ in range(options.rounds):
        for num_chains in NUM_CHAINS:
            chains = [
                PlannedChain(Chain((Hop(PeerId(str(place)), Span(0, 1)),)), CAPACITY, 1 + place / 10)
                for place in range(num_chains)
            ]
            rng = np.random.default_rng(SEED)
            requests = paper_requests(options.requests, rate=LOAD * total_rate(chains), rng=rng)
            for name, policy in policies(chains).items():
                began_s = time.process_time()
                run(requests, ChainScheduler(policy, chains, by_size(requests, chains)))
                speed = len(requests) / (time.process_time() - began_s)
                speeds.setdefault(name, {}).setdefault(num_chains, []).append(speed)
    return {
        name: {num_chains: statistics.median(values) for num_chains, values in row.items()}
        for name, row in speeds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--output", type=Path, default=PROJECT / "benchmarks" / "results" / "simulator.json")
    options = parser.parse_args()
    about = circumstances("simulator", "numpy", seed=SEED, rounds=options.rounds, requests=options.requests)
    print(section(keep(options.output, about, {"requests_per_second": measure(options)})))


if __name__ == "__main__":
    main()
