"""Servers that send activations on in 8 bits: answers close to the model's own, and what was lost is said."""

import asyncio
import re
import signal

import pytest
from bundled import QUESTIONS, MakeSwarm, Reference

from chainserve_client import AsyncClient

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

NEW_TOKENS = 8


async def test_answers_begin_as_the_models_own_and_the_loss_is_said(
    make_swarm: MakeSwarm, reference: Reference
) -> None:
    swarm = await asyncio.to_thread(make_swarm, "0:10", "10:20", "20:30", arguments=("--wire", "int8"))
    prompts = [reference.prompt(question) for question in QUESTIONS]
    async with await AsyncClient.connect(swarm.token) as client:
        answers = await asyncio.gather(*(client.generate(prompt, max_new_tokens=NEW_TOKENS) for prompt in prompts))
    expected = [reference.greedy(prompt, NEW_TOKENS) for prompt in prompts]
    num_same = sum(answer.tokens[0] == tokens[0] for answer, tokens in zip(answers, expected, strict=True))
    assert num_same >= len(prompts) * 0.8
    for server in swarm.servers:
        assert "sent on in 8 bits" in server.output()
    for server in swarm.servers[:2]:  # the tail sends none on
        server.process.send_signal(signal.SIGINT)
        said = await asyncio.to_thread(server.wait_for, "root mean square")
        [percent] = re.findall(r"off by (\S+)% \(root mean square\)", said)
        assert 0.1 < float(percent) < 2
