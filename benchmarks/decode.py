"""Speed of one stream and of several, whole model and split, beside plain transformers, in one run on one machine.

    python benchmarks/decode.py [--rounds N] [--tokens N] [--dtype float32|bfloat16] [--output FILE]

Every round starts new swarms, as one process is some percent slower than another for as long as it lives. They run at
once and idle unless measured, so that a slow minute of the machine touches all alike. What is compared is measured side
by side, and ratios are medians of each round's own: compare those, not absolute speeds.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from chainserve.runtime.cores import free_idle_cores

free_idle_cores()  # in this process too: it is the client of every chain

import torch
import uvloop
from circumstances import PROJECT, circumstances, keep, measured_now
from sections.decode import section
from transformers import AutoModelForCausalLM

from chainserve.models.cache import KVCache
from chainserve.models.ends import Ends
from chainserve.models.load import load_weights
from chainserve.models.resolve import resolve
from chainserve.models.runner import Runner
from chainserve.models.skeleton import build_skeleton
from chainserve.protocol.messages import Step
from chainserve.types import SessionId, Span
from chainserve_client import AsyncClient
from chainserve_server.local import LocalSwarm

MODEL = "smollm2-135m"
SPLITS = {"1 server": ["0:30"], "2 servers": ["0:15", "15:30"], "3 servers": ["0:10", "10:20", "20:30"]}
SESSIONS = (1, 2, 4, 8, 16)
PROMPTS = (128, 512, 1900)
STREAMS = 3
"""By turns in every round, of each: a split is compared with no split within some percent."""
PACKED_STEPS = 4
"""Packed forwards before, and as many after, the sessions that they are compared with."""
CONTEXT_TOKENS = 40
"""Of sessions whose packed forward is timed by itself: what theirs have in the middle of an answer."""
SEED = 0


class Plain:
    """The model in one piece, run by transformers in this process."""

    def __init__(self, dtype: torch.dtype) -> None:
        path = Path(resolve(MODEL).path)
        self.model: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype)
        self.model.generation_config.eos_token_id = None  # every stream is equally long

    def generate(self, prompt: list[int], num_tokens: int) -> float:
        """Seconds for `num_tokens` new tokens."""
        ids = torch.tensor([prompt])
        began = time.perf_counter()
        self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False)
        return time.perf_counter() - began


class Packed:
    """One packed forward of several sessions, with norm and head, and nothing around it."""

    def __init__(self, dtype: torch.dtype) -> None:
        source = resolve(MODEL)
        span, device = Span(0, source.num_blocks), torch.device("cpu")
        blocks = build_skeleton(source.config, span)
        ends = build_skeleton(source.config, None, embed=True, head=True)
        for skeleton in (blocks, ends):
            load_weights(skeleton, source, dtype=dtype, device=device, progress=False)
        num_sessions = max(SESSIONS)
        cache = KVCache(span, budget_tokens=num_sessions * (CONTEXT_TOKENS + 1))
        self._runner, self._span = Runner(blocks, span, cache, ends=Ends(ends)), span
        self._sessions = [SessionId(number.to_bytes(16, "big")) for number in range(num_sessions)]
        for session in self._sessions:
            cache.reserve(session, span, num_lanes=1, max_tokens=CONTEXT_TOKENS + 1)
            self._forward([Step(session, 0, 0, CONTEXT_TOKENS, 1)])

    def times(self, num_sessions: int, num_steps: int) -> list[float]:
        """Seconds of each of `num_steps` steps: one token each of so many sessions."""
        steps = [Step(session, 0, CONTEXT_TOKENS, 1, 1) for session in self._sessions[:num_sessions]]
        taken_s = []
        for _ in range(num_steps):
            began = time.perf_counter()
            self._forward(steps)
            taken_s.append(time.perf_counter() - began)
        return taken_s

    def _forward(self, steps: list[Step]) -> None:
        ids = torch.arange(1000, 1000 + sum(step.num_tokens for step in steps))
        hidden = self._runner.forward(self._runner.ends.embed(ids), steps, self._span)
        self._runner.ends.logits(hidden[-len(steps) :]).argmax(-1).tolist()


async def stream(client: AsyncClient, prompt: list[int], num_tokens: int) -> tuple[float, float]:
    """Seconds to the first token, and for the rest."""
    answer = await client.generate(prompt, max_new_tokens=num_tokens, ignore_end=True, max_drafts=0)
    assert len(answer.tokens) == num_tokens, answer
    return answer.first_token_s, answer.total_s - answer.first_token_s


@asynccontextmanager
async def started(dtype: str) -> AsyncIterator[dict[str, AsyncClient]]:
    """Clients of new swarms, one per split, which have all served what will be measured once."""
    warm_up = torch.arange(1000, 1000 + max(PROMPTS)).tolist()
    async with AsyncExitStack() as stack:
        clients: dict[str, AsyncClient] = {}
        for name, spans in SPLITS.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            swarm = stack.enter_context(LocalSwarm(MODEL, folder, dtype=dtype))
            await asyncio.to_thread(swarm.start, *spans)
            clients[name] = client = await stack.enter_async_context(await AsyncClient.connect(swarm.token))
            await stream(client, warm_up, 2)
            await asyncio.gather(*(stream(client, [at] * 16, 16) for at in range(max(SESSIONS))))
        yield clients


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run all rounds and return the figures."""
    generator = torch.Generator().manual_seed(SEED)

    def prompt(length: int) -> list[int]:
        return torch.randint(1000, 40000, (length,), generator=generator).tolist()

    decode_s: dict[str, list[float]] = defaultdict(list)
    first_s: dict[str, dict[int, list[float]]] = defaultdict(partial(defaultdict, list))
    sessions_s: dict[str, dict[int, list[float]]] = defaultdict(partial(defaultdict, list))
    # Tokens per second of all sessions, each after its first token, and of packed forwards right before and after.
    decoding: dict[str, dict[int, list[float]]] = defaultdict(partial(defaultdict, list))
    packed: dict[str, dict[int, list[float]]] = defaultdict(partial(defaultdict, list))
    # One thread for transformers: torch keeps a pool of its own for each thread that computes.
    with ThreadPoolExecutor(max_workers=1) as alone:
        run = partial(asyncio.get_running_loop().run_in_executor, alone)
        dtype = getattr(torch, options.dtype)
        plain, forward = await run(Plain, dtype), await run(Packed, dtype)
        for length in PROMPTS:
            await run(plain.generate, prompt(length), 1)
        for round_ in range(options.rounds):
            async with started(options.dtype) as clients:
                # One stream. Plain transformers: the time of all tokens less that of the first.
                short = prompt(16)
                for _ in range(STREAMS):
                    first = await run(plain.generate, short, 1)
                    whole = await run(plain.generate, short, options.tokens)
                    decode_s["transformers"].append((whole - first) / (options.tokens - 1))
                    for name, client in clients.items():
                        _, rest = await stream(client, short, options.tokens)
                        decode_s[name].append(rest / (options.tokens - 1))

                for length in PROMPTS:
                    long = prompt(length)
                    first_s["transformers"][length].append(await run(plain.generate, long, 1))
                    for name, client in clients.items():
                        first_s[name][length].append((await stream(client, long, 1))[0])

                for name, client in clients.items():
                    for num in SESSIONS:
                        steps_s = await run(forward.times, num, PACKED_STEPS)
                        began = time.perf_counter()
                        streams = [stream(client, prompt(16), options.tokens) for _ in range(num)]
                        taken_s = await asyncio.gather(*streams)
                        sessions_s[name][num].append(time.perf_counter() - began)
                        steps_s += await run(forward.times, num, PACKED_STEPS)
                        decoding[name][num].append(sum((options.tokens - 1) / rest for _, rest in taken_s))
                        packed[name][num].append(num / statistics.median(steps_s))
            print(f"round {round_ + 1} of {options.rounds}", flush=True)

    def relative(values: list[float], others: list[float]) -> float:
        """The median of each round's quotient of both."""
        return statistics.median(value / other for value, other in zip(values, others, strict=True))

    def over_one(speeds: dict[int, list[float]], num: int) -> list[float]:
        """What `num` at once make of one alone, round by round."""
        return [many / one for many, one in zip(speeds[num], speeds[1], strict=True)]

    def per_extra_hop(name: str) -> float:
        """Milliseconds per token that each server after the first adds."""
        pairs = zip(decode_s[name], decode_s["1 server"], strict=True)
        return 1000 * statistics.median(split - one for split, one in pairs) / (len(SPLITS[name]) - 1)

    return {
        "one_stream": {
            name: {
                "tokens_per_second": 1 / statistics.median(times),
                "ms_per_token": 1000 * statistics.median(times),
                "relative_to_transformers": relative(decode_s["transformers"], times),
                "relative_to_one_server": relative(decode_s["1 server"], times),
                "ms_per_extra_hop": per_extra_hop(name) if len(SPLITS.get(name, ())) > 1 else None,
            }
            for name, times in decode_s.items()
        },
        "tokens_per_second_of_all_sessions": {
            name: {num: num * options.tokens / statistics.median(times) for num, times in by_num.items()}
            for name, by_num in sessions_s.items()
        },
        "tokens_per_second_after_the_first": {
            name: {num: statistics.median(speeds) for num, speeds in by_num.items()}
            for name, by_num in decoding.items()
        },
        "tokens_per_second_of_packed_forwards": {
            num: statistics.median(speed for by_num in packed.values() for speed in by_num[num]) for num in SESSIONS
        },
        "relative_to_packed_forwards": {
            name: {num: relative(speeds, packed[name][num]) for num, speeds in by_num.items()}
            for name, by_num in decoding.items()
        },
        "over_one_relative_to_packed_forwards": {
            name: {num: relative(over_one(by_num, num), over_one(packed[name], num)) for num in by_num}
            for name, by_num in decoding.items()
        },
        "ms_to_first_token": {
            name: {length: 1000 * statistics.median(times) for length, times in by_length.items()}
            for name, by_length in first_s.items()
        },
        "first_token_relative_to_transformers": {
            name: {length: relative(times, first_s["transformers"][length]) for length, times in by_length.items()}
            for name, by_length in first_s.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48, help="new tokens per stream")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--output", type=Path, metavar="FILE")
    options = parser.parse_args()
    options.output = options.output or PROJECT / "benchmarks" / "results" / f"decode_{options.dtype}.json"
    with measured_now():
        figures = uvloop.run(measure(options))
    about = circumstances(
        "decode",
        "torch",
        model=f"{MODEL}, {options.dtype}, {torch.get_num_threads()} threads",
        dtype=options.dtype,
        seed=SEED,
        rounds=options.rounds,
        tokens=options.tokens,
        streams=STREAMS,
    )
    print(section(keep(options.output, about, figures)))


if __name__ == "__main__":
    main()
