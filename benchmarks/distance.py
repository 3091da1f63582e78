"""What distance costs: tokens around a chain of far servers, drafts that save round trips, prompts through many.

    python benchmarks/distance.py [--rounds N] [--tokens N] [--only PART] [--output FOLDER]

Servers are processes of their own with real links, over which every frame takes some milliseconds longer. `loop`: the
bound is what the engines computed for a token, and one way per hop and back to the head. `drafts`: the same requests
with and without. `prompt`: servers that sleep where they would compute, so that several equal ones fit on one machine,
for two cards, near and far; beside the most that chunks can give, which have to pass all servers one after another.
`prefix`: sessions at once whose prompts begin alike.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from chainserve.runtime.cores import free_idle_cores

free_idle_cores()

import torch
import uvloop
from circumstances import PROJECT, circumstances, keep, measured_now
from far_server import CARDS, move_away
from sections.distance import section

from chainserve.planning.profile import MAX_BATCH_TOKENS
from chainserve_client import AsyncClient, Generation
from chainserve_client.client import load_draft_model
from chainserve_server.local import LocalSwarm

MODEL = "smollm2-135m"
ONE_WAY_MS = 25.0
NEAR_MS = 0.5
LOOPS = {"2 servers": ["0:15", "15:30"], "3 servers": ["0:10", "10:20", "20:30"]}
PROMPT_SPLITS = {num: [f"{30 * at // num}:{30 * (at + 1) // num}" for at in range(num)] for num in (1, 2, 3, 5)}
PROMPT_TOKENS = 2048
PREFIX_SESSIONS, PREFIX_TOKENS, OWN_TOKENS = 8, 512, 16
LOOKED_UP, BY_MODEL = "looked up", "by a draft model"
SEED = 0

CODE = [
    "Repeat this function, with the name total instead of add_numbers:\n"
    "def add_numbers(numbers):\n    result = 0\n    for number in numbers:\n        result = result + number\n"
    "    return result\n",
    "Write this class again and add a method that returns the area:\n"
    "class Rectangle:\n    def __init__(self, width, height):\n        self.width = width\n"
    "        self.height = height\n",
    "Copy this code and add a type annotation to every parameter:\n"
    "def greet(name, times):\n    for i in range(times):\n        print('Hello', name)\n    return times\n",
    "Fix the indentation of this code and write it out in full:\n"
    "def maximum(values):\n  best = values[0]\n  for value in values:\n      if value > best:\n"
    "            best = value\n  return best\n",
    "Convert this list of settings to a Python dictionary, with one entry per line:\n"
    "host = localhost\nport = 8000\nuser = admin\npassword = secret\ntimeout = 30\nretries = 5\n",
]
CHAT = [
    "What is the capital of France, and what is it known for?",
    "Explain in simple words why the sky is blue.",
    "Give me three tips for learning a new language.",
    "Tell me a short story about a lighthouse keeper.",
    "What is the difference between a virus and a bacterium?",
]


class Observed:
    """What the engines of a swarm ran."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}

    def take(self) -> dict[Path, list[Any]]:
        """By server, the forwards since the last call."""
        new = {}
        for file in sorted(self._folder.glob("*.jsonl")):
            lines = file.read_text().splitlines()
            new[file] = [json.loads(line) for line in lines[self._read.get(file, 0) :]]
            self._read[file] = len(lines)
        return new


