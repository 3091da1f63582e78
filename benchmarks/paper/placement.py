"""GBP-CR against random placements: service rate against servers used, and what GCA makes of both (Alg. 1)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from paper.plots import figure
from paper.settings import ARRIVAL_RATE, BLOOM, CONCURRENCY, SHARE_HIGH, Swarm, World, bloom_swarm
from paper.systems import finite
from sections.table import table

from chainserve.planning.allocation import allocate
from chainserve.planning.baselines.simple import random_placement
from chainserve.planning.bounds import response_time_bounds
from chainserve.planning.placement import blocks_that_fit, greedy_placement
from chainserve.planning.values import ModelSpec, Placement, ServerProfile, total_rate

NUM_RANDOM = 100
SHARES = {"homogeneous": 0.0, f"eta = {SHARE_HIGH}": SHARE_HIGH}


def measure(world: World, num_runs: int) -> dict[str, Any]:
    """Per share of high servers the means over swarms of GBP-CR and of the best, median and worst order."""
    return {name: _measure(world, num_runs, share_high) for name, share_high in SHARES.items()}


def _measure(world: World, num_runs: int, share_high: float) -> dict[str, Any]:
    spec = BLOOM.spec
    rates: list[list[list[float]]] = []  # of each run, order and number of servers; GBP-CR's order is the first
    after: list[list[tuple[float, float]]] = []  # of each run and placement; GBP-CR's is the first
    for seed in range(num_runs):
        rng = np.random.default_rng(seed)
        swarm = bloom_swarm(world, rng, share_high=share_high)
        orders = [rng.permutation(len(swarm.profiles)).tolist() for _ in range(NUM_RANDOM)]
        by_order = [[swarm.profiles[index] for index in order] for order in orders]
        rates.append([_rates(order, spec) for order in (_by_amortized_time(swarm), *by_order)])
        greedy = greedy_placement(swarm.profiles, spec, concurrency=CONCURRENCY)
        assert np.isclose(rates[-1][0][-1], total_rate(greedy.chains))  # the order alone makes the difference
        randomly = (random_placement(swarm.profiles, spec, concurrency=CONCURRENCY, rng=rng) for _ in range(NUM_RANDOM))
        after.append([_after_gca(swarm, placement) for placement in (greedy.placement, *randomly)])
    disjoint, (rate, lower_s) = np.array(rates), np.moveaxis(np.array(after), 2, 0)
    return {
        "disjoint_rate_by_servers": {name: values.tolist() for name, values in _means(disjoint).items()},
        "rate_after_gca": {name: finite(float(value)) for name, value in _means(rate).items()},
        "lower_bound_s": {name: finite(-float(value)) for name, value in _means(-lower_s).items()},
        "share_of_random_as_good_disjoint": _share_as_good(disjoint[:, :, -1]),
        "share_of_random_as_good_bound": _share_as_good(-lower_s),
    }


def _means(values: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Over the runs (first axis): GBP-CR (the first of the second axis), and the best, median and worst of the rest."""
    others = values[:, 1:]
    return {
        "GBP-CR": values[:, 0].mean(axis=0),
        "best": others.max(axis=1).mean(axis=0),
        "median": np.median(others, axis=1).mean(axis=0),
        "worst": others.min(axis=1).mean(axis=0),
    }


def _share_as_good(values: NDArray[np.float64]) -> float:
    """How many of the random ones reach GBP-CR's value, but for rounding."""
    return float(np.mean(values[:, 1:] >= values[:, :1] - 1e-9 * abs(values[:, :1])))


def _by_amortized_time(swarm: Swarm) -> list[ServerProfile]:
    """The order of Alg. 1 (Eq. 8)."""

    def amortized_s(profile: ServerProfile) -> float:
        num_blocks = blocks_that_fit(profile, swarm.served.spec, concurrency=CONCURRENCY)
        return profile.span_s(num_blocks) / num_blocks

    return sorted(swarm.profiles, key=lambda profile: (amortized_s(profile), profile.peer))


def _rates(order: Sequence[ServerProfile], spec: ModelSpec) -> list[float]:
    """Total rate of the disjoint chains after each server, in groups that cover the model one after the other."""
    rates, total, cursor, service_s = [], 0.0, 0, 0.0
    for profile in order:
        num_blocks = min(blocks_that_fit(profile, spec, concurrency=CONCURRENCY), spec.num_blocks - cursor)
        service_s += profile.span_s(num_blocks)
        cursor += num_blocks
        if cursor == spec.num_blocks:
            total += CONCURRENCY / service_s
            cursor, service_s = 0, 0.0
        rates.append(total)
    return rates


def _after_gca(swarm: Swarm, placement: Placement) -> tuple[float, float]:
    """Total rate, and the lower bound on the mean response time."""
    chains = allocate(swarm.profiles, swarm.served.spec, placement)
    rates, capacities = [chain.rate for chain in chains], [chain.capacity for chain in chains]
    return total_rate(chains), response_time_bounds(rates, capacities, arrival_rate=ARRIVAL_RATE).lower_s


def plot(figures: dict[str, Any]) -> Figure:
    drawn, axes = figure(len(figures))
    for ax, (name, row) in zip(axes, figures.items(), strict=True):
        curves = row["disjoint_rate_by_servers"]
        servers = range(1, len(curves["GBP-CR"]) + 1)
        ax.fill_between(
            servers, curves["worst"], curves["best"], step="post", alpha=0.25, label="random: worst to best"
        )
        ax.step(servers, curves["median"], where="post", label="random: median")
        ax.step(servers, curves["GBP-CR"], where="post", label="GBP-CR")
        ax.set(title=name, xlabel="servers placed", ylabel="rate of disjoint chains, requests/s")
        ax.legend()
    return drawn


def describe(figures: dict[str, Any]) -> str:
    rows = []
    for name, row in figures.items():
        for label, key in (
            ("rate of disjoint chains, requests/s", None),
            ("rate after GCA, requests/s", "rate_after_gca"),
            ("lower bound on the mean response time after GCA, s", "lower_bound_s"),
        ):
            curves = row["disjoint_rate_by_servers"]
            cells = row[key] if key else {who: curve[-1] for who, curve in curves.items()}
            shares = {None: "share_of_random_as_good_disjoint", "lower_bound_s": "share_of_random_as_good_bound"}
            share = f"{100 * row[shares[key]]:.0f} %" if key in shares else ""
            texts = ["unstable" if cells[who] is None else f"{cells[who]:.3f}" for who in curves]
            rows.append([name, label, *texts, share])
    return table(["swarm", "", "GBP-CR", "best of 100", "median", "worst", "random as good or better"], rows)
