"""One packed forward of decode steps through a Llama-2-7B-shaped model, by number of sessions and cached tokens.

    python benchmarks/gpu/forward.py [--device cuda] [--sessions 1,2,4,8,16,32,64] [--cached 128,1024] [--output FILE]

With CUDA graphs and without, beside the time in which the device reads the weights once. No network, no checkpoint.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from circumstances import circumstances, keep
from roofline import name_of, read_bytes_per_s
from transformers import LlamaConfig

from chainserve.models.cache import KVCache
from chainserve.models.graphs import Graphs
from chainserve.models.load import bytes_by_block
from chainserve.models.measure import with_random_weights
from chainserve.models.runner import Runner
from chainserve.models.skeleton import build_skeleton
from chainserve.protocol.messages import Step
from chainserve.types import SessionId, Span

SIZES = {"hidden_size": 4096, "intermediate_size": 11_008, "num_attention_heads": 32, "vocab_size": 32_000}


def forward_s(runner: Runner, sessions: list[SessionId], cached: int, *, rounds: int) -> float:
    """Median seconds of a decode step of these sessions, each with so many tokens cached."""
    steps = [Step(session, 0, cached, 1, 1) for session in sessions]
    hidden = torch.randn(len(steps), SIZES["hidden_size"]).to(runner.dtype).to(runner.device)
    times = []
    for _ in range(rounds + 3):
        began = time.perf_counter()
        runner.forward(hidden, steps, runner.span)[0, 0].item()
        times.append(time.perf_counter() - began)
    return statistics.median(times[3:])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    device, dtype = torch.device(options.device), torch.bfloat16
    config = LlamaConfig(**SIZES, num_hidden_layers=options.num_blocks, num_key_value_heads=options.kv_heads)
    span = Span(0, options.num_blocks)
    bytes_per_s = read_bytes_per_s(device)
    weight_bytes = sum(bytes_by_block(config, dtype))
    roofline_s = weight_bytes / bytes_per_s
    print(f"reads {bytes_per_s / 1e12:.2f} TB/s; the weights in {1e3 * roofline_s:.2f} ms", flush=True)
    model = with_random_weights(build_skeleton(config, span), dtype=dtype, device=device)
    sessions = [SessionId(number.to_bytes(16, "big")) for number in range(max(options.sessions))]
    figures: dict[str, Any] = {"read_bytes_per_s": bytes_per_s, "roofline_s": roofline_s}
    for cached in options.cached:
        runner = Runner(model, span, KVCache(span, budget_tokens=(cached + 1) * len(sessions)))
        for session in sessions:
            runner.cache.reserve(session, span, num_lanes=1, max_tokens=cached + 1)
            first = torch.randn(cached, SIZES["hidden_size"]).to(dtype).to(device)
            runner.forward(first, [Step(session, 0, 0, cached, 1)], span)
        for name in ("graphs", "no graphs"):
            runner._graphs = Graphs(runner._run) if name == "graphs" else None
            began = time.perf_counter()
            runner.warm_up()
            print(f"ready for small batches after {time.perf_counter() - began:.1f} s", flush=True)
            rows = figures.setdefault(f"{cached} cached", {}).setdefault(name, {})
            for num in options.sessions:
                rows[num] = forward_s(runner, sessions[:num], cached, rounds=options.rounds)
                print(
                    f"{cached:5} cached, {name:9} {num:3} sessions {1e3 * rows[num]:7.2f} ms, "
                    f"{roofline_s / rows[num]:.2f} of the roofline",
                    flush=True,
                )
            if runner._graphs is not None and runner._graphs.failure:
                print("no graphs:", runner._graphs.failure, flush=True)
        del runner
    return figures


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--num-blocks", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=32)
    parser.add_argument("--sessions", type=numbers, default="1,2,4,8,16,32,64")
    parser.add_argument("--cached", type=numbers, default="128,1024")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    figures = measure(options)
    about = circumstances(
        "gpu/forward",
        "torch",
        device=name_of(options.device),
        rounds=options.rounds,
    )
    keep(options.output or Path(__file__).parent.parent / "results" / "gpu" / "forward.json", about, figures)


if __name__ == "__main__":
    main()
