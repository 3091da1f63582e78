"""Linear layers of float32 on the CPU by torch's library and by numpy's, by rows: why `models/linear.py` is there.

    python benchmarks/linear.py [--rounds N] [--output FILE]

All layers of several blocks of the bundled model's shape, so that weights come from memory and not from a cache, and
its head. The two take turns.
"""

import argparse
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from chainserve.runtime.cores import free_idle_cores

free_idle_cores()

import tables
import torch
from circumstances import PROJECT, circumstances, keep
from torch import nn

from chainserve.models.linear import speed_up

HIDDEN, KEYS, INNER, VOCAB = 576, 192, 1536, 49152
NUM_BLOCKS = 8
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 512)


def layers() -> dict[str, list[nn.Linear]]:
    """Those of the blocks, and the head."""
    shapes = [(HIDDEN, HIDDEN), (HIDDEN, KEYS), (HIDDEN, KEYS), (HIDDEN, HIDDEN), (HIDDEN, INNER), (HIDDEN, INNER)]
    shapes.append((INNER, HIDDEN))
    return {
        f"{NUM_BLOCKS} blocks": [nn.Linear(*shape, bias=False) for shape in shapes * NUM_BLOCKS],
        "head": [nn.Linear(HIDDEN, VOCAB, bias=False)],
    }


def seconds(modules: Iterable[nn.Linear], inputs: dict[int, torch.Tensor]) -> float:
    began = time.perf_counter()
    for module in modules:
        module(inputs[module.in_features])
    return time.perf_counter() - began


@torch.inference_mode()
def measure(rounds: int) -> dict[str, Any]:
    """Milliseconds: part, library, rows."""
    figures: dict[str, Any] = {}
    for part, modules in layers().items():
        quick = [nn.Linear(1, 1, bias=False) for _ in modules]
        for mine, module in zip(quick, modules, strict=True):
            mine.weight, mine.in_features, mine.out_features = module.weight, module.in_features, module.out_features
        speed_up(nn.ModuleList(quick))
        taken: dict[str, dict[int, list[float]]] = {"torch": {}, "numpy": {}}
        for rows in ROWS:
            inputs = {width: torch.randn(rows, width) for width in (HIDDEN, INNER)}
            for round_ in range(rounds + 1):
                for name, these in (("torch", modules), ("numpy", quick)):
                    took = seconds(these, inputs)
                    if round_:
                        taken[name].setdefault(rows, []).append(took)
        figures[part] = {
            name: {rows: 1e3 * statistics.median(times) for rows, times in by_rows.items()}
            for name, by_rows in taken.items()
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=PROJECT / "benchmarks" / "results" / "linear.json")
    options = parser.parse_args()
    about = circumstances("linear", "torch", "numpy", rounds=options.rounds, threads=torch.get_num_threads())
    print(tables.linear(keep(options.output, about, measure(options.rounds))))


if __name__ == "__main__":
    main()
