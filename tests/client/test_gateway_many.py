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


NUM_READERS = 3
NUM_TOKENS = 100


@pytest.mark.slow
async def test_readers_that_are_slow_do_not_hold_up_others() -> None:
    """A stream that begins behind slow readers ends while all of these have most of theirs before them."""
    async with served({"a": Span(0, 4), "b": Span(4, 8)}) as swarm, gateway_over(swarm) as http:
        fields = asking(stream=True, max_tokens=NUM_TOKENS, logprobs=True, top_logprobs=20)

        async def read(pause_s: float, begun: asyncio.Event) -> None:
            async with http.post("/v1/chat/completions", json=fields, read_bufsize=2048) as response:
                while await response.content.read(2048):
                    begun.set()
                    await asyncio.sleep(pause_s)

        begun = [asyncio.Event() for _ in range(NUM_READERS)]
        others = [asyncio.create_task(read(0.2, event)) for event in begun]
        await asyncio.gather(*(event.wait() for event in begun))
        await read(0.0, asyncio.Event())
        num_done = sum(other.done() for other in others)
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        assert num_done == 0
