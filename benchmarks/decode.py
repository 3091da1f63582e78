"""Speed of one stream and of several, whole model and split, beside plain transformers, in one run on one machine.

    python benchmarks/decode.py [--rounds N] [--tokens N] [--output FILE]

All swarms run at once and idle unless measured; every round measures each of them once, so that a slow minute of
the machine touches all alike. Figures are medians over rounds; compare ratios, not absolute speeds.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from chainserve.runtime.cores import free_idle_cores

free_idle_cores()  # in this process too: it is the client of every chain

import tables
import torch
import uvloop
from circumstances import PROJECT, circumstances, keep
from transformers import AutoModelForCausalLM

from chainserve.models.resolve import resolve
from chainserve_client import AsyncClient
from chainserve_server.local import LocalSwarm

MODEL = "smollm2-135m"
SPLITS = {"1 server": ["0:30"], "2 servers": ["0:15", "15:30"], "3 servers": ["0:10", "10:20", "20:30"]}
SESSIONS = (1, 2, 4, 8)
PROMPTS = (128, 512)
SEED = 0


class Plain:
    """The model in one piece, run by transformers in this process."""

    def __init__(self) -> None:
        path = Path(resolve(MODEL).path)
        self.model: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        self.model.generation_config.eos_token_id = None  # every stream is equally long

    def generate(self, prompt: list[int], num_tokens: int) -> float:
        """Seconds for `num_tokens` new tokens."""
        ids = torch.tensor([prompt])
        began = time.perf_counter()
        self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False)
        return time.perf_counter() - began


async def stream(client: AsyncClient, prompt: list[int], num_tokens: int) -> tuple[float, float]:
    """Seconds to the first token, and for the rest."""
    answer = await client.generate(prompt, max_new_tokens=num_tokens, ignore_end=True, max_drafts=0)
    assert len(answer.tokens) == num_tokens, answer
    return answer.first_token_s, answer.total_s - answer.first_token_s


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run all rounds and return the figures."""
    generator = torch.Generator().manual_seed(SEED)

    def prompt(length: int) -> list[int]:
        return torch.randint(1000, 40000, (length,), generator=generator).tolist()

    decode_s: dict[str, list[float]] = {}
    first_s: dict[str, dict[int, list[float]]] = {}
    sessions_s: dict[str, dict[int, list[float]]] = {}
    with ExitStack() as swarms:
        clients: dict[str, AsyncClient] = {}
        async with AsyncExitStack() as connections:
            for name, spans in SPLITS.items():
                folder = Path(swarms.enter_context(tempfile.TemporaryDirectory()))
                swarm = swarms.enter_context(LocalSwarm(MODEL, folder))
                await asyncio.to_thread(swarm.start, *spans)
                client = await connections.enter_async_context(await AsyncClient.connect(swarm.token))
                clients[name] = client
                print(f"{name} up: {', '.join(spans)}", flush=True)
            # One thread for transformers: torch keeps a pool of its own for each thread that computes.
            alone = connections.enter_context(ThreadPoolExecutor(max_workers=1))
            run = partial(asyncio.get_running_loop().run_in_executor, alone)
            plain = await run(Plain)
            for round_ in range(-1, options.rounds):  # the first one only warms up
                kept = round_ >= 0
                short = prompt(16)

                # One stream. Plain transformers: the time of all tokens less that of the first.
                first = await run(plain.generate, short, 1)
                whole = await run(plain.generate, short, options.tokens)
                if kept:
                    decode_s.setdefault("transformers", []).append((whole - first) / (options.tokens - 1))
                for name, client in clients.items():
                    _, rest = await stream(client, short, options.tokens)
                    if kept:
                        decode_s.setdefault(name, []).append(rest / (options.tokens - 1))

                for length in PROMPTS:
                    long = prompt(length)
                    taken = {"transformers": await run(plain.generate, long, 1)}
                    for name, client in clients.items():
                        taken[name], _ = await stream(client, long, 1)
                    for name, seconds in taken.items() if kept else ():
                        first_s.setdefault(name, {}).setdefault(length, []).append(seconds)

                for name, client in clients.items():
                    for num in SESSIONS:
                        began = time.perf_counter()
                        await asyncio.gather(*(stream(client, prompt(16), options.tokens) for _ in range(num)))
                        if kept:
                            seconds = time.perf_counter() - began
                            sessions_s.setdefault(name, {}).setdefault(num, []).append(seconds)
                print(f"round {round_ + 1} of {options.rounds}", flush=True)

    def paired(name: str) -> float:
        """Speed relative to transformers, round by round."""
        pairs = zip(decode_s["transformers"], decode_s[name], strict=True)
        return statistics.median(plain / ours for plain, ours in pairs)

    def per_extra_hop(name: str) -> float:
        """Milliseconds per token that each server after the first adds."""
        pairs = zip(decode_s[name], decode_s["1 server"], strict=True)
        return 1000 * statistics.median(split - one for split, one in pairs) / (len(SPLITS[name]) - 1)

    return {
        "one_stream": {
            name: {
                "tokens_per_second": 1 / statistics.median(times),
                "ms_per_token": 1000 * statistics.median(times),
                "relative_to_transformers": paired(name),
                "ms_per_extra_hop": per_extra_hop(name) if len(SPLITS.get(name, ())) > 1 else None,
            }
            for name, times in decode_s.items()
        },
        "tokens_per_second_of_all_sessions": {
            name: {num: num * options.tokens / statistics.median(times) for num, times in by_num.items()}
            for name, by_num in sessions_s.items()
        },
        "ms_to_first_token": {
            name: {length: 1000 * statistics.median(times) for length, times in by_length.items()}
            for name, by_length in first_s.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48, help="new tokens per stream")
    parser.add_argument("--output", type=Path, default=PROJECT / "benchmarks" / "results" / "decode.json")
    options = parser.parse_args()
    figures = uvloop.run(measure(options))
    about = circumstances(
        "decode",
        "torch",
        model=f"{MODEL}, float32, {torch.get_num_threads()} threads",
        seed=SEED,
        rounds=options.rounds,
        tokens=options.tokens,
    )
    print(tables.decode(keep(options.output, about, figures)))


if __name__ == "__main__":
    main()
