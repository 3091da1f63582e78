"""Answers that survive their servers: the same tokens as without the fault, after a pause."""

import asyncio
import signal

import pytest
from bundled import MakeSwarm, Reference

from chainserve_client import AsyncClient
from chainserve_client.generation import Generation
from chainserve_server.local import LocalSwarm

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]

QUESTION = "Explain photosynthesis to a child."
NUM_TOKENS = 32


async def broken_off(
    client: AsyncClient, swarm: LocalSwarm, prompt: list[int], *, position: int, how: signal.Signals, after: int
) -> Generation:
    """An answer whose server at `position` of its chain gets a signal after so many tokens."""
    stream = client.stream(prompt, max_new_tokens=NUM_TOKENS)
    for _ in range(after):
        piece = await anext(stream)
    peer = piece.chain.hops[position].peer
    [server] = [server for server in swarm.servers if server.peer == peer]
    server.process.send_signal(how)
    async for _ in stream:
        pass
    return stream.result


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP, signal.SIGINT], ids=["killed", "frozen", "leaving"])
@pytest.mark.parametrize("position", [0, 1, 2], ids=["head", "middle", "tail"])
async def test_an_answer_goes_on_without_a_server_that_goes(
    how: signal.Signals, position: int, make_swarm: MakeSwarm, reference: Reference
) -> None:
    swarm = await asyncio.to_thread(make_swarm, "0:10", "10:20", "20:30", "0:10", "10:20", "20:30")
    prompt = reference.prompt(QUESTION)
    async with await AsyncClient.connect(swarm.token) as client:
        answer = await broken_off(client, swarm, prompt, position=position, how=how, after=5)
    assert answer.tokens == reference.greedy(prompt, NUM_TOKENS)
