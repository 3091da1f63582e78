"""Servers that each use all cores of a machine: answers are as ever, also while one of them stands still."""

import asyncio
import os

import pytest
from bundled import QUESTIONS, MakeSwarm, Reference

from chainserve.models.profiles import default_folder
from chainserve.runtime.turns import try_lock
from chainserve_client import AsyncClient

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

NEW_TOKENS = 8


async def test_answers_are_the_models_own_whoever_holds_the_turn(
    make_swarm: MakeSwarm, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", str(os.cpu_count()))
    swarm = await asyncio.to_thread(make_swarm, "0:15", "15:30")
    prompts = [reference.prompt(question) for question in QUESTIONS[:4]]
    expected = [list(reference.greedy(prompt, NEW_TOKENS)) for prompt in prompts]
    async with await AsyncClient.connect(swarm.token) as client:

        async def answers() -> list[list[int]]:
            streams = (client.generate(prompt, max_new_tokens=NEW_TOKENS) for prompt in prompts)
            return [list(answer.tokens) for answer in await asyncio.gather(*streams)]

        assert await answers() == expected
        lock = default_folder().parent / "computing-cpu"
        assert lock.exists(), "servers took no turns"
        with lock.open("wb") as file:  # as a server that is frozen in the middle of a forward
            while not try_lock(file):
                await asyncio.sleep(0)
            assert await answers() == expected
