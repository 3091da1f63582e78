"""Requests that cannot be answered: the right status, an error in OpenAI's form, and nothing is left behind."""

import asyncio
import json
import socket
from contextlib import suppress
from typing import Any

import aiohttp
import pytest
from gateway_in_memory import asking, continuing, events_of, gateway_over, posted, text_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served_in_memory import served, until

from chainserve.types import Span
from chainserve_client.gateway import answering
from chainserve_client.gateway.app import FORMS
from chainserve_client.gateway.errors import ApiError

SPANS = {"a": Span(0, 4), "b": Span(4, 8)}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


async def error_of(response: aiohttp.ClientResponse) -> dict[str, Any]:
    body = await response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert response.headers["x-request-id"]
    error: dict[str, Any] = body["error"]
    return error


TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f"}}
CALL: dict[str, Any] = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BAD_CHATS: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"temperature": 2.1}, "temperature", "invalid_value"),
    ({"temperature": "1"}, "temperature", "invalid_value"),
    ({"temperature": True}, "temperature", "invalid_value"),
    ({"top_p": 0}, "top_p", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_completion_tokens": 1.5}, "max_completion_tokens", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 65}, "n", "invalid_value"),
    ({"seed": 2**63}, "seed", "invalid_value"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value"),
    ({"stop": ""}, "stop", "invalid_value"),
    ({"stop": [1]}, "stop.0", "invalid_value"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1", "invalid_value"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "missing"),
    ({"messages": [{"role": "function", "content": "x"}]}, "messages.0.role", "invalid_value"),
    ({"messages": [{"role": "assistant", "content": None}]}, "messages.0.content", "missing"),
    ({"messages": [{"role": "user", "tool_calls": [CALL]}]}, "messages.0.tool_calls", "invalid_value"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages.0.tool_calls.0.id", "missing"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.text", "missing"),
    ({"messages": "hello"}, "messages", "invalid_value"),
    ({"model": None}, "model", "missing"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"stream": "yes"}, "stream", "invalid_value"),
    ({"tools": [{"type": "function"}]}, "tools.0.function", "missing"),
    ({"tools": [{"type": "web_search", "function": {"name": "f"}}]}, "tools.0.type", "invalid_value"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "invalid_value"),
    ({"tools": [TOOL, TOOL]}, "tools", "invalid_value"),
    ({"tools": [TOOL] * 129}, "tools", "invalid_value"),
    ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    ({"tool_choice": "any"}, "tool_choice", "invalid_value"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice", "invalid_value"),
    ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "response_format", "invalid_value"),
    ({"tools": [TOOL], "tool_choice": "required", "ignore_eos": True}, "ignore_eos", "invalid_value"),
    ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema", "missing"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": True}}},
        "response_format.json_schema.schema",
        "invalid_value",
    ),
    ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos", "invalid_value"),
    ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
)
BAD_COMPLETIONS: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"prompt": ""}, "prompt", "invalid_value"),
    ({"prompt": []}, "prompt", "invalid_value"),
    ({"prompt": [[]]}, "prompt.0", "invalid_value"),
    ({"prompt": ["a", 1]}, "prompt.0", "invalid_value"),
    ({"prompt": [-1]}, "prompt.0", "invalid_value"),
    ({"prompt": ["a"] * 5, "n": 20}, "n", "invalid_value"),
    ({"logprobs": 6}, "logprobs", "invalid_value"),
    ({"echo": True}, "echo", "unsupported_parameter"),
    ({"suffix": "x"}, "suffix", "unsupported_parameter"),
    ({"best_of": 2}, "best_of", "unsupported_parameter"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "unsupported_parameter"),
    ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
)


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        *((CHAT, asking(**fields), param, code) for fields, param, code in BAD_CHATS),
        *((COMPLETIONS, continuing(**fields), param, code) for fields, param, code in BAD_COMPLETIONS),
    ],
)
def test_a_field_that_cannot_be_is_named(path: str, body: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        FORMS[path].read(body)
    error = caught.value
    assert (error.status, error.param, error.code) == (400, param, code)
    assert param.split(".")[0] in str(error)


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "functions": None},
        {"user": "alice", "metadata": {}, "store": False, "something_new": [1]},
        {"stop": None, "temperature": None, "logit_bias": None, "stream_options": None},
    ],
)
def test_what_asks_for_nothing_or_is_unknown_does_no_harm(fields: dict[str, Any]) -> None:
    usual = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    assert FORMS[CHAT].read({**usual, **fields}) == FORMS[CHAT].read(usual)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from([*FORMS[CHAT].schema["properties"], "prompt", "x"]), inner, max_size=6)
        ),
        max_leaves=20,
    )
)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_is_read_or_refused_by_name(body: Any) -> None:
    for form, usual in ((FORMS[CHAT], asking()), (FORMS[COMPLETIONS], continuing())):
        for given_body in (body, usual | body if isinstance(body, dict) else body):
            with suppress(ApiError):
                form.read(given_body)


