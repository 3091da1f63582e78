"""Answers that survive their servers: the same tokens as without the fault, and in the end nothing is left behind."""

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bundled import MakeSwarm, Reference

from chainserve.swarm.view import View
from chainserve_client import AsyncClient

pytestmark = pytest.mark.process

QUESTION = "Explain photosynthesis to a child."
NUM_TOKENS = 24
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def all_free(view: View) -> bool:
    return all(
        (server.free_tokens, server.num_sessions, server.num_waiting) == (server.cache_tokens, 0, 0)
        for server in view.servers.values()
    )


@pytest.mark.timeout(240)
async def test_an_answer_goes_on_without_a_server_that_dies_freezes_or_leaves(
    make_swarm: MakeSwarm, reference: Reference
) -> None:
    swarm = await asyncio.to_thread(make_swarm, *["0:15", "15:30"] * 3)
    prompt = reference.prompt(QUESTION)
    expected = reference.greedy(prompt, NUM_TOKENS)
    gone: set[str] = set()
    async with await AsyncClient.connect(swarm.token) as client:
        for position, how, sampled in (
            (0, signal.SIGKILL, False),
            (1, signal.SIGKILL, True),
            (1, signal.SIGSTOP, False),
            (0, signal.SIGINT, False),
        ):
            options: dict[str, Any] = {"temperature": 1.5, "seed": 7} if sampled else {}
            undisturbed = (await client.generate(prompt, max_new_tokens=NUM_TOKENS, **options)).tokens
            assert sampled or undisturbed == expected
            stream = client.stream(prompt, max_new_tokens=NUM_TOKENS, **options)
            for _ in range(5):
                piece = await anext(stream)
            peer = piece.chain.hops[position].peer
            [server] = [server for server in swarm.servers if server.peer == peer]
            server.process.send_signal(how)
            gone.add(peer)
            async for _ in stream:
                pass
            assert stream.result.tokens == undisturbed
            assert gone.isdisjoint(hop.peer for hop in stream.result.chain.hops)
            assert [recovery.peer for recovery in stream.result.recoveries] == ([] if how is signal.SIGINT else [peer])
            after = await client.generate(prompt, max_new_tokens=2)  # at once, though its record may still count
            assert gone.isdisjoint(hop.peer for hop in after.chain.hops)

        def rest_is_free(view: View) -> bool:
            rest = {peer: server for peer, server in view.servers.items() if peer not in gone}
            return len(rest) == 2 and all_free(View(rest))

        await client.network.swarm.wait_for(rest_is_free, timeout_s=20)


def figures_of(tmp_path: Path, program: str, *options: str) -> dict[str, Any]:
    """What a benchmark finds out."""
    output = tmp_path / "report.json"
    command = [sys.executable, str(BENCHMARKS / program), "--output", str(output), *options]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    figures: dict[str, Any] = json.loads(output.read_text())["figures"]
    return figures


@pytest.mark.timeout(600)
def test_a_burst_is_served_in_order_within_the_places_there_are(tmp_path: Path) -> None:
    figures = figures_of(tmp_path, "burst.py")
    rows = figures["rows"]
    assert figures["is_free_afterwards"]
    assert len(rows) == 40  # every request once
    assert len({tuple(row["tokens"][:8]) for row in rows}) == 1  # all had the same prompt
    assert not any(row["num_recoveries"] for row in rows)
    for chain in {row["chain"] for row in rows}:
        edges = [(row["started_s"], 1) for row in rows if row["chain"] == chain]
        edges += [(row["ended_s"], -1) for row in rows if row["chain"] == chain]
        held = most = 0
        for _, change in sorted(edges):
            held += change
            most = max(most, held)
        assert most <= 2, chain
    late_s = 1.0  # for messages, on a machine where all is slow
    for first in rows:
        for second in rows:
            if first["asked_s"] + late_s < second["asked_s"]:
                assert first["started_s"] <= second["started_s"] + late_s, (first, second)


@pytest.mark.timeout(900)
def test_every_request_ends_well_or_with_a_named_error_while_servers_fail(tmp_path: Path) -> None:
    figures = figures_of(tmp_path, "chaos.py", "--single", "0", "--requests", "100", "--faults", "10")
    report = json.dumps({name: figure for name, figure in figures.items() if name != "answers"}, indent=2)
    assert figures["requests"] >= 100
    assert (figures["wrong"], figures["hung"]) == (0, 0), report
    assert figures["share_of_right"] >= 0.99, report + json.dumps(
        [answer for answer in figures["answers"] if answer["ended"] != "right"], indent=2
    )
    assert figures["is_free_afterwards"], report
    assert sum(figures["faults"].values()) >= 10, report
