"""What an answer has taken of each server of its chain, as they have measured it."""

import asyncio
import time
from typing import Any

import pytest
from gateway_in_memory import asking, gateway_over
from served_in_memory import MODEL, MemorySwarmOfServers, served, text_bundle

from chainserve.protocol.messages import Activations
from chainserve.types import Span
from chainserve_client.client import AsyncClient
from chainserve_client.text_model import TextModel

THREE = {"a": Span(0, 3), "b": Span(3, 6), "c": Span(6, 8)}
SLEEP_S = 0.02


def slow_down(swarm: MemorySwarmOfServers, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each forward of a server take a little longer."""
    runner = swarm.servers[name].runner
    forward = runner.forward

    def slow(*arguments: Any) -> Any:
        time.sleep(SLEEP_S)
        return forward(*arguments)

    monkeypatch.setattr(runner, "forward", slow)


async def test_each_server_tells_what_it_has_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(THREE) as swarm:
        slow_down(swarm, "b", monkeypatch)
        network = await swarm.client()
        client = AsyncClient(network, MODEL, TextModel(MODEL.name, text_bundle(end_tokens=())))
        answer = await client.generate("hello", max_new_tokens=10, max_drafts=0)
        assert [each.peer for each in answer.hop_times] == [hop.peer for hop in answer.chain.hops]
        taken = dict(zip("abc", answer.hop_times, strict=True))
        assert 10 * SLEEP_S <= taken["b"].compute_s <= answer.total_s
        assert taken["a"].compute_s < taken["b"].compute_s > taken["c"].compute_s
        together = sum(each.queue_s + each.compute_s for each in answer.hop_times)
        assert 0 < together <= answer.total_s  # the rest is links and the client
        several = [client.generate("hello", max_new_tokens=10, max_drafts=0, seed=seed) for seed in range(4)]
        for busy in await asyncio.gather(*several):
            assert sum(each.queue_s + each.compute_s for each in busy.hop_times) <= busy.total_s
        heads = [message for message in swarm.servers["b"].received if isinstance(message, Activations)]
        assert {len(step.spent) for message in heads for step in message.steps} == {1}


async def test_the_times_are_those_of_the_chain_that_it_ended_on() -> None:
    async with served({"a": Span(0, 8), "b": Span(0, 8)}) as swarm:
        swarm.plan(("a", 4, 1.0), ("b", 4, 2.0))
        client = AsyncClient(await swarm.client(), MODEL, TextModel(MODEL.name, text_bundle(end_tokens=())))
        stream = client.stream("hello", max_new_tokens=30)
        async for piece in stream:
            if piece.chain == swarm.chain("a") and not swarm.servers["a"].is_dead:
                await swarm.servers["a"].die()
        assert [each.peer for each in stream.result.hop_times] == [swarm.servers["b"].peer]


async def test_the_gateway_shows_them() -> None:
    async with served(THREE) as swarm, gateway_over(swarm) as http:
        async with http.post("/v1/chat/completions", json=asking(chainserve=True)) as response:
            [choice] = (await response.json())["choices"]
            shown = response.headers["x-chainserve-hops"].split(", ")
        hops = choice["chainserve"]["hops"]
        assert [hop["peer"] for hop in hops] == [made.peer for made in swarm.servers.values()]
        assert all(hop["compute_s"] >= 0 for hop in hops)
        assert [each.split()[0] for each in shown] == [hop["peer"] for hop in hops]