async def test_requests_that_are_refused_over_http() -> None:
    async with served(SPANS) as swarm, gateway_over(swarm, max_body_bytes=2000) as http:
        for data in (
            b"",
            b"{",
            b"[1]",
            b"null",
            b'{"temperature": NaN}',
            b"\xff",
            b"[" * 1900,
            b'{"a": "' + b"1" * 900,
        ):
            async with http.post(CHAT, data=data) as response:
                assert response.status == 400
                await error_of(response)
        for method, path, status, code in (
            ("GET", CHAT, 405, "method_not_allowed"),
            ("POST", "/v1/embeddings", 404, "not_found"),
            ("GET", "/v1/models/none", 404, "model_not_found"),
            ("OPTIONS", CHAT, 405, "method_not_allowed"),
        ):
            async with http.request(method, path) as response:
                assert response.status == status
                assert (await error_of(response))["code"] == code
        for body, status, code in (
            (asking(model="none"), 404, "model_not_found"),
            (asking(messages=[{"role": "user", "content": "x" * 600}]), 400, "context_length_exceeded"),
            (asking(max_tokens=496), 400, "context_length_exceeded"),
            (asking(messages=[{"role": "user", "content": "x" * 3000}]), 413, "body_too_large"),
            (asking(logit_bias={"999": 1}), 400, None),
            (asking(messages=[{"role": "user", "content": "\ud800"}]), 400, None),
        ):
            for is_stream in (False, True):
                async with http.post(CHAT, json={**body, "stream": is_stream}) as response:
                    assert response.status == status, await response.text()
                    assert (await error_of(response))["code"] == code
        swarm.check_free()


async def test_a_request_id_is_taken_over_if_it_is_sane() -> None:
    async with served(SPANS) as swarm, gateway_over(swarm) as http:
        for given_id, is_taken in (("abc-1.2:3", True), ("a b", False), ("x" * 129, False), ("", False)):
            async with http.get("/healthz", headers={"x-request-id": given_id}) as response:
                assert (response.headers["x-request-id"] == given_id) is is_taken


async def test_names_that_others_let_lead_here_are_refused() -> None:
    async with served(SPANS) as swarm, gateway_over(swarm, is_local=True) as http:
        for name, status in (("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:8000", 200), ("evil.example", 421)):
            async with http.get("/v1/models", headers={"Host": name}) as response:
                assert response.status == status, name
        assert (await http.get("/healthz", headers={"Host": "evil.example:80"})).status == 421


async def test_pages_of_other_origins_are_let_in_only_if_named() -> None:
    headers = {"Origin": "https://app.example", "Access-Control-Request-Headers": "authorization"}
    async with served(SPANS) as swarm:
        async with gateway_over(swarm) as http, http.get("/v1/models", headers=headers) as response:
            assert "Access-Control-Allow-Origin" not in response.headers
        async with gateway_over(swarm, cors_origins=["https://app.example"]) as http:
            async with http.options(CHAT, headers=headers) as response:
                assert response.status == 204
                assert response.headers["Access-Control-Allow-Headers"] == "authorization"
                assert response.headers["Access-Control-Allow-Origin"] == "https://app.example"
            async with http.get("/v1/models", headers={"Origin": "https://other.example"}) as response:
                assert "Access-Control-Allow-Origin" not in response.headers


