"""The round trips between all measured places, as the paper reads the table."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from paper.plots import figure
from paper.settings import World
from sections.table import table

from chainserve.simulator.networks import round_trips_s

PAPER = {"places": "320", "least": "10", "median": "24", "most": "57"}
BUCKETS_MS = range(10, 66, 2)


def measure(world: World, num_runs: int) -> dict[str, Any]:
    """Milliseconds between all pairs; the runs play no part."""
    trips_ms = 1000 * round_trips_s(world.anchors)[np.triu_indices(len(world.anchors), k=1)]
    return {
        "num_places": len(world.anchors),
        "num_pairs": len(trips_ms),
        "least_ms": float(trips_ms.min()),
        "median_ms": float(np.median(trips_ms)),
        "most_ms": float(trips_ms.max()),
        "num_above_57_5_ms": int(np.count_nonzero(trips_ms > 57.5)),
        "histogram": np.histogram(trips_ms, bins=np.array(BUCKETS_MS))[0].tolist(),
    }


def plot(figures: dict[str, Any]) -> Figure:
    drawn, (ax,) = figure(1)
    ax.bar(BUCKETS_MS[:-1], figures["histogram"], width=BUCKETS_MS.step, align="edge")
    ax.set(xlabel="round trip, ms", ylabel="pairs of places")
    return drawn


def describe(figures: dict[str, Any]) -> str:
    ours = [str(figures["num_places"]), *(f"{figures[f'{name}_ms']:.1f}" for name in ("least", "median", "most"))]
    return (
        table(["round trips, ms", *PAPER], [["the paper", *PAPER.values()], ["ours", *ours]])
        + f"\n\n{figures['num_above_57_5_ms']} of {figures['num_pairs']} pairs lie above 57.5 ms."
    )
