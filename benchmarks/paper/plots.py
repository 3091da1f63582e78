"""One look for all plots."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.rcParams.update({
    "font.size": 8,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.fontsize": 7,
    "legend.framealpha": 0.7,
    "lines.linewidth": 1.3,
    "svg.hashsalt": "chainserve",  # equal figures give equal files
    "svg.fonttype": "none",
})  # fmt: skip


def figure(num_columns: int, *, num_rows: int = 1) -> tuple[Figure, Sequence[Axes]]:
    """A figure and its axes, row by row."""
    drawn = Figure(figsize=(4.2 * num_columns, 3.1 * num_rows), layout="constrained")
    return drawn, drawn.subplots(num_rows, num_columns, squeeze=False).ravel().tolist()


def save(drawn: Figure, path: Path) -> None:
    drawn.savefig(path, metadata={"Date": None, "Creator": None} if path.suffix == ".svg" else None, dpi=110)
