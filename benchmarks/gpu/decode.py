"""Decoding on one GPU through one server and through three, beside the memory's roofline, and by batch size.

    python benchmarks/gpu/make_model.py FOLDER
    python benchmarks/gpu/decode.py FOLDER [--device cuda] [--sessions 1,2,4,8,16,32,64] [--output FILE]

The roofline: bytes of all weights but the embedding, over the bytes per second that the device reads, measured here.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import uvloop
from circumstances import circumstances, keep, measured_now
from roofline import name_of, read_bytes_per_s
from transformers import AutoConfig

from chainserve.models.load import bytes_by_block
from chainserve_client import AsyncClient
from chainserve_server.local import LocalSwarm

NUM_TOKENS = 64
PROMPT_TOKENS = 32


async def speed(client: AsyncClient, num_sessions: int) -> float:
    """Tokens per second of all sessions while all decode."""

    async def one(number: int) -> tuple[float, float]:
        prompt = [(7 * number + 3 * at) % 30_000 for at in range(PROMPT_TOKENS)]
        stream = client.stream(prompt, max_new_tokens=NUM_TOKENS, ignore_end=True, max_drafts=0)
        times = [time.perf_counter() async for _ in stream]
        return times[0], times[-1]

    spans = await asyncio.gather(*map(one, range(num_sessions)))
    return num_sessions * (NUM_TOKENS - 1) / (max(end for _, end in spans) - min(first for first, _ in spans))


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(options.device)
    config = AutoConfig.from_pretrained(options.folder)
    dtype = torch.bfloat16
    num_blocks = config.num_hidden_layers
    weight_bytes = sum(bytes_by_block(config, dtype)) + config.vocab_size * config.hidden_size * dtype.itemsize
    bytes_per_s = read_bytes_per_s(device)
    figures: dict[str, Any] = {
        "read_bytes_per_s": bytes_per_s,
        "weight_bytes": weight_bytes,
        "roofline_tokens_per_s": bytes_per_s / weight_bytes,
    }
    cuts = [0, num_blocks // 3, 2 * num_blocks // 3, num_blocks]
    splits = {"1 server": [f"0:{num_blocks}"], "3 servers": [f"{cuts[at]}:{cuts[at + 1]}" for at in range(3)]}
    for name, spans in splits.items():
        with tempfile.TemporaryDirectory() as folder, LocalSwarm(str(options.folder), Path(folder)) as swarm:
            share = str(int(options.memory_bytes / len(spans)))
            arguments = ("--device", options.device, "--dtype", "bfloat16", "--memory", share)
            await asyncio.to_thread(swarm.start, *spans, arguments=arguments)
            async with await AsyncClient.connect(swarm.token) as client:
                await speed(client, 1)
                rows = {}
                for num in map(int, options.sessions.split(",")):
                    rows[num] = statistics.median([await speed(client, num) for _ in range(options.rounds)])
                    print(name, num, f"{rows[num]:.1f} tokens/s", flush=True)
        figures[name] = {"tokens_per_s": rows, "of_roofline": rows[1] / figures["roofline_tokens_per_s"]}
        print(name, f"{figures[name]['of_roofline']:.2f} of the roofline", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--memory-bytes", type=float, default=40e9, help="of all servers together")
    parser.add_argument("--sessions", default="1,2,4,8,16,32,64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with measured_now():
        figures = uvloop.run(measure(options))
    about = circumstances(
        "gpu/decode",
        "torch",
        device=name_of(options.device),
        rounds=options.rounds,
        tokens=NUM_TOKENS,
    )
    output = options.output or Path(__file__).parent.parent / "results" / "gpu" / "decode.json"
    keep(output, about, figures)


if __name__ == "__main__":
    main()
