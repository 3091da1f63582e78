"""The Azure trace on nine servers with the shape of LLaMA-2-7B: the columns of the paper's table."""

from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from paper.plots import figure
from paper.settings import HIGH, LOW, Served, Swarm, World, llama, make_swarm
from paper.systems import SYSTEMS, System, jffc_only, summary, tuned
from sections.table import table

from chainserve.simulator.engine import Outcome
from chainserve.simulator.workloads import at_rate, part

NUM_REQUESTS, RATE = 1000, 2.57
KINDS = [HIGH] * 3 + [LOW] * 6
SLOT_TOKENS = (4096, 2076)  # the model's longest sequence; the trace's mean one
SHOWN = ("PETALS", "PETALS, no ban", "BPRR", "JFFC only", "GBP-CR + GCA + JFFC")
COLUMNS = (
    *(("response", name) for name in ("mean", "median", "p95", "p99")),
    *(("waiting", name) for name in ("mean", "median", "p95")),
    *(("service", name) for name in ("mean", "median", "p95")),
)
PAPER = {
    "PETALS": (31.4, 27.8, 68.5, 89.3, 24.2, 20.5, 61.3, 7.2, 5.8, 18.9),
    "BPRR": (19.8, 16.9, 44.2, 61.7, 12.6, 9.7, 37.1, 7.2, 5.9, 18.7),
    "JFFC only": (10.0, 8.5, 22.1, 29.6, 1.5, 0.1, 7.8, 8.5, 7.2, 20.3),
    "GBP-CR + GCA + JFFC": (7.3, 6.5, 15.2, 21.4, 0.6, 0.1, 4.8, 6.7, 5.7, 18.2),
}
MEASURED_SERVICE_S = PAPER["JFFC only"][7]
NUM_HALVINGS = 12


def measure(world: World, num_runs: int) -> dict[str, Any]:
    """Means over swarms per slot length: with times from the hardware, and with servers as slow as measured."""
    cases = {}
    for slot_tokens in SLOT_TOKENS:
        served = llama(slot_tokens)
        cases[f"slots of {slot_tokens} tokens, times from the hardware"] = _measure(world, num_runs, served)
    for slot_tokens in SLOT_TOKENS:
        served = _as_slow_as_measured(world, num_runs, llama(slot_tokens))
        cases[f"slots of {slot_tokens} tokens, blocks {served.slowness:.1f} times as slow"] = _measure(
            world, num_runs, served
        )
    return cases


def _measure(world: World, num_runs: int, served: Served) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name in SHOWN:
        runs = [summary(_run(world, served, SYSTEMS[name], seed), warm_up=0.0) for seed in range(num_runs)]
        rows[name] = [
            None if None in runs else float(np.mean([run[kind][name_] for run in runs if run is not None]))
            for kind, name_ in COLUMNS
        ]
    chosen = [tuned(_swarm(world, served, seed), RATE).chosen for seed in range(num_runs)]
    return {"rows": rows, "c": float(np.mean([choice.concurrency for choice in chosen if choice is not None]))}


def _swarm(world: World, served: Served, seed: int) -> Swarm:
    return make_swarm(world, served, kinds=KINDS, rng=np.random.default_rng(seed))


def _run(world: World, served: Served, system: System, seed: int) -> Outcome | None:
    """The trace's first requests; swarms differ with the seed, requests do not."""
    requests = at_rate(part(world.trace, start=0, num_requests=NUM_REQUESTS), RATE)
    return system(_swarm(world, served, seed), requests, RATE, seed)


def _as_slow_as_measured(world: World, num_runs: int, served: Served) -> Served:
    """So much slower in all blocks that requests on whole models take on average what the paper measured for them."""

    def service_s(slowness: float) -> float:
        outcomes = [_run(world, replace(served, slowness=slowness), jffc_only, seed) for seed in range(num_runs)]
        return float(np.mean([outcome.service_s.mean() for outcome in outcomes if outcome is not None]))

    low, high = 1.0, 100.0
    for _ in range(NUM_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if service_s(middle) < MEASURED_SERVICE_S else (low, middle)
    return replace(served, slowness=(low + high) / 2)


def plot(figures: dict[str, Any]) -> Figure:
    cases = {"the paper": PAPER, **{name: case["rows"] for name, case in figures.items()}}
    drawn, axes = figure(3, num_rows=2)
    axes[-1].set_visible(False)
    for ax, (title, rows) in zip(axes, cases.items(), strict=False):
        for place, row in enumerate(rows.values()):
            if row[0] is not None:
                ax.bar(place, row[7], color="tab:blue", label="service" if place == 0 else None)
                ax.bar(place, row[4], bottom=row[7], color="tab:orange", label="waiting" if place == 0 else None)
                ax.annotate(f"{row[0]:.1f}", (place, row[0]), ha="center", va="bottom")
        ax.set_xticks(range(len(rows)), [name.replace(" + ", "\n+ ") for name in rows], rotation=30)
        ax.set_title(title.replace(", ", ",\n"))
        ax.set_ylabel("mean response time, s")
        ax.grid(visible=False, axis="x")
        ax.margins(y=0.12)
    axes[0].legend()
    return drawn


def describe(figures: dict[str, Any]) -> str:
    head = ["", *(f"{kind} {name.replace('p', 'P')}" for kind, name in COLUMNS)]
    parts = ["The paper's figures, measured on real servers:", table(head, _lines(PAPER))]
    for name, case in figures.items():
        parts += [f"Ours, {name}; mean c chosen {case['c']:.1f}:", table(head, _lines(case["rows"]))]
    return "\n\n".join(parts)


def _lines(rows: dict[str, Any]) -> list[list[str]]:
    return [
        [name, *("no placement" if value is None else f"{value:.1f}" for value in row)] for name, row in rows.items()
    ]
