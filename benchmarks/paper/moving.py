"""Planning again as servers come and go, with and without a price on moving blocks."""

import statistics
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from paper.beyond import MODELS, card
from paper.plots import figure
from paper.settings import GB, World, make_swarm
from sections.table import table

from chainserve.errors import NoPlanError
from chainserve.planning.plan import moved_bytes, plan
from chainserve.planning.values import ServerProfile, Workload
from chainserve.types import PeerId

RUNS = 3
NUM_SERVERS, NUM_EVENTS = 10, 10
ARRIVAL_RATE = 0.1  # requests per second
MODEL = "70B, 4 bits"
PRICES = {"from scratch": None, "0": 0.0, "0.01": 0.01, "0.1": 0.1, "1": 1.0}
"""Seconds of mean response time per GB moved; from scratch: as if no server held anything."""


def measure(world: World, num_runs: int) -> dict[str, Any]:
    """GB that servers which hold blocks load again per event, and the predicted response time after it."""
    rows: dict[str, dict[str, list[float]]] = {name: {"moved_gb": [], "response_s": []} for name in PRICES}
    for seed in range(min(num_runs, RUNS)):
        history = _history(world, np.random.default_rng(seed))
        for name, price in PRICES.items():
            moved_gb, response_s = _follow(history, price)
            rows[name]["moved_gb"] += moved_gb
            rows[name]["response_s"] += response_s
    return {name: {figure: statistics.fmean(values) for figure, values in row.items()} for name, row in rows.items()}


def _history(world: World, rng: np.random.Generator) -> list[list[ServerProfile]]:
    """Who is there at first and after every event: a join or a leave, with even chances."""
    served = MODELS[MODEL]
    kinds = [card(rng) for _ in range(NUM_SERVERS + NUM_EVENTS)]
    everyone = [
        replace(profile, peer=PeerId(f"s{number:02}"))
        for number, profile in enumerate(make_swarm(world, served, kinds=kinds, rng=rng).profiles)
    ]
    live, waiting = everyone[:NUM_SERVERS], everyone[NUM_SERVERS:]
    history = [live]
    for joiner in waiting:
        leaver = live[rng.integers(len(live))]
        live = [*live, joiner] if rng.random() < 0.5 else [server for server in live if server is not leaver]
        history.append(live)
    return history


def _follow(history: list[list[ServerProfile]], price: float | None) -> tuple[list[float], list[float]]:
    served, workload = MODELS[MODEL].spec, Workload(arrival_rate=ARRIVAL_RATE)
    before = plan(history[0], served, workload).placement
    moved_gb, response_s = [], []
    for live in history[1:]:
        try:
            if price is None:
                now = plan(live, served, workload)
            else:
                now = plan(live, served, workload, before=before, s_per_byte=price / GB)
        except NoPlanError:
            continue  # nothing to load until somebody joins
        moved_gb.append(moved_bytes(before, now.placement, served) / GB)
        response_s.append(now.bounds.lower_s)
        before = now.placement
    return moved_gb, response_s


def plot(figures: dict[str, Any]) -> Figure:
    drawn, (ax,) = figure(1)
    for name, row in figures.items():
        ax.plot(row["moved_gb"], row["response_s"], "o", label=name)
    ax.set(xlabel="GB loaded again per event", ylabel="predicted response time, s", ylim=(0, None))
    ax.legend(title="seconds per GB")
    return drawn


def describe(figures: dict[str, Any]) -> str:
    rows = [[name, f"{row['moved_gb']:.2f}", f"{row['response_s']:.2f}"] for name, row in figures.items()]
    return table(["price, s per GB", "GB loaded again per event", "predicted response time, s"], rows)