@asynccontextmanager
async def far_swarm(
    spans: list[str], *, one_way_ms: float = ONE_WAY_MS, card: str = ""
) -> AsyncIterator[tuple[AsyncClient, Observed]]:
    """A client of a swarm whose members are far from each other; with a `card` they sleep as that would compute."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {"ONE_WAY_MS": str(one_way_ms), "OBSERVED": name, "SLEEPS": card}
        program = [str(PROJECT / "benchmarks" / "far_server.py")]
        with LocalSwarm(MODEL, folder, environment=environment, program=program) as swarm:
            await asyncio.to_thread(swarm.start, *spans, arguments=("--memory", "4GB"))
            async with await AsyncClient.connect(swarm.token) as client:
                yield client, Observed(folder)


def token_s(answer: Generation) -> float:
    """Seconds per token after the first."""
    return (answer.total_s - answer.first_token_s) / (len(answer.tokens) - 1)


async def loops(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds per token beside the bound, for chains of several lengths."""
    figures: dict[str, Any] = {}
    generator = torch.Generator().manual_seed(SEED)
    for name, spans in LOOPS.items():
        async with far_swarm(spans) as (client, observed):
            ratios, taken, bounds = [], [], []
            for _ in range(options.rounds + 1):
                prompt = torch.randint(1000, 40000, (16,), generator=generator).tolist()
                observed.take()
                answer = await client.generate(prompt, max_new_tokens=options.tokens, ignore_end=True, max_drafts=0)
                computed_s = 0.0
                for forwards in observed.take().values():
                    seconds = [forward[3] for forward in forwards if forward[1] == 1]  # decode steps
                    computed_s += statistics.fmean(seconds)
                taken.append(token_s(answer))
                bounds.append(computed_s + len(spans) * ONE_WAY_MS / 1000)
                ratios.append(taken[-1] / bounds[-1])
            figures[name] = {
                "ms_per_token": 1000 * statistics.median(taken[1:]),
                "bound_ms": 1000 * statistics.median(bounds[1:]),
                "ratio": statistics.median(ratios[1:]),
            }
            print(name, figures[name], flush=True)
    return figures


async def drafts(options: argparse.Namespace) -> dict[str, Any]:
    """Speed with drafts over speed without, on two kinds of prompts; the tokens have to be the same.

    Drafts are looked up in the text, or made by a model at the client: for want of a smaller one, by the same.
    """
    figures: dict[str, Any] = {}
    async with far_swarm(LOOPS["3 servers"]) as (client, _):
        model = await load_draft_model(MODEL)
        await client.generate("Once", max_new_tokens=8)
        ways = {LOOKED_UP: None, BY_MODEL: model}
        for kind, questions in {"code": CODE, "chat": CHAT}.items():
            plain_s, num_tokens = 0.0, 0
            drafted_s = dict.fromkeys(ways, 0.0)
            speedups: dict[str, list[float]] = {way: [] for way in ways}
            for question in questions:
                prompt = client.encode_chat([{"role": "user", "content": question}])
                client.draft = None
                plain = await client.generate(prompt, max_new_tokens=options.answer_tokens, max_drafts=0)
                plain_s += plain.total_s - plain.first_token_s
                num_tokens += len(plain.tokens) - 1
                for way, client.draft in ways.items():
                    drafted = await client.generate(prompt, max_new_tokens=options.answer_tokens)
                    assert plain.tokens == drafted.tokens, (question, plain.text, drafted.text)
                    drafted_s[way] += drafted.total_s - drafted.first_token_s
                    speedups[way].append(token_s(plain) / token_s(drafted))
                    print(kind, way, f"{speedups[way][-1]:.2f}", len(plain.tokens), flush=True)
            for way in ways:
                figures[f"{kind}, {way}"] = {
                    "speedup": plain_s / drafted_s[way],
                    "least": min(speedups[way]),
                    "most": max(speedups[way]),
                    "tokens": num_tokens,
                    "plain_tokens_per_second": num_tokens / plain_s,
                    "drafted_tokens_per_second": num_tokens / drafted_s[way],
                }
            print(kind, figures, flush=True)
    return figures


