"""Servers that compute in bfloat16, as GPUs and newer processors do: answers close to the model's own in float32."""

import asyncio
from pathlib import Path

import pytest
import torch
from bundled import MODEL, QUESTIONS, MakeSwarm, Reference

from chainserve.models.linear import default_dtype
from chainserve_client import AsyncClient
from chainserve_server.local import LocalSwarm

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

NEW_TOKENS = 24


async def test_nearly_every_token_is_the_likeliest_in_float32_too(make_swarm: MakeSwarm, reference: Reference) -> None:
    swarm = await asyncio.to_thread(make_swarm, "0:12", "12:30", arguments=("--dtype", "bfloat16"))
    prompts = [reference.prompt(question) for question in QUESTIONS]
    async with await AsyncClient.connect(swarm.token) as client:
        answers = await asyncio.gather(*(client.generate(prompt, max_new_tokens=NEW_TOKENS) for prompt in prompts))
    num_same = num_tokens = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        likeliest = reference.likeliest(prompt, answer.tokens)
        num_same += sum(token == best for token, best in zip(answer.tokens, likeliest, strict=True))
        num_tokens += len(answer.tokens)
    assert num_same > 0.95 * num_tokens
    for server in swarm.servers:
        assert "bfloat16 on cpu" in server.output()


def test_servers_compute_in_what_their_device_is_fast_at(tmp_path: Path) -> None:
    with LocalSwarm(MODEL, tmp_path, is_warm=True, dtype=None) as swarm:
        online = swarm.launch("0:2").wait_for("is online")
    assert f"{str(default_dtype(torch.device('cpu'))).removeprefix('torch.')} on cpu" in online
