"""Predicted beside observed times of steps: a measured profile against real servers, on one machine.

    python benchmarks/profiles.py [--rounds N] [--tokens N] [--output FILE]

In every round each chain is preceded by a new profile and runs every case once, so that a slow minute of the machine
touches prediction and observation alike. The servers' engines say what each forward ran, in the batches that formed,
and how long it took; the profile predicts just that forward. Per server the medians of a round count, a chain is the
sum of its servers.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chainserve.runtime.cores import free_idle_cores

free_idle_cores()  # in this process too: it measures as a server would, and is the client of every chain

import torch
import uvloop
from circumstances import PROJECT, circumstances, keep
from sections.profiles import section

from chainserve.models.measure import measure
from chainserve.models.profiles import profile_of
from chainserve.models.resolve import resolve
from chainserve.planning.profile import BlockProfile
from chainserve.types import Span
from chainserve_client import AsyncClient
from chainserve_server.local import LocalSwarm
from chainserve_server.work import Forward

MODEL = "smollm2-135m"
SPLITS = {"1 server": ["0:30"], "2 servers": ["0:15", "15:30"], "3 servers": ["0:10", "10:20", "20:30"]}
PROMPTS = (128, 512, 1024)
SESSIONS = (1, 2, 4, 8)
DTYPE, DEVICE = torch.float32, torch.device("cpu")
SETTLE_S = 0.1  # servers write a forward after they have sent its outputs
SEED = 0


class Observed:
    """What the engines of one chain's servers have written since they were last asked."""

    def __init__(self, files: list[Path]) -> None:
        self._files = [file.open() for file in files]

    async def take(self) -> list[list[Forward]]:
        await asyncio.sleep(SETTLE_S)
        return [[forward(*json.loads(line)) for line in file] for file in self._files]


def forward(span: list[int], num_decode: int, num_prefill_tokens: int, seconds: float) -> Forward:
    return Forward(Span(*span), num_decode, num_prefill_tokens, seconds)


def compare(servers: list[list[Forward]], profile: BlockProfile, *, decode: bool) -> tuple[float, float]:
    """Seconds predicted and observed of a chain; forwards that also ran something else are left out."""
    predicted_s = observed_s = 0.0
    for forwards in servers:
        chosen = [item for item in forwards if not (item.num_prefill_tokens if decode else item.num_decode)]
        observed_s += statistics.median(item.seconds for item in chosen)
        predicted_s += statistics.median(
            profile.times.step_s(item.num_decode, item.num_prefill_tokens, num_blocks=len(item.span)) for item in chosen
        )
    return predicted_s, observed_s


async def measure_all(options: argparse.Namespace) -> dict[str, Any]:
    """Run all rounds and return the figures."""
    generator = torch.Generator().manual_seed(SEED)
    config = resolve(MODEL).config
    pairs: dict[str, dict[str, dict[str, list[tuple[float, float]]]]] = {"prefill": {}, "decode": {}}
    measure_s: list[float] = []

    def prompt(length: int) -> list[int]:
        return torch.randint(1000, 40000, (length,), generator=generator).tolist()

    async def case(observed: Observed, run: Callable[[], Awaitable[object]], *, decode: bool) -> tuple[float, float]:
        await observed.take()
        await run()
        return compare(await observed.take(), profile, decode=decode)

    with ExitStack() as swarms:
        chains: dict[str, tuple[AsyncClient, Observed]] = {}
        async with AsyncExitStack() as connections:
            for name, spans in SPLITS.items():
                folder = Path(swarms.enter_context(tempfile.TemporaryDirectory()))
                program = [str(PROJECT / "benchmarks" / "observed_server.py")]
                swarm = LocalSwarm(MODEL, folder, environment={"OBSERVED": str(folder)}, program=program)
                swarms.enter_context(swarm)
                await asyncio.to_thread(swarm.start, *spans)
                client = await connections.enter_async_context(await AsyncClient.connect(swarm.token))
                files = [folder / f"{server.process.pid}.jsonl" for server in swarm.servers]
                chains[name] = client, Observed(files)
                print(f"{name} up: {', '.join(spans)}", flush=True)
            for round_ in range(-1, options.rounds):  # the first one only warms up
                for name, (client, observed) in chains.items():
                    began = time.perf_counter()
                    profile = measure(config, dtype=DTYPE, device=DEVICE)
                    measure_s.append(time.perf_counter() - began)

                    async def run(num: int, length: int, tokens: int, client: AsyncClient = client) -> None:
                        streams = (
                            client.generate(prompt(length), max_new_tokens=tokens, ignore_end=True, max_drafts=0)
                            for _ in range(num)
                        )
                        await asyncio.gather(*streams)

                    for length in PROMPTS:
                        pair = await case(observed, lambda: run(1, length, 1), decode=False)  # noqa: B023
                        if round_ >= 0:
                            pairs["prefill"].setdefault(name, {}).setdefault(f"{length} tokens", []).append(pair)
                    for num in SESSIONS:
                        pair = await case(observed, lambda: run(num, 16, options.tokens), decode=True)  # noqa: B023
                        if round_ >= 0:
                            pairs["decode"].setdefault(name, {}).setdefault(f"{num} at once", []).append(pair)
                print(f"round {round_ + 1} of {options.rounds}", flush=True)

    def summary(rounds: list[tuple[float, float]]) -> dict[str, float]:
        return {
            "predicted_ms": 1000 * statistics.median(predicted for predicted, _ in rounds),
            "observed_ms": 1000 * statistics.median(observed for _, observed in rounds),
            "error": statistics.median(predicted / observed - 1 for predicted, observed in rounds),
        }

    figures: dict[str, Any] = {
        kind: {name: {case: summary(rounds) for case, rounds in row.items()} for name, row in by_chain.items()}
        for kind, by_chain in pairs.items()
    }
    errors = {}
    for kind in pairs:
        rows = {name: [abs(case["error"]) for case in row.values()] for name, row in figures[kind].items()}
        errors[kind] = statistics.median(error for row in rows.values() for error in row)
        errors[f"{kind} of 1 server"] = statistics.median(rows["1 server"])
    figures["median_error"] = errors
    figures["measure_s"] = statistics.median(measure_s)
    figures["read_s"] = read_s(config)
    figures["profile"] = asdict(profile)
    return figures


def read_s(config: Any) -> float:
    """Seconds that a profile takes which is on disk already."""
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            began = time.perf_counter()
            profile_of(config, dtype=DTYPE, device=DEVICE, folder=Path(folder))
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=24, help="new tokens per stream")
    parser.add_argument("--output", type=Path, default=PROJECT / "benchmarks" / "results" / "profiles.json")
    options = parser.parse_args()
    figures = uvloop.run(measure_all(options))
    about = circumstances(
        "profiles",
        "torch",
        model=f"{MODEL}, float32, {torch.get_num_threads()} threads",
        seed=SEED,
        rounds=options.rounds,
        tokens=options.tokens,
    )
    print(section(keep(options.output, about, figures)))


if __name__ == "__main__":
    main()
