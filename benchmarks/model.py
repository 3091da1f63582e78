"""The model against reality: what the simulator says of requests on a small live swarm beside what they took.

    python benchmarks/model.py [--requests N] [--rate R] [--only POLICY] [--output FILE]

Three servers that sleep where they would compute (model_server.py), one of them slower and larger, all of them and
the client ONE_WAY_MS apart; Poisson arrivals; per policy of placement and dispatch one swarm. So the figures say
whether the simulator knows what the live system does, and nothing of how fast this machine is.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from circumstances import PROJECT, circumstances, keep
from far_server import move_away
from network.prediction import Seen, Ways, look, predict, software_s
from sections.model import section

from chainserve.simulator.tokens.run import CLIENT
from chainserve.simulator.workloads import Requests, make_requests, poisson_arrivals
from chainserve.swarm.records import ServerState
from chainserve.types import PeerId
from chainserve_client import AsyncClient, Generation
from chainserve_server.local import LocalSwarm

MODEL = "smollm2-135m"
HIDDEN_BYTES = 576 * 4
MEMORY = ("760MB", "420MB", "420MB")
SLOWNESS = (3.0, 1.0, 1.0)
ONE_WAY_MS = 10.0
SLOT_TOKENS = 128
PETALS_TOKENS = 2 * SLOT_TOKENS
"""As many slots per block as PETALS allots to a model of 4096 tokens at 2048 per session."""
POLICIES = {
    "petals": ("petals", "petals"),
    "bprr": ("bprr", "bprr"),
    "whole-model + jffc": ("whole-model", "jffc"),
    "gbp-cr + gca + jffc": ("gbp-cr", "jffc"),
}
INPUT_TOKENS, OUTPUT_TOKENS = (16, 128), (4, 24)
VOCABULARY = (1000, 40_000)
NUM_ALONE, ALONE_TOKENS = 4, 24
SETTLE_S = 120.0
SEED = 0


@asynccontextmanager
async def settled(placement: str, dispatch: str, *, rate: float) -> AsyncIterator[AsyncClient]:
    """A client of a swarm that is where this rule wants it."""
    mean_in, mean_out = (sum(ends) / 2 for ends in (INPUT_TOKENS, OUTPUT_TOKENS))
    options = ("--bench-placement", placement, "--bench-load", f"{rate},{mean_in},{mean_out}",
               "--bench-slot", str(SLOT_TOKENS), "--bench-petals-cache", str(PETALS_TOKENS))  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        environment = {"ONE_WAY_MS": str(ONE_WAY_MS), "OBSERVED": name, "SLOWNESS": ",".join(map(str, SLOWNESS))}
        program = [str(PROJECT / "benchmarks" / "model_server.py")]
        with LocalSwarm(MODEL, Path(name), environment=environment, program=program) as swarm:
            for memory in MEMORY:
                await asyncio.to_thread(swarm.launch, "auto", ("--memory", memory, *options))
            async with await AsyncClient.connect(swarm.token) as client, asyncio.timeout(SETTLE_S):
                while not await is_settled(client):  # noqa: ASYNC110 (other processes offer no event to wait on)
                    await asyncio.sleep(0.2)
            async with await AsyncClient.connect(swarm.token, dispatch=dispatch) as client:
                yield client


async def is_settled(client: AsyncClient) -> bool:
    """Whether all servers take part in a plan and are where it wants them."""
    plan, servers = await client.plan(), client.network.swarm.view.servers
    if plan is None or not plan.is_settled or plan.shortage or len(plan.inputs.servers) != len(MEMORY):
        return False
    online = {peer: server.span for peer, server in servers.items() if server.state is ServerState.ONLINE}
    return online == plan.placement.spans and all(server.epoch == plan.epoch for server in servers.values())


async def ask(client: AsyncClient, num_input: int, num_output: int, *, rng: np.random.Generator) -> Generation:
    """One request of random tokens."""
    prompt = rng.integers(*VOCABULARY, size=num_input).tolist()
    return await client.generate(prompt, max_new_tokens=num_output, ignore_end=True, max_drafts=0)


async def replay(client: AsyncClient, requests: Requests, *, rng: np.random.Generator) -> list[Generation]:
    """All requests at their times."""
    began_s = time.monotonic()

    async def at(arrival_s: float, num_input: int, num_output: int) -> Generation:
        await asyncio.sleep(max(0.0, began_s + arrival_s - time.monotonic()))
        return await ask(client, num_input, num_output, rng=rng)

    tokens = zip(requests.input_tokens.tolist(), requests.output_tokens.tolist(), strict=True)
    return await asyncio.gather(*(at(s, *pair) for s, pair in zip(requests.arrival_s.tolist(), tokens, strict=True)))


def ways_of(seen: Seen, message_s: float) -> Ways:
    """All peers are equally far."""
    peers = [CLIENT, *(server.peer for server in seen.servers)]
    trips_s = {(a, b): 2 * ONE_WAY_MS / 1000 for a in peers for b in peers if a < b}
    return Ways(round_trip_s=trips_s, message_s=message_s)


async def measure(placement: str, dispatch: str, requests: Requests) -> dict[str, Any]:
    """Means of what was measured and predicted, and every request."""
    rng = np.random.default_rng(SEED)
    async with settled(placement, dispatch, rate=requests.rate) as client:
        alone = [await ask(client, 2, ALONE_TOKENS, rng=rng) for _ in range(NUM_ALONE)][1:]
        near = await look(client, hidden_bytes=HIDDEN_BYTES)
        message_s = software_s(alone, ways_of(near, 0.0))
        answers = await replay(client, requests, rng=rng)
        seen = await look(client, hidden_bytes=HIDDEN_BYTES)
        predicted = predict(dispatch, requests, seen, ways_of(seen, message_s), seed=SEED)
    measured = {
        "response_s": [answer.total_s for answer in answers],
        "waiting_s": [answer.waited_s for answer in answers],
        "service_s": [answer.total_s - answer.waited_s for answer in answers],
        "first_token_s": [answer.first_token_s for answer in answers],
    }
    means = {name: statistics.fmean(values) for name, values in measured.items()}
    said = predicted.to_json()
    spans = {PeerId(peer)[-6:]: str(span) for peer, span in seen.plan.placement.spans.items()}
    return {
        "measured": {"mean": means, "requests": measured},
        "predicted": said,
        "off_by": said["mean"]["response_s"] / means["response_s"] - 1,
        "message_ms": 1000 * message_s,
        "placement": spans,
        "num_chains": len(seen.plan.chains),
        "chains_used": sorted({str(answer.chain) for answer in answers}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--rate", type=float, default=2.0, help="requests per second")
    parser.add_argument("--only", choices=POLICIES)
    parser.add_argument("--output", type=Path, default=PROJECT / "benchmarks" / "results" / "model.json")
    options = parser.parse_args()
    rng = np.random.default_rng(SEED)
    requests = make_requests(
        poisson_arrivals(options.requests, rate=options.rate, rng=rng),
        input_tokens=rng.integers(INPUT_TOKENS[0], INPUT_TOKENS[1] + 1, options.requests),
        output_tokens=rng.integers(OUTPUT_TOKENS[0], OUTPUT_TOKENS[1] + 1, options.requests),
    )
    move_away(ONE_WAY_MS / 1000)
    figures = {}
    for name, (placement, dispatch) in POLICIES.items():
        if options.only in (None, name):
            figures[name] = uvloop.run(measure(placement, dispatch, requests))
            print(name, {k: v for k, v in figures[name].items() if k not in ("measured", "predicted")}, flush=True)
            print("  measured ", figures[name]["measured"]["mean"], flush=True)
            print("  predicted", figures[name]["predicted"]["mean"], figures[name]["predicted"]["bounds_s"], flush=True)
    about = circumstances(
        "model",
        "torch",
        model=f"{MODEL}, blocks that sleep",
        seed=SEED,
        requests=options.requests,
        rate=options.rate,
        one_way_ms=ONE_WAY_MS,
        memory=list(MEMORY),
        slowness=list(SLOWNESS),
        slot_tokens=SLOT_TOKENS,
    )
    report = keep(options.output, about, figures)
    print(section(report))


if __name__ == "__main__":
    main()