async def prompts(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds to the first token of a long prompt through 1 to P equal servers that sleep, by card and distance."""
    figures: dict[str, Any] = {}
    for one_way_ms in (NEAR_MS, ONE_WAY_MS):
        move_away(one_way_ms / 1000)
        for card in CARDS:
            figures[f"{card} card, {2 * one_way_ms:g} ms"] = await through_many(options, card, one_way_ms=one_way_ms)
            print(figures, flush=True)
    return figures


async def through_many(options: argparse.Namespace, card: str, *, one_way_ms: float) -> dict[str, Any]:
    """The same for one card and distance."""
    taken: dict[int, list[float]] = {num: [] for num in PROMPT_SPLITS}
    generator = torch.Generator().manual_seed(SEED)
    async with AsyncExitStack() as swarms:
        clients = {
            num: (await swarms.enter_async_context(far_swarm(spans, one_way_ms=one_way_ms, card=card)))[0]
            for num, spans in PROMPT_SPLITS.items()
        }
        for round_ in range(options.rounds + 1):
            for num, client in clients.items():
                prompt = torch.randint(1000, 40000, (PROMPT_TOKENS,), generator=generator).tolist()
                answer = await client.generate(prompt, max_new_tokens=1)
                if round_:
                    taken[num].append(answer.first_token_s)
    pairs = {num: [alone / s for alone, s in zip(taken[1], seconds, strict=True)] for num, seconds in taken.items()}
    return {
        str(num): {
            "ms_to_first_token": 1000 * statistics.median(taken[num]),
            "speedup": statistics.median(pairs[num]),
            "per_server": statistics.median(pairs[num]) / num,
            "bound": least_s(card, 1) / least_s(card, num),
        }
        for num in PROMPT_SPLITS
    }


def least_s(card: str, num_servers: int) -> float:
    """Seconds that the prompt takes through equal servers without links, cut into the best of equal chunks.

    All take the same turns, so that the last chunk leaves the last server after as many turns as there are chunks and
    further servers.
    """

    def seconds(num_tokens: int) -> float:
        num_turns = -(-PROMPT_TOKENS // num_tokens) + num_servers - 1
        return num_turns * CARDS[card].step_s(0, num_tokens, num_blocks=30 // num_servers)

    return min(seconds(num_tokens) for num_tokens in range(16, MAX_BATCH_TOKENS + 1))


async def prefixes(options: argparse.Namespace) -> dict[str, Any]:
    """Tokens that each server computed for sessions at once, and when the last of them had its first token."""
    figures: dict[str, Any] = {}
    generator = torch.Generator().manual_seed(SEED)

    def tokens(number: int) -> list[int]:
        return torch.randint(1000, 40000, (number,), generator=generator).tolist()

    async with far_swarm(LOOPS["2 servers"]) as (client, observed):
        await client.generate(tokens(PREFIX_TOKENS), max_new_tokens=1)
        for kind in ("unlike", "alike"):
            begins = [tokens(PREFIX_TOKENS)] * PREFIX_SESSIONS
            if kind == "unlike":
                begins = [tokens(PREFIX_TOKENS) for _ in begins]
            prompts = [begin + tokens(OWN_TOKENS) for begin in begins]
            observed.take()
            answers = await asyncio.gather(*(client.generate(prompt, max_new_tokens=4) for prompt in prompts))
            computed = [sum(forward[1] + forward[2] for forward in ran) for ran in observed.take().values()]
            figures[kind] = {
                "tokens": sum(map(len, prompts)),
                "computed": computed,
                "ms_to_last_first_token": 1000 * max(answer.first_token_s for answer in answers),
            }
            print(kind, figures[kind], flush=True)
    return figures


PARTS = {"loop": loops, "drafts": drafts, "prompt": prompts, "prefix": prefixes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48, help="new tokens per stream around a loop")
    parser.add_argument("--answer-tokens", type=int, default=128, help="at most, of an answer with and without drafts")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument(
        "--output", type=Path, default=PROJECT / "benchmarks" / "results" / "distance", metavar="FOLDER"
    )
    options = parser.parse_args()
    about = circumstances(
        "distance",
        "torch",
        model=f"{MODEL}, float32, {torch.get_num_threads()} threads",
        one_way_ms=ONE_WAY_MS,
        prompt_tokens=PROMPT_TOKENS,
        prefix_sessions=PREFIX_SESSIONS,
        prefix_tokens=PREFIX_TOKENS,
        rounds=options.rounds,
        tokens=options.tokens,
    )
    move_away(ONE_WAY_MS / 1000)
    reports = {}
    for name in PARTS if options.only is None else (options.only,):
        with measured_now():
            figures = uvloop.run(PARTS[name](options))
        reports[name] = keep(options.output / f"{name}.json", about, figures)
    print(section(reports))


if __name__ == "__main__":
    main()
