"""Many streams at once."""

import asyncio

import aiohttp
import pytest
from gateway_in_memory import asking, events_of, gateway_over, text_of
from served_in_memory import served

from chainserve.types import Span

NUM_STREAMS = 200


@pytest.mark.slow
async def test_two_hundred_streams_run_at_once_and_none_is_lost() -> None:
    async with served({"a": Span(0, 4), "b": Span(4, 8)}) as swarm, gateway_over(swarm) as http:
        running, most, all_begun = 0, 0, asyncio.Event()

        async def stream() -> str:
            nonlocal running, most
            async with http.post("/v1/chat/completions", json=asking(stream=True, max_tokens=30)) as response:
                running += 1
                most = max(most, running)
                if running == NUM_STREAMS:
                    all_begun.set()
                await all_begun.wait()
                text = text_of(await events_of(response))
            running -= 1
            return text

        async with asyncio.timeout(50):
            texts = await asyncio.gather(*(stream() for _ in range(NUM_STREAMS)))
        assert most == NUM_STREAMS
        assert {len(text) for text in texts} == {30}
        assert len(set(texts)) == 1
        async with http.get("/healthz", timeout=aiohttp.ClientTimeout(total=2)) as response:
            assert response.status == 200
        swarm.check_free()
