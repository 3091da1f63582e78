"""JFFC against other policies of dispatch, over load, and against its bounds (Alg. 3, Thm. 4)."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from paper.plots import figure
from paper.settings import BLOOM, CONCURRENCY, World, bloom_swarm
from paper.systems import WARM_UP, on_chains, requests_of
from sections.table import table

from chainserve.planning.allocation import allocate
from chainserve.planning.bounds import response_time_bounds
from chainserve.planning.dispatch import (
    JoinFastestFree,
    JoinIdle,
    JoinPatiently,
    JoinShortestQueue,
    Policy,
    ShortestExpectedDelay,
)
from chainserve.planning.placement import greedy_placement
from chainserve.planning.values import total_rate

LOADS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
NUM_REQUESTS = 10_000
BOUNDS = ("lower bound", "upper bound")
POLICIES = ("JFFC", "SED", "SA-JSQ", "JSQ", "JIQ")
BEYOND = "patient"


def measure(world: World, num_runs: int) -> dict[str, Any]:
    """Mean response times over swarms, all policies with the same requests."""
    by_load: dict[str, dict[str, list[float]]] = {str(load): {} for load in LOADS}
    for seed in range(num_runs):
        swarm = bloom_swarm(world, np.random.default_rng(seed))
        placement = greedy_placement(swarm.profiles, BLOOM.spec, concurrency=CONCURRENCY).placement
        chains = allocate(swarm.profiles, BLOOM.spec, placement)
        for load in LOADS:
            rate = load * total_rate(chains)
            requests = requests_of(BLOOM, NUM_REQUESTS, rate=rate, rng=np.random.default_rng([seed, 1]))
            row = by_load[str(load)]
            for name, policy in _policies(seed, rate).items():
                response_s = on_chains(swarm, requests, chains, policy=policy).response_s
                row.setdefault(name, []).append(float(response_s[int(WARM_UP * NUM_REQUESTS) :].mean()))
            bounds = response_time_bounds(
                [chain.rate for chain in chains], [chain.capacity for chain in chains], arrival_rate=rate
            )
            row.setdefault("lower bound", []).append(bounds.lower_s)
            row.setdefault("upper bound", []).append(bounds.upper_s)
    return {
        load: {
            name: {"mean_s": float(np.mean(values)), "ratio_to_jffc": float(np.mean(np.divide(values, row["JFFC"])))}
            for name, values in row.items()
        }
        for load, row in by_load.items()
    }


def _policies(seed: int, rate: float) -> dict[str, Callable[[list[float], list[int]], Policy]]:
    return {
        "JFFC": JoinFastestFree,
        "JSQ": partial(JoinShortestQueue, rng=random.Random(seed)),
        "SA-JSQ": partial(JoinShortestQueue, rng=random.Random(seed), is_speed_aware=True),
        "JIQ": partial(JoinIdle, rng=random.Random(seed)),
        "SED": ShortestExpectedDelay,
        BEYOND: partial(JoinPatiently, arrival_rate=rate),
    }


def plot(figures: dict[str, Any]) -> Figure:
    drawn, axes = figure(2)
    for ax, loads in ((axes[0], LOADS), (axes[1], LOADS[:5])):
        for name in (*POLICIES, *BOUNDS):
            style = ":" if name in BOUNDS else "-"
            values = [figures[str(load)][name]["mean_s"] for load in loads]
            ax.plot(loads, values, style, marker=".", label=name)
        ax.set(xlabel="load", ylabel="mean response time, s")
        ax.legend()
    axes[0].set_yscale("log")
    axes[0].set_yticks([10, 20, 50, 100, 200], labels=["10", "20", "50", "100", "200"])
    axes[0].minorticks_off()
    axes[1].set_title("the same, up to 0.8")
    return drawn


def describe(figures: dict[str, Any]) -> str:
    names = (*POLICIES, *BOUNDS)
    rows = [[load, *(f"{row[name]['mean_s']:.2f}" for name in names)] for load, row in figures.items()]
    return table(["load", *names], rows)


def describe_beyond(figures: dict[str, Any]) -> str:
    """The patient variant as a share of JFFC."""
    row = [f"{100 * (figures[load][BEYOND]['ratio_to_jffc'] - 1):+.2f} %" for load in figures]
    sed = [f"{100 * (figures[load]['SED']['ratio_to_jffc'] - 1):+.2f} %" for load in figures]
    return table(["load", *figures], [["patient against JFFC", *row], ["SED against JFFC", *sed]])
