"""Requests while servers are killed, frozen and cut off every few seconds, with a spare server for every block.

    python benchmarks/chaos.py [--requests N] [--faults N] [--workers N] [--gap SECONDS] [--output FILE]

Every request has to end with the greedy tokens of the whole model or with an error that has a name, within its time.
Faults hit servers that run sessions, at any place of their chains and at any time: while a session opens, in prefill,
in decoding, while it recovers. A fault waits until every block has two servers that are well, so that there is always
one to go on with. A stall is the longest pause between two tokens of an answer that had to go on elsewhere: it begins
with the fault, so it counts how long it takes to notice as well.
"""

import argparse
import asyncio
import itertools
import json
import random
import signal
import statistics
import tempfile
import time
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chainserve.runtime.cores import free_idle_cores

free_idle_cores()  # in this process too: it computes what is right

import torch
import uvloop
from circumstances import PROJECT, circumstances, keep, measured_now
from transformers import AutoModelForCausalLM

from chainserve.errors import ChainserveError
from chainserve.models.resolve import resolve
from chainserve.swarm.records import ServerState
from chainserve.swarm.view import View
from chainserve_client import AsyncClient
from chainserve_server.local import LocalServer, LocalSwarm

MODEL = "smollm2-135m"
SPANS = ("0:10", "10:20", "20:30")
PROGRAM = (str(PROJECT / "benchmarks" / "torn_server.py"),)
LEASE_S = 8.0
LEASE = ("--lease", f"{LEASE_S:g}")
NUM_TOKENS = 16
TIMEOUT_S = 60.0
GRACE_S = 5.0
"""A request that ends so long after its time counts as hung."""
FREEZE_S = (1.0, 8.0)
CALM_S = 60.0
"""Within which all has to be free after the storm."""
QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "List three uses for a paperclip.",
    "Who wrote Romeo and Juliet?",
    "What does a compiler do?",
    "How do vaccines work?",
    "Describe a rainy day in the city, in a few sentences, for somebody who has never seen rain in their life.",
    "What is 17 plus 25?",
)
SEED = 0


@dataclass
class Storm:
    """What happened."""

    answers: list[dict[str, Any]] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    is_over: bool = False


def greedy_tokens(prompts: list[list[int]]) -> list[list[int]]:
    """What the model in one piece says, run by transformers."""
    path = Path(resolve(MODEL).path)
    model: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": NUM_TOKENS, "do_sample": False}
        output = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        answers.append(output[0, len(prompt) :].tolist())
    return answers


async def ask(client: AsyncClient, prompt: list[int], expected: list[int]) -> dict[str, Any]:
    """One request, and how it ended."""
    began = last = time.monotonic()
    longest_s, num_tokens = 0.0, 0
    answer: dict[str, Any] = {"num_recoveries": 0}
    try:
        async with asyncio.timeout(TIMEOUT_S + GRACE_S):
            stream = client.stream(prompt, max_new_tokens=NUM_TOKENS, timeout_s=TIMEOUT_S, ignore_end=True)
            async with aclosing(stream):
                async for _ in stream:
                    now = time.monotonic()
                    longest_s, last, num_tokens = max(longest_s, now - last if num_tokens else 0.0), now, num_tokens + 1
            result = stream.result
        answer["ended"] = "right" if list(result.tokens) == expected else "wrong"
        answer["num_recoveries"] = len(result.recoveries)
        answer["recoveries"] = [(recovery.reason, recovery.stall_s) for recovery in result.recoveries]
        if result.recoveries:
            answer["stall_s"] = longest_s
    except TimeoutError:
        answer["ended"] = "hung"
    except ChainserveError as error:
        answer |= {"ended": "error", "error": type(error).__name__, "reason": str(error)}
    return answer | {"total_s": time.monotonic() - began}


