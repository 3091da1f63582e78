"""`chainserve bench`: when requests are sent, what is taken of their answers, and what the times come to."""

import argparse
import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from chainserve.errors import ChainserveError, UsageError
from chainserve.runtime.virtual import VirtualLoop
from chainserve_client.bench.command import check, measure, to_json, to_text
from chainserve_client.bench.run import arrival_times, run
from chainserve_client.bench.targets import Arrival, BenchError, api, read_event
from chainserve_client.bench.timing import Timed, percentile, summary


def options(**given: Any) -> argparse.Namespace:
    usual = {"token": None, "url": None, "api_key": None, "model": None, "rate": 1.0, "requests": 3, "input_words": 4}
    return argparse.Namespace(**usual | {"output_tokens": 5, "seed": 0, "json": False, "full_length": False} | given)


def test_requests_come_at_random_as_often_as_asked_and_the_same_by_the_same_seed() -> None:
    times = arrival_times(2000, rate=4.0, chance=random.Random(1))
    assert times == arrival_times(2000, rate=4.0, chance=random.Random(1))
    assert times[0] == 0
    assert times == sorted(times)
    assert 2000 / times[-1] == pytest.approx(4.0, rel=0.1)
    gaps = [after - before for before, after in pairwise(times)]
    deviation = summary([(gap - 0.25) ** 2 for gap in gaps])
    assert deviation is not None
    assert deviation.mean**0.5 == pytest.approx(0.25, rel=0.15)  # as of a Poisson process


def test_requests_are_sent_in_time_however_long_those_before_take() -> None:
    loop = VirtualLoop()

    async def slowly(index: int) -> AsyncIterator[Arrival]:
        await asyncio.sleep(10)
        yield Arrival(1)
        await asyncio.sleep(1)
        yield Arrival(2)
        if index == 1:
            raise ChainserveError("lost")
        yield Arrival(waited_s=4.0)

    first, second = loop.run_until_complete(run(slowly, [0.0, 2.0], clock=loop.time))
    loop.close()
    assert (first.sent_s, first.first_s, first.total_s, first.between_s) == (0.0, 10.0, 11.0, (1.0,))
    assert (first.num_tokens, first.waited_s, first.error) == (3, 4.0, None)
    assert (second.sent_s, second.first_s, second.total_s, second.error) == (2.0, 10.0, 11.0, "lost")


@pytest.mark.parametrize(("share", "expected"), [(0.95, 95), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_a_percentile_is_a_value_that_was_seen(share: float, expected: float) -> None:
    assert percentile([float(value) for value in range(1, 101)], share) == expected
    assert percentile([7.0], share) == 7.0


def test_of_no_values_there_is_no_summary() -> None:
    assert summary([]) is None


@asynccontextmanager
async def server_of(*lines: bytes, status: int = 200) -> AsyncIterator[tuple[str, list[Any]]]:
    """A server that answers every request with these lines; its URL, and what it was asked."""
    asked: list[Any] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append((dict(request.headers), await request.json()))
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        for line in lines:
            await response.write(line)
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1", asked
    finally:
        await runner.cleanup()


def event(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n"


async def test_a_server_of_the_api_is_asked_as_a_stream_and_timed() -> None:
    first = b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
    async with server_of(first, event("a"), event("b"), event("c"), b"data: [DONE]\n\n") as (url, asked):
        given = options(url=url, model="m", rate=1000.0, api_key="k", full_length=True)
        results = await measure(given)
    assert [(result.num_tokens, len(result.between_s), result.error) for result in results] == [(3, 2, None)] * 3
    headers, body = asked[0]
    assert headers["Authorization"] == "Bearer k"
    assert (body["model"], body["max_tokens"], body["stream"], body["ignore_eos"]) == ("m", 5, True, True)
    prompts = {body["messages"][0]["content"] for _, body in asked}
    assert prompts == {f"{index}. the river runs past" for index in range(3)}
    text = to_text(results)
    assert "3 of 3 requests were answered" in text
    assert "wait for a place" not in text  # nobody told
    content = json.loads(to_json(results, given))
    assert content["num_answered"] == len(content["requests"]) == 3
    assert content["summary"]["waited_s"] is None
    assert content["summary"]["first_s"]["max"] > 0


@pytest.mark.parametrize(
    ("lines", "status", "error"),
    [
        ((b"no room",), 503, "HTTP 503: no room"),
        ((event("a"), b'data: {"error": {"message": "lost"}}\n\n'), 200, "lost"),
        ((b"data: nonsense\n\n",), 200, "Expecting value"),
        ((b"data: []\n\n",), 200, "no object"),
    ],
)
async def test_what_goes_wrong_is_a_result_too(lines: tuple[bytes, ...], status: int, error: str) -> None:
    async with server_of(*lines, status=status) as (url, _):
        results = await measure(options(url=url, model="m", rate=1000.0))
    assert all(error in (result.error or "") for result in results)
    text = to_text(results)
    assert "0 of 3 requests were answered" in text
    assert text.count("failed: ") == 1


async def test_a_server_that_is_not_there_is_a_result_too() -> None:
    async with aiohttp.ClientSession() as http:
        target = api(http, "http://127.0.0.1:9/v1", "x", model="m", max_tokens=1)
        with pytest.raises(BenchError, match="Cannot connect"):
            await anext(aiter(target(0)))


@pytest.mark.parametrize(
    "line", [b"", b": comment", b"data: [DONE]\n", b'data: {"choices": []}', b'data: {"choices": [{"delta": null}]}']
)
def test_lines_without_text_are_no_tokens(line: bytes) -> None:
    assert read_event(line) == ""


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"token": "t", "url": "u", "model": "m"},
        {"url": "u"},
        {"token": "t", "rate": 0.0},
        {"token": "t", "rate": float("nan")},
        {"token": "t", "requests": 0},
        {"token": "t", "output_tokens": 0},
    ],
)
def test_what_cannot_be_run_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        check(options(**wrong))


def test_what_failed_counts_for_no_times() -> None:
    results = [
        Timed(sent_s=0.0, first_s=1.0, total_s=2.0, num_tokens=4),
        Timed(sent_s=1.0, first_s=5.0, total_s=9.0, num_tokens=1, error="lost"),
    ]
    text = to_text(results)
    assert "1.00 s" in text
    assert "5.00 s" not in text
    assert "1 of 2 requests were answered, 0.5 tokens/s" in text
