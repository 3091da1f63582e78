"""A benchmark of servers of OpenAI's API that are none of ours, and of our own gateway."""

import asyncio
import json

import aiohttp
import pytest
from api_stub import DONE, event, stub, usage
from bench_asked import measured, of_url
from gateway_in_memory import gateway_over
from served_in_memory import MODEL, served

from chainserve.types import Span
from chainserve_client.bench.endpoint import BenchError, Endpoint, read_arrival, read_event
from chainserve_client.bench.load import Due
from chainserve_client.bench.progress import Progress
from chainserve_client.bench.report import to_content, to_text
from chainserve_client.bench.run import run

FIRST = b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
ANSWER = (FIRST, event("a"), event("b"), event("c"), event(finish_reason="stop"))


async def test_a_server_is_asked_as_a_stream_and_timed() -> None:
    async with stub(*ANSWER, DONE) as server:
        result = await measured(of_url(server.url, "--api-key", "k", "--full-length"))
    assert [(one.num_tokens, len(one.between_s), one.error) for one in result.results] == [(3, 2, None)] * 3
    assert all("k" in headers["Authorization"] for headers in server.headers)
    body = server.bodies[0]
    assert (body["model"], body["max_tokens"], body["stream"], body["ignore_eos"]) == ("m", 5, True, True)
    assert "chainserve" not in body  # it has not said that it is one of ours
    assert len({body["messages"][0]["content"] for body in server.bodies}) == 3
    text = to_text(result)
    assert "3 of 3 requests were answered" in text
    assert "waiting" not in text  # nobody told
    content = to_content(result, {})
    assert content["summary"]["waited_s"] is None
    assert content["summary"]["first_s"]["max"] > 0
    assert content["chains"] == []


async def test_tokens_are_counted_by_the_server_if_it_does() -> None:
    async with stub(*ANSWER, usage(17, 5), DONE) as server:
        result = await measured(of_url(server.url))
    assert {(one.num_input_tokens, one.num_tokens) for one in result.results} == {(17, 5)}


async def test_a_server_that_knows_no_stream_options_is_asked_without() -> None:
    async with stub(*ANSWER, DONE, refuses=["stream_options"]) as server:
        result = await measured(of_url(server.url))
    assert [one.error for one in result.results] == [None] * 3
    assert {one.num_input_tokens for one in result.results} == {4}  # the words that were sent
    assert sum("stream_options" not in body for body in server.bodies) == 3


async def test_a_server_that_refuses_something_else_is_not_asked_for_ever() -> None:
    async with stub(status=400) as server:
        result = await measured(of_url(server.url))
    assert all((one.error or "").startswith("HTTP 400") for one in result.results)
    assert len(server.bodies) <= 6


@pytest.mark.parametrize(
    ("lines", "more", "error"),
    [
        ((b"no room",), {"status": 503}, "HTTP 503: no room"),
        ((event("a"), b'data: {"error": {"message": "lost"}}\n\n'), {}, "lost"),
        ((b"data: nonsense\n\n",), {}, "Expecting value"),
        ((b"data: []\n\n",), {}, "no object"),
        ((FIRST, event("a")), {}, "broke off"),
        ((b'{"choices": []}',), {"content_type": "application/json"}, "application/json instead of a stream"),
        ((event(chainserve={"route": 3}), DONE), {}, "makes no sense"),
    ],
)
async def test_what_goes_wrong_is_a_result_too(lines: tuple[bytes, ...], more: dict[str, object], error: str) -> None:
    async with stub(*lines, **more) as server:
        result = await measured(of_url(server.url))
    assert all(error in (one.error or "") for one in result.results)
    text = to_text(result)
    assert "0 of 3 requests were answered" in text
    assert text.count("failed: ") == 1
    assert "(3 times)" in text


async def test_a_request_that_takes_too_long_has_failed() -> None:
    async with stub(event("a"), hangs=True) as server:
        result = await measured(of_url(server.url, "--timeout", "0.3"))
    assert {one.error for one in result.results} == {"the request did not end within 0.3 s"}
    assert {one.num_tokens for one in result.results} == {1}


async def test_a_server_that_is_not_there_is_a_result_too() -> None:
    async with aiohttp.ClientSession() as http:
        endpoint = Endpoint(url="http://127.0.0.1:9/v1", model="m")
        await endpoint.look(http)
        assert not endpoint.is_gateway
        asked = endpoint.ask(http, Due(index=0, arrival_s=0.0, num_input_tokens=1, num_output_tokens=1))
        with pytest.raises(BenchError, match="Cannot connect"):
            await anext(aiter(asked))


async def test_our_gateway_tells_of_chains_and_waiting() -> None:
    async with served({"a": Span(0, 3), "b": Span(3, 8)}) as servers, gateway_over(servers) as http:
        endpoint = Endpoint(url="/v1", model=MODEL.name, is_full_length=True)
        await endpoint.look(http)
        assert endpoint.is_gateway
        progress = Progress(1)
        clock = asyncio.get_running_loop().time
        load = [Due(index=0, arrival_s=0.0, num_input_tokens=9, num_output_tokens=12)]
        await run(lambda due: endpoint.ask(http, due), load, begin_s=clock(), clock=clock, observer=progress)
        chain = servers.chain("a", "b")
    [timed] = progress.results()
    assert timed.error is None
    assert timed.num_tokens == 12
    assert timed.num_input_tokens > 9  # a token of this model is a character
    assert timed.chain == tuple((hop.peer, hop.span.start, hop.span.end) for hop in chain.hops)
    assert [hop.peer for hop in timed.hops] == [hop.peer for hop in chain.hops]
    assert timed.waited_s is not None


def test_a_key_does_not_show() -> None:
    assert "secret" not in repr(Endpoint(url="u", model="m", key="secret"))


@pytest.mark.parametrize("line", [b"", b": comment", b"data: [DONE]\n"])
def test_lines_without_events_are_none(line: bytes) -> None:
    assert read_event(line) is None


@pytest.mark.parametrize(
    ("content", "num_tokens"),
    [
        ({"choices": []}, 0),
        ({"choices": [{"delta": None}]}, 0),
        ({"choices": [{"delta": {"content": None}}]}, 0),
        ({"choices": [{"delta": {"content": "x"}}]}, 1),
        ({"choices": [{"delta": {"content": None, "reasoning_content": "hm"}}]}, 1),
    ],
)
def test_a_piece_of_text_counts_as_a_token(content: dict[str, object], num_tokens: int) -> None:
    event = read_event(b"data: " + json.dumps(content).encode())
    assert event is not None
    arrival, is_last = read_arrival(event)
    assert (arrival.num_tokens, is_last) == (num_tokens, False)