class Weather:
    """Brings faults over the servers, and new servers for those that died."""

    def __init__(self, swarm: LocalSwarm, client: AsyncClient, storm: Storm, *, gap_s: float) -> None:
        self._swarm = swarm
        self._client = client
        self._storm = storm
        self._gap_s = gap_s
        self._rng = random.Random(SEED)
        self._frozen: set[str] = set()

    async def blow(self) -> None:
        """A fault every few seconds until the storm is over; then all goes on."""
        while not self._storm.is_over:
            await asyncio.sleep(self._rng.uniform(0.5, 1.5) * self._gap_s)
            await self._client.network.swarm.wait_for(self._is_well, timeout_s=120)
            if not self._storm.is_over:
                await self._strike()

    def _is_well(self, view: View) -> bool:
        """Whether every block has two servers that run, as far as the swarm knows."""
        alive = {s.peer for s in self._swarm.servers if s.has_joined and s.process.poll() is None} - self._frozen
        online = [
            server for server in view.servers.values() if server.state is ServerState.ONLINE and server.peer in alive
        ]
        held = Counter(str(server.span) for server in online)
        return self._storm.is_over or all(held[span] >= 2 for span in SPANS)

    async def _strike(self) -> None:
        busy = [session.chain for session in self._client.network._sessions.values()]
        peers = sorted({hop.peer for chain in busy for hop in chain.hops} - {self._swarm.servers[0].peer})
        if not peers:
            return
        peer = self._rng.choice(peers)
        server = next(s for s in self._swarm.servers if s.has_joined and s.peer == peer)
        fault = self._rng.choice(("killed", "frozen", "cut off"))
        self._storm.faults[fault] += 1
        if fault == "killed":
            server.process.kill()
            await asyncio.to_thread(server.process.wait, 10)
            self._swarm.launch(server.blocks, LEASE)
        elif fault == "cut off":
            server.process.send_signal(signal.SIGUSR1)
        else:
            self._frozen.add(peer)
            server.process.send_signal(signal.SIGSTOP)
            asyncio.get_running_loop().call_later(self._rng.uniform(*FREEZE_S), self._thaw, server)

    def _thaw(self, server: LocalServer) -> None:
        """Go on; it counts as well when what it announced before has run out, as others do not know it after that."""
        server.process.send_signal(signal.SIGCONT)
        asyncio.get_running_loop().call_later(LEASE_S, self._frozen.discard, server.peer)


