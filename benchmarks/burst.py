"""A burst of requests from several client processes on chains that are soon full, beside the simulator's JFFC.

    python benchmarks/burst.py [--requests N] [--clients N] [--output FILE]

Three servers hold the whole model, each with room for two sessions of 2,048 tokens. Every request asks for such a
place, generates some tokens and gives it back. Afterwards the simulator is given the same arrivals and the service
times as they were, and one central queue: the ratio of mean waiting times says what it costs to have no centre.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from circumstances import PROJECT, circumstances, keep, measured_now

from chainserve.planning.dispatch import JoinFastestFree
from chainserve.planning.values import PlannedChain
from chainserve.simulator.chains import ChainScheduler
from chainserve.simulator.engine import run
from chainserve.simulator.workloads import make_requests
from chainserve.swarm.view import View
from chainserve_client import AsyncClient
from chainserve_client.parameters import Parameters
from chainserve_server.local import LocalSwarm

MODEL = "smollm2-135m"
NUM_SERVERS, CAPACITY, SLOT_TOKENS = 3, 2, 2048
MEMORY = "805MB"  # all weights, activations, and cache for two slots but not for three
BURST_S = 2.0
"""Within which all requests arrive."""
PLAN_S = 120.0
SEED = 0


async def one_request(client: AsyncClient, num_tokens: int) -> dict[str, Any]:
    """Ask for a place, generate, give it back; all times by the machine's monotonic clock."""
    asked_s = time.monotonic()
    prompt = client.encode("Once upon a time")
    # A whole slot each, so that a chain's capacity is what the plan says.
    parameters = Parameters(max_new_tokens=SLOT_TOKENS - len(prompt) + 1, ignore_end=True)
    session = await client.open_tokens(prompt, parameters)
    started_s = time.monotonic()
    tokens: list[int] = []
    async with aclosing(session.tokens()) as choices:
        async for choice in choices:
            tokens += choice.ids
            if len(tokens) >= num_tokens:
                break
    ended_s = time.monotonic()
    await session.close()
    return {
        "asked_s": asked_s,
        "started_s": started_s,
        "ended_s": ended_s,
        "chain": str(session.chain),
        "tokens": tokens[:num_tokens],
        "num_recoveries": len(session.recoveries),
    }


async def run_client(options: argparse.Namespace) -> None:
    """One client process: say 'ready', read when to begin, say what became of each request."""
    rng = random.Random(options.seed)
    async with await AsyncClient.connect(options.client) as client:
        print("ready", flush=True)
        begin_s = float(await asyncio.to_thread(sys.stdin.readline))

        async def request() -> dict[str, Any]:
            await asyncio.sleep(begin_s + rng.uniform(0, BURST_S) - time.monotonic())
            return await one_request(client, rng.randint(8, 24))

        for done in await asyncio.gather(*(request() for _ in range(options.requests))):
            print(json.dumps(done), flush=True)


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Start servers and clients, let them loose, and return what became of every request."""
    with tempfile.TemporaryDirectory() as folder, LocalSwarm(MODEL, Path(folder)) as swarm:
        await asyncio.to_thread(swarm.start, *["0:30"] * NUM_SERVERS, arguments=("--memory", MEMORY))
        async with await AsyncClient.connect(swarm.token) as client:

            def is_ready(view: View) -> bool:
                """Whether the heads know their places."""
                record = view.plan(client.model.digest)
                if record is None or record.body is None:
                    return False
                capacities = [chain.capacity for chain in record.open(record.body).chains]
                return capacities == [CAPACITY] * NUM_SERVERS and all(
                    server.epoch == record.epoch for server in view.servers.values()
                )

            await client.network.swarm.wait_for(is_ready, timeout_s=PLAN_S)
            plan = await client.plan()
            assert plan is not None
        rows = await drive_clients(options, swarm.token)
        async with await AsyncClient.connect(swarm.token) as client:
            view = await client.network.swarm.wait_for(
                lambda view: all(s.free_tokens == s.cache_tokens for s in view.servers.values()), timeout_s=10
            )
    begin_s = min(row["asked_s"] for row in rows)
    for row in rows:
        row |= {name: row[name] - begin_s for name in ("asked_s", "started_s", "ended_s")}
    rows.sort(key=lambda row: row["asked_s"])
    waited_s = [row["started_s"] - row["asked_s"] for row in rows]
    simulated_s = central_waiting_s(rows, list(plan.chains))
    return {
        "requests": len(rows),
        "chains": [{"chain": str(chain.chain), "capacity": chain.capacity} for chain in plan.chains],
        "mean_waiting_s": float(np.mean(waited_s)),
        "p99_waiting_s": float(np.percentile(waited_s, 99)),
        "simulated_mean_waiting_s": float(np.mean(simulated_s)),
        "simulated_p99_waiting_s": float(np.percentile(simulated_s, 99)),
        "relative_mean_waiting": float(np.mean(waited_s) / np.mean(simulated_s)),
        "is_free_afterwards": bool(view.servers),
        "rows": rows,
    }


async def drive_clients(options: argparse.Namespace, token: str) -> list[dict[str, Any]]:
    """Run all client processes at once; what they say of their requests."""
    command = [sys.executable, __file__, "--client", token, "--requests", str(options.requests // options.clients)]
    pipe = asyncio.subprocess.PIPE
    clients = [
        await asyncio.create_subprocess_exec(*command, "--seed", str(SEED + number), stdin=pipe, stdout=pipe)
        for number in range(options.clients)
    ]
    try:
        for client in clients:
            assert client.stdout is not None
            assert await client.stdout.readline() == b"ready\n"
        begin = f"{time.monotonic() + 0.5}\n".encode()
        outputs = await asyncio.gather(*(client.communicate(begin) for client in clients))
    finally:
        for client in clients:
            if client.returncode is None:
                client.kill()
                await client.wait()
    return [json.loads(line) for output, _ in outputs for line in output.splitlines()]


def central_waiting_s(rows: list[dict[str, Any]], chains: list[PlannedChain]) -> list[float]:
    """How long the same requests, with the service times that they had, wait in one central queue."""
    requests = make_requests([row["asked_s"] for row in rows])
    service_s = [row["ended_s"] - row["started_s"] for row in rows]
    policy = JoinFastestFree([chain.rate for chain in chains], [chain.capacity for chain in chains])
    outcome = run(requests, ChainScheduler(policy, chains, lambda request, _chain: service_s[request]))
    waiting_s: list[float] = outcome.waiting_s.tolist()
    return waiting_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--output", type=Path, default=PROJECT / "benchmarks" / "results" / "burst.json")
    parser.add_argument("--client", help=argparse.SUPPRESS)  # a token: be one of the clients
    parser.add_argument("--seed", type=int, default=SEED, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client is not None:
        uvloop.run(run_client(options))
        return
    with measured_now():
        figures = uvloop.run(measure(options))
    about = circumstances("burst", "torch", model=f"{MODEL}, float32", seed=SEED, clients=options.clients)
    keep(options.output, about, figures)
    print(json.dumps({name: figure for name, figure in figures.items() if name != "rows"}, indent=2))


if __name__ == "__main__":
    main()
