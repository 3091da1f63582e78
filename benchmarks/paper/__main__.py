"""The results of Sun et al. 2026 again: figures as JSON, plots, and the tables of docs/paper.md.

    python benchmarks/paper [--only NAME ...] [--runs N] [--data FOLDER] [--quick]

The folder holds the RIPE Atlas table and the Azure trace; made-up data takes the place of what is not there, and the
results say so. All of it takes about a quarter of an hour of one core. `--quick` makes one run of each into a temporary
folder.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from circumstances import PROJECT, circumstances, keep
from paper import allocation, beyond, concurrency, dispatch, moving, network, overall, page, placement, trace
from paper.plots import save
from paper.settings import World

RESULTS = {
    "network": network,
    "placement": placement,
    "allocation": allocation,
    "dispatch": dispatch,
    "concurrency": concurrency,
    "overall": overall,
    "trace": trace,
    "beyond": beyond,
    "moving": moving,
}
SECTIONS = {
    **{name: (name, module.describe) for name, module in RESULTS.items()},
    "patience": ("dispatch", dispatch.describe_beyond),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=RESULTS, default=list(RESULTS))
    parser.add_argument("--runs", type=int, default=20, help="Monte Carlo runs, where a result does not take fewer")
    parser.add_argument("--data", type=Path, default=PROJECT.parent / "shared" / "data")
    parser.add_argument("--quick", action="store_true", help="one run of each, nothing kept")
    options = parser.parse_args()
    world = World.read(options.data)
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            run(options.only, world, num_runs=1, results=Path(folder), plots=Path(folder))
        return
    results = PROJECT / "benchmarks" / "results" / "paper"
    run(options.only, world, num_runs=options.runs, results=results, plots=PROJECT / "docs" / "paper")
    page.fill(SECTIONS, results)


def run(names: list[str], world: World, *, num_runs: int, results: Path, plots: Path) -> None:
    """Measure, write and draw."""
    plots.mkdir(parents=True, exist_ok=True)
    for name in names:
        began_s = time.monotonic()
        figures = RESULTS[name].measure(world, num_runs)
        about = circumstances(f"paper: {name}", "numpy", "scipy", seed=0, runs=num_runs, sources=dict(world.sources))
        keep(results / f"{name}.json", about, figures)
        save(RESULTS[name].plot(figures), plots / f"{name}.svg")
        print(f"{name}: {time.monotonic() - began_s:.0f} s", flush=True)


if __name__ == "__main__":
    main()
