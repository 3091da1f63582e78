"""The whole of it against PETALS and BPRR, over the number of servers, the share of fast ones, and the load."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from paper.plots import figure
from paper.settings import ARRIVAL_RATE, BLOOM, NUM_SERVERS, SHARE_HIGH, World, bloom_swarm
from paper.systems import SYSTEMS, requests_of, summary
from sections.table import table

NUMBERS = (10, 20, 30, 40)  # J
SHARES = (0.1, 0.2, 0.3, 0.4)  # eta
RATES = (0.1, 0.2, 0.4, 0.6, 0.8)
NUM_REQUESTS = 2000
SHOWN = tuple(name for name in SYSTEMS if name != "JFFC only")  # no server holds all of BLOOM-176B
FEW_RUNS = {"PETALS, no ban": 3}  # it tries again and again: as slow as all others together
DRAWN = tuple(name for name in SHOWN if name not in FEW_RUNS)
OURS, BASELINES = "GBP-CR + GCA + JFFC", ("PETALS", "BPRR")


def measure(world: World, num_runs: int) -> dict[str, Any]:
    """Mean response and waiting time of each system, and how many of its runs were unstable."""
    by_size = {
        f"{num_servers}, {share_high}": _measure(world, num_runs, num_servers, share_high, ARRIVAL_RATE)
        for num_servers in NUMBERS
        for share_high in SHARES
    }
    by_rate = {str(rate): _measure(world, num_runs, NUM_SERVERS, SHARE_HIGH, rate) for rate in RATES}
    return {"by_size": by_size, "by_rate": by_rate}


def _measure(world: World, num_runs: int, num_servers: int, share_high: float, rate: float) -> dict[str, Any]:
    row = {}
    for name in SHOWN:
        runs = []
        for seed in range(min(num_runs, FEW_RUNS.get(name, num_runs))):
            rng = np.random.default_rng(seed)
            swarm = bloom_swarm(world, rng, num_servers=num_servers, share_high=share_high)
            requests = requests_of(BLOOM, NUM_REQUESTS, rate=rate, rng=rng)
            runs.append(summary(SYSTEMS[name](swarm, requests, rate, seed)))
        row[name] = {
            "num_runs": len(runs),
            "num_without_way": sum(run is None for run in runs),
            "num_unstable": sum(run is not None and run["is_unstable"] for run in runs),
            **{f"{kind}_s": _mean(runs, kind) for kind in ("response", "waiting")},
        }
    return row


def _mean(runs: list[dict[str, Any] | None], kind: str) -> float | None:
    """Over the runs; None if one was unstable, whose mean only says how long it was watched."""
    values = [math.nan if run is None or run["is_unstable"] else run[kind]["mean"] for run in runs]
    mean = float(np.mean(values))
    return None if math.isnan(mean) else mean


def plot(figures: dict[str, Any]) -> Figure:
    drawn, axes = figure(3, num_rows=2)
    for ax, share_high in zip(axes, SHARES, strict=False):
        _lines(ax, NUMBERS, [figures["by_size"][f"{number}, {share_high}"] for number in NUMBERS])
        ax.set(title=f"eta = {share_high}", xlabel="servers J", ylabel="mean response time, s")
    _lines(axes[4], SHARES, [figures["by_size"][f"{NUM_SERVERS}, {share_high}"] for share_high in SHARES])
    axes[4].set(title=f"J = {NUM_SERVERS}", xlabel="share of fast servers eta", ylabel="mean response time, s")
    _lines(axes[5], RATES, list(figures["by_rate"].values()))
    axes[5].set(title=f"J = {NUM_SERVERS}, eta = {SHARE_HIGH}", xlabel="lambda, requests/s",
                ylabel="mean response time, s")  # fmt: skip
    return drawn


def _lines(ax: Any, places: tuple[float, ...], rows: list[dict[str, Any]]) -> None:
    for name in DRAWN:  # points that are not stable are left out
        values = [math.nan if row[name]["response_s"] is None else row[name]["response_s"] for row in rows]
        ax.plot(places, values, marker=".", label=name)
    ax.set_ylim(bottom=0)
    ax.set_xticks(places)
    ax.legend()


def describe(figures: dict[str, Any]) -> str:
    sizes = [[*key.split(", "), *_cells(row)] for key, row in figures["by_size"].items()]
    rates = [[rate, *_cells(row)] for rate, row in figures["by_rate"].items()]
    head = [*SHOWN, *(f"against {name}" for name in BASELINES)]
    gains = {
        name: [gain for row in figures["by_size"].values() if (gain := _gain(row, name)) is not None]
        for name in BASELINES
    }
    spans = "; ".join(
        f"{100 * min(values):.0f} % to {100 * max(values):.0f} % lower than {name} where that is stable"
        for name, values in gains.items()
    )
    return "\n\n".join([
        f"Mean response time in seconds, lambda = {ARRIVAL_RATE} requests/s. Over the table ours is {spans}.",
        table(["J", "eta", *head], sizes),
        f"The same over lambda, J = {NUM_SERVERS} and eta = {SHARE_HIGH}:",
        table(["lambda", *head], rates),
    ])  # fmt: skip


def _cells(row: dict[str, Any]) -> Iterator[str]:
    for name in SHOWN:
        cell = row[name]
        num_bad = cell["num_unstable"] + cell["num_without_way"]
        if num_bad:
            word = "unstable" if cell["num_unstable"] else "no placement"
            yield word if num_bad == cell["num_runs"] else f"{word} in {num_bad} of {cell['num_runs']}"
        else:
            yield f"{cell['response_s']:.1f}"
    for name in BASELINES:
        gain = _gain(row, name)
        yield "" if gain is None else f"{-100 * gain:+.0f} %"


def _gain(row: dict[str, Any], name: str) -> float | None:
    own_s, other_s = row[OURS]["response_s"], row[name]["response_s"]
    return None if own_s is None or other_s is None else 1 - own_s / other_s
