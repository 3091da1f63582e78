"""What one more server costs in software: time per token through more servers that together compute the same.

    python benchmarks/hop.py [--rounds N] [--tokens N] [--output FILE]

The model's hidden states are 16 KB per token, as those of the 7B models in float32 or of 70B models in 16 bits, and its
blocks compute next to nothing. All swarms run at once and take turns. Everything counts: engine, links, both ways into
and out of the event loop, and the token's way back to the head.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from contextlib import AsyncExitStack, ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

from chainserve.runtime.cores import free_idle_cores

free_idle_cores()

import torch
import uvloop
from circumstances import PROJECT, circumstances, keep, measured_now
from sections.hop import section
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from chainserve_client import AsyncClient
from chainserve_server.local import LocalSwarm

HIDDEN = 4096
NUM_BLOCKS = 4
VOCAB = 256
PROMPT = list(range(16))
SPLITS = {1: ["0:4"], 2: ["0:2", "2:4"], 4: ["0:1", "1:2", "2:3", "3:4"]}


def make_model(folder: Path) -> None:
    """A checkpoint whose blocks are as narrow as hidden states are wide."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=16,
        num_hidden_layers=NUM_BLOCKS,
        num_attention_heads=1,
        head_dim=16,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCAB)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folder)


async def seconds_per_token(client: AsyncClient, num_tokens: int) -> float:
    """The median from one token to the next."""
    stream = client.stream(PROMPT, max_new_tokens=num_tokens, ignore_end=True, max_drafts=0)
    times = [time.perf_counter() async for _ in stream]
    return statistics.median(after - before for before, after in pairwise(times[1:]))


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    taken: dict[int, list[float]] = {num: [] for num in SPLITS}
    with ExitStack() as stack:
        model = stack.enter_context(tempfile.TemporaryDirectory())
        make_model(Path(model))
        async with AsyncExitStack() as connections:
            clients = {}
            for num, spans in SPLITS.items():
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                swarm = stack.enter_context(LocalSwarm(model, Path(folder)))
                await asyncio.to_thread(swarm.start, *spans, arguments=("--memory", "1GB"))
                clients[num] = await connections.enter_async_context(await AsyncClient.connect(swarm.token))
            for round_ in range(options.rounds + 1):
                for num, client in clients.items():
                    seconds = await seconds_per_token(client, options.tokens)
                    if round_:
                        taken[num].append(seconds)
    return {
        str(num): {
            "ms_per_token": 1e3 * statistics.median(seconds),
            "ms_per_extra_hop": 1e3
            * statistics.median((more - one) / (num - 1) for more, one in zip(seconds, taken[1], strict=True))
            if num > 1
            else None,
        }
        for num, seconds in taken.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=64, help="per stream")
    parser.add_argument("--output", type=Path, default=PROJECT / "benchmarks" / "results" / "hop.json")
    options = parser.parse_args()
    with measured_now():
        figures = uvloop.run(measure(options))
    about = circumstances(
        "hop", "torch", bytes_per_token=4 * HIDDEN, rounds=options.rounds, tokens=options.tokens, prompt=len(PROMPT)
    )
    print(section(keep(options.output, about, figures)))


if __name__ == "__main__":
    main()
