"""Mean response time over c, with the surrogate and both bounds, and the c that each way chooses over lambda."""

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from paper.plots import figure
from paper.settings import ARRIVAL_RATE, BLOOM, Swarm, World, bloom_swarm
from paper.systems import WARM_UP, finite, on_chains, requests_of, tuned
from sections.table import table

from chainserve.planning.allocation import allocate
from chainserve.planning.placement import greedy_placement
from chainserve.planning.tuning import Candidate, Method
from chainserve.planning.values import total_rate

METHODS: tuple[Method, ...] = ("surrogate", "lower", "upper")
RATES = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
TRIED = (*range(1, 21), *range(22, 41, 2))  # values of c simulated
NUM_REQUESTS = 3000
NUM_CURVES = 5  # swarms whose best c is looked for by simulation: it takes 30 times as long as the methods


def measure(world: World, num_runs: int) -> dict[str, Any]:
    """The curves of one swarm, and over several swarms the c chosen and what is lost by it."""
    swarm = bloom_swarm(world, np.random.default_rng(0))
    candidates = tuned(swarm, ARRIVAL_RATE, exhaustive=True, place_all=False).candidates
    simulated = [
        {concurrency: _simulated_s(swarm, concurrency, ARRIVAL_RATE, seed=seed) for concurrency in TRIED}
        for seed in range(num_runs)
    ]
    curve = []
    for candidate in candidates[: max(TRIED)]:
        values = [run.get(candidate.concurrency, math.nan) for run in simulated]
        curve.append({
            "c": candidate.concurrency,
            "simulated_s": finite(float(np.mean(values))),
            "lower_s": finite(candidate.lower_s),
            "upper_s": finite(candidate.upper_s),
            "surrogate": finite(candidate.surrogate),
        })  # fmt: skip
    return {"curve": curve, "chosen_on_curve": _chosen(candidates), "by_rate": _by_rate(world, num_runs)}


def _by_rate(world: World, num_runs: int) -> dict[str, Any]:
    by_rate = {}
    for rate in RATES:
        chosen: dict[str, list[int]] = {}
        loss: dict[str, list[float]] = {}
        best = []
        for seed in range(num_runs):
            swarm = bloom_swarm(world, np.random.default_rng(seed))
            choices = _chosen(tuned(swarm, rate, exhaustive=True, place_all=False).candidates)
            for method, concurrency in choices.items():
                chosen.setdefault(method, []).append(concurrency)
            if seed >= NUM_CURVES:
                continue
            values = {c: _simulated_s(swarm, c, rate, seed=seed) for c in {*TRIED, *choices.values()}}
            best.append(min(values, key=lambda c: (values[c], c)))
            for method, concurrency in choices.items():
                loss.setdefault(method, []).append(values[concurrency] / values[best[-1]] - 1)
        by_rate[str(rate)] = {
            "chosen": {method: float(np.mean(values)) for method, values in chosen.items()},
            "simulated_best": float(np.mean(best)),
            "loss": {method: finite(float(np.mean(values))) for method, values in loss.items()},
        }
    return by_rate


def _chosen(candidates: tuple[Candidate, ...]) -> dict[str, int]:
    """What `choose_concurrency` takes by each method, out of one search."""
    attributes = {"surrogate": "surrogate", "lower": "lower_s", "upper": "upper_s"}
    return {
        method: min(candidates, key=lambda candidate: (getattr(candidate, attributes[method]), candidate.concurrency))
        .concurrency
        for method in METHODS
    }  # fmt: skip


def _simulated_s(swarm: Swarm, concurrency: int, rate: float, *, seed: int) -> float:
    """Mean response time under JFFC for this c; infinite where the chains do not bear the rate."""
    placement = greedy_placement(
        swarm.profiles, BLOOM.spec, concurrency=concurrency, required_rate=rate / (0.7 * concurrency), place_all=False
    ).placement
    chains = allocate(swarm.profiles, BLOOM.spec, placement)
    if total_rate(chains) <= rate:
        return math.inf
    requests = requests_of(BLOOM, NUM_REQUESTS, rate=rate, rng=np.random.default_rng([seed, 1]))
    return float(on_chains(swarm, requests, chains).response_s[int(WARM_UP * NUM_REQUESTS) :].mean())


def plot(figures: dict[str, Any]) -> Figure:
    drawn, axes = figure(2)
    curve = figures["curve"]
    for name, label, style in (
        ("lower_s", "lower bound", ":"), ("upper_s", "upper bound", ":"), ("simulated_s", "simulated", "o-")
    ):  # fmt: skip
        points = [(row["c"], row[name]) for row in curve if row[name] is not None]
        axes[0].plot(*zip(*points, strict=True), style, markersize=3, label=label)
    axes[0].set(xlabel="c", ylabel="mean response time, s", title=f"lambda = {ARRIVAL_RATE}")
    right = axes[0].twinx()
    points = [(row["c"], row["surrogate"]) for row in curve if row["surrogate"] is not None]
    right.plot(*zip(*points, strict=True), "--", color="grey", linewidth=0.8)
    right.set_ylabel("surrogate c K(c) (dashed)")
    right.grid(visible=False)
    axes[0].legend()
    by_rate = figures["by_rate"]
    for method in METHODS:
        axes[1].plot(RATES, [by_rate[str(rate)]["chosen"][method] for rate in RATES], marker=".", label=method)
    axes[1].plot(RATES, [by_rate[str(rate)]["simulated_best"] for rate in RATES], "k--", label="best simulated")
    axes[1].set(xlabel="lambda, requests/s", ylabel="c chosen", title="c* over lambda")
    axes[1].legend()
    return drawn


def describe(figures: dict[str, Any]) -> str:
    rows = []
    for rate, row in figures["by_rate"].items():
        losses = ["unstable" if value is None else f"{100 * value:.1f} %" for value in row["loss"].values()]
        rows.append(
            [rate, *(f"{value:.1f}" for value in row["chosen"].values()), f"{row['simulated_best']:.1f}", *losses]
        )
    head = ["lambda", *(f"c by {method}" for method in METHODS), "best simulated c"]
    return table([*head, *(f"loss by {method}" for method in METHODS)], rows)