async def stall_of_one(client: AsyncClient, swarm: LocalSwarm, prompt: list[int], *, position: int) -> dict[str, Any]:
    """Kill a server of the chain of the only answer there is: seconds from that to the next token, and of a prefill."""
    stream = client.stream(prompt, max_new_tokens=NUM_TOKENS, ignore_end=True)
    async with aclosing(stream):
        tokens = []
        for _ in range(NUM_TOKENS // 2):
            piece = await anext(stream)
            tokens.append(piece.token)
        peers = [hop.peer for hop in piece.chain.hops]
        peer = (
            peers[position] if peers[position] != swarm.servers[0].peer else peers[1]
        )  # others join through the first
        lost = next(server for server in swarm.servers if server.has_joined and server.peer == peer)
        lost.process.kill()
        killed = time.monotonic()
        await anext(stream)
        stall_s = time.monotonic() - killed
        async for _ in stream:
            pass
    prefill = await client.generate([*prompt, *tokens], max_new_tokens=1)
    [new] = await asyncio.to_thread(swarm.start, lost.blocks, arguments=LEASE)
    await client.network.swarm.wait_for(
        lambda view: view.servers[new.peer].state is ServerState.ONLINE if new.peer in view.servers else False,
        timeout_s=60,
    )
    return {"position": peers.index(peer), "stall_s": stall_s, "prefill_s": prefill.first_token_s}


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Ask all questions in the storm, and look what is left when it is over."""
    storm, rng = Storm(), random.Random(SEED)
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalSwarm(MODEL, Path(folder), program=PROGRAM, is_warm=True) as swarm,
    ):
        await asyncio.to_thread(swarm.start, *SPANS, *SPANS, arguments=LEASE)
        async with await AsyncClient.connect(swarm.token) as client:
            prompts = [client.encode_chat([{"role": "user", "content": question}]) for question in QUESTIONS]
            expected = await asyncio.to_thread(greedy_tokens, prompts)
            await client.network.swarm.wait_for(lambda view: view.plan(client.model.digest) is not None, timeout_s=60)
            single = []
            for number in range(options.single):
                position = number % len(SPANS)
                single.append(await stall_of_one(client, swarm, prompts[number % len(prompts)], position=position))
                print(f"one server killed: {single[-1]}", flush=True)
            asked = itertools.count()

            async def work() -> None:
                while next(asked) < options.requests or storm.faults.total() < options.faults:
                    number = rng.randrange(len(prompts))
                    storm.answers.append(await ask(client, prompts[number], expected[number]))
                    if len(storm.answers) % 20 == 0:
                        print(f"{len(storm.answers)} answers, {storm.faults.total()} faults", flush=True)

            weather = asyncio.create_task(Weather(swarm, client, storm, gap_s=options.gap).blow())
            await asyncio.gather(*(work() for _ in range(options.workers)))
            storm.is_over = True
            await weather
            for server in swarm.servers:
                server.process.send_signal(signal.SIGCONT)
            alive = {s.peer for s in swarm.servers if s.has_joined and s.process.poll() is None}

            def is_calm(view: View) -> bool:
                servers = [server for server in view.servers.values() if server.peer in alive]
                return len(servers) == len(alive) and all(
                    (server.free_tokens, server.num_sessions, server.num_waiting) == (server.cache_tokens, 0, 0)
                    for server in servers
                )

            is_free = True
            try:
                await client.network.swarm.wait_for(is_calm, timeout_s=CALM_S)
            except TimeoutError:
                is_free = False
    return {"single": single, **figures_of(storm, is_free=is_free)}


def figures_of(storm: Storm, *, is_free: bool) -> dict[str, Any]:
    """Counts and stalls."""
    ended = Counter(answer["ended"] for answer in storm.answers)
    stalls_s = sorted(answer["stall_s"] for answer in storm.answers if "stall_s" in answer)
    errors = Counter(answer["error"] for answer in storm.answers if answer["ended"] == "error")
    return {
        "requests": len(storm.answers),
        "faults": dict(storm.faults),
        "recoveries": sum(answer["num_recoveries"] for answer in storm.answers),
        "right": ended["right"],
        "wrong": ended["wrong"],
        "hung": ended["hung"],
        "errors": dict(errors),
        "share_of_right": ended["right"] / max(1, len(storm.answers)),
        "median_stall_s": statistics.median(stalls_s) if stalls_s else None,
        "p99_stall_s": stalls_s[int(0.99 * (len(stalls_s) - 1))] if stalls_s else None,
        "is_free_afterwards": is_free,
        "answers": storm.answers,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200, help="requests asked at least")
    parser.add_argument("--faults", type=int, default=0, help="faults at least, for which requests go on")
    parser.add_argument("--single", type=int, default=9, help="servers killed one at a time, before the storm")
    parser.add_argument("--workers", type=int, default=6, help="requests at once")
    parser.add_argument("--gap", type=float, default=4.0, help="mean seconds between faults")
    parser.add_argument("--output", type=Path, default=PROJECT / "benchmarks" / "results" / "chaos.json")
    options = parser.parse_args()
    with measured_now():
        figures = uvloop.run(measure(options))
    about = circumstances("chaos", "torch", model=f"{MODEL}, float32", seed=SEED, workers=options.workers)
    keep(options.output, about, figures)
    print(json.dumps({name: figure for name, figure in figures.items() if name != "answers"}, indent=2))


if __name__ == "__main__":
    main()