async def test_missing_blocks_are_named() -> None:
    async with served({"a": Span(0, 4)}) as swarm, gateway_over(swarm) as http:
        for is_stream in (False, True):
            async with http.post(CHAT, json=asking(stream=is_stream)) as response:
                assert response.status == 503
                assert "blocks 4:8" in (await error_of(response))["message"]


async def test_a_full_swarm_says_when_to_come_back() -> None:
    async with served(SPANS) as swarm:
        slot_tokens = swarm.plan((("a", "b"), 1, 30.0)).inputs.slot_tokens
        long = asking(max_tokens=slot_tokens - 10, stream=True)
        async with gateway_over(swarm, max_wait_s=3.0, max_position=slot_tokens) as http, http.post(CHAT, json=long):
            for is_stream in (False, True):
                async with http.post(CHAT, json=asking(max_tokens=400, stream=is_stream)) as response:
                    assert response.status == 429
                    error = await error_of(response)
                    assert (error["type"], error["code"]) == ("rate_limit_error", "swarm_full")
                    assert 3 <= int(response.headers["Retry-After"]) <= 60
            assert len(swarm.servers["a"].sessions) == 1
            assert swarm.servers["a"].sessions.places.num_waiting == 0
        await until(lambda: all(len(server.sessions) == 0 for server in swarm.servers.values()))
        swarm.check_free()


async def test_a_place_that_comes_soon_is_waited_for() -> None:
    async with served(SPANS) as swarm:
        slot_tokens = swarm.plan((("a", "b"), 1, 0.5)).inputs.slot_tokens
        long = asking(max_tokens=slot_tokens - 10, stream=True)
        async with gateway_over(swarm, max_wait_s=30.0, max_position=slot_tokens) as http:
            async with http.post(CHAT, json=long):
                waiting = asyncio.create_task(posted(http, CHAT, asking(chainserve=True)))
                await until(lambda: swarm.servers["a"].sessions.places.num_waiting == 1)
            assert (await waiting)["choices"][0]["chainserve"]["queue_s"] > 0


async def test_servers_that_are_lost_in_the_middle_end_the_stream_with_an_error() -> None:
    async with (
        served(SPANS) as swarm,
        gateway_over(swarm) as http,
        http.post(CHAT, json=asking(max_tokens=400, stream=True)) as response,
    ):
        assert response.status == 200
        await response.content.readline()
        await swarm.servers["b"].die()
        *_, error, done = [line for line in (await response.text()).splitlines() if line]
    assert done == "data: [DONE]"
    body = json.loads(error.removeprefix("data: "))
    assert body["error"]["code"] == "swarm_unavailable"
    assert "tokens had come" in body["error"]["message"]


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_client_that_goes_away_ends_its_session(is_stream: bool) -> None:
    async with served(SPANS) as swarm, gateway_over(swarm) as http:
        for server in swarm.servers.values():
            server.engine.is_held = not is_stream  # a stream begins with the first token
        reader = socket.create_connection((http._base_url.host, http._base_url.port))  # type: ignore[union-attr]
        body = json.dumps(asking(max_tokens=400, stream=is_stream)).encode()
        reader.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(body)) + body)
        await until(lambda: any(len(server.sessions) for server in swarm.servers.values()))
        reader.close()
        await until(lambda: not any(len(server.sessions) for server in swarm.servers.values()))
        swarm.check_free()


async def test_a_reader_that_takes_nothing_holds_up_nobody_and_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "STALL_S", 0.3)
    async with served(SPANS) as swarm, gateway_over(swarm) as http:
        reader = socket.socket()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect((http._base_url.host, http._base_url.port))  # type: ignore[union-attr]
        fields = {"max_tokens": 490, "stream": True, "logprobs": True, "top_logprobs": 20, "n": 8}
        body = json.dumps(asking(**fields)).encode()
        reader.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(body)) + body)
        await until(lambda: any(len(server.sessions) for server in swarm.servers.values()))
        async with http.post(CHAT, json=asking(stream=True)) as response:
            assert len(text_of(await events_of(response))) == 8
        await until(lambda: not any(len(server.sessions) for server in swarm.servers.values()), timeout_s=30)
        reader.close()
