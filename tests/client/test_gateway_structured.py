"""JSON that answers are held to, and tools that they call, over the gateway."""

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import aiohttp
import pytest
from gateway_in_memory import asking, events_of, gateway_over, posted, text_of
from hypothesis import given, settings
from hypothesis import strategies as st
from served_in_memory import VOCAB, served, text_bundle, until
from test_gateway_errors import error_of

from chainserve.types import Span
from chainserve_client.gateway.calls import DESCRIBED
from chainserve_client.gateway.chat import Chat
from chainserve_client.gateway.tools import Tools, as_templates_have_it, described
from chainserve_client.text_model import TextModel

CHAT = "/v1/chat/completions"
SPANS = {"a": Span(0, 4), "b": Span(4, 8)}
ENDS = (VOCAB - 1,)
TEXT = {"type": "string", "maxLength": 4}
PERSON = {
    "type": "object",
    "properties": {"name": TEXT, "age": {"enum": [1, 22]}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
HERMES_TEMPLATE = """{% if tools %}tools {% for tool in tools %}{{ tool.function.name }} {% endfor %}<tool_call>
{%- endif %}
{%- for message in messages %}{{ message.role }}: {{ message.content }}{% for call in message.tool_calls or [] %}
<tool_call>{{ call.function.arguments | tojson }}</tool_call>{% endfor %}{% endfor %}"""
LLAMA_TEMPLATE = '{% if tools %}{"name": a, "parameters": b}{{ tools | length }}{% endif %}{{ messages[-1].content }}'


def schema_of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}}


def tool(name: str, /, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    parameters["additionalProperties"] = False
    return {"type": "function", "function": {"name": name, "description": "it", "parameters": parameters}}


TOOLS = [tool("greet", name=TEXT), tool("count", least={"enum": [1, 2]}, most={"enum": [3, 4]})]


def calls_of(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The calls of a stream, joined as OpenAI's package does it."""
    calls: list[dict[str, Any]] = []
    for event in events:
        for choice in event["choices"]:
            for delta in choice["delta"].get("tool_calls", ()):
                if "id" in delta:
                    assert delta["index"] == len(calls)
                    calls.append({"id": delta["id"], "name": delta["function"]["name"], "arguments": ""})
                calls[delta["index"]]["arguments"] += delta["function"]["arguments"]
    return calls


async def test_json_is_of_the_schema_whole_and_in_pieces() -> None:
    async with served(SPANS) as swarm, gateway_over(swarm, end_tokens=ENDS) as http:
        for fields in ({}, {"temperature": 2, "seed": 5}, {"temperature": 1, "top_p": 0.1, "presence_penalty": 1}):
            asked = asking(max_tokens=90, response_format=schema_of(PERSON), **fields)
            body = await posted(http, CHAT, asked)
            [choice] = body["choices"]
            person = json.loads(choice["message"]["content"])
            assert (set(person), choice["finish_reason"]) == ({"name", "age"}, "stop")
            assert person["age"] in (1, 22)
            async with http.post(CHAT, json=asked | {"stream": True}) as response:
                assert text_of(await events_of(response)) == choice["message"]["content"]
        swarm.check_free()


async def test_any_object_will_do_if_that_is_asked_for() -> None:
    async with served(SPANS) as swarm, gateway_over(swarm, end_tokens=ENDS) as http:
        body = await posted(http, CHAT, asking(max_tokens=60, response_format={"type": "json_object"}))
        assert body["choices"][0]["message"]["content"].startswith("{")


@pytest.mark.parametrize("template", [None, HERMES_TEMPLATE, LLAMA_TEMPLATE])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "count"}}])
async def test_a_call_is_forced_whole_and_in_pieces(template: str | None, choice: Any) -> None:
    more: dict[str, Any] = {"max_position": 2000} | ({} if template is None else {"chat_template": template})
    async with served(SPANS) as swarm, gateway_over(swarm, end_tokens=ENDS, **more) as http:
        asked = asking(max_tokens=250, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)
        body = await posted(http, CHAT, asked)
        [answered] = body["choices"]
        assert answered["finish_reason"] == "tool_calls"
        assert answered["message"]["content"] is None
        [call] = answered["message"]["tool_calls"]
        arguments = json.loads(call["function"]["arguments"])
        if call["function"]["name"] == "count":
            assert arguments["least"] < arguments["most"]
        else:
            assert choice == "required"
            assert set(arguments) == {"name"}
        async with http.post(CHAT, json=asked | {"stream": True}) as response:
            events = await events_of(response)
        [streamed] = calls_of(events)
        assert {"name": streamed["name"], "arguments": streamed["arguments"]} == call["function"]
        assert streamed["id"] != call["id"]
        assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"
        assert text_of(events) == ""
        swarm.check_free()


async def test_calls_that_are_cut_off_end_by_length() -> None:
    async with served(SPANS) as swarm, gateway_over(swarm, end_tokens=ENDS) as http:
        body = await posted(http, CHAT, asking(max_tokens=60, tools=TOOLS[1:], tool_choice="required"))
        assert body["choices"][0]["finish_reason"] == "length"


async def test_tools_that_need_not_be_called_take_a_template_that_tells_of_them() -> None:
    async with served(SPANS) as swarm, gateway_over(swarm, end_tokens=ENDS) as http:
        async with http.post(CHAT, json=asking(tools=TOOLS)) as response:
            assert response.status == 400
            error = await error_of(response)
            assert (error["param"], error["code"]) == ("tools", "unsupported_parameter")
        plain = await posted(http, CHAT, asking())
        none = await posted(http, CHAT, asking(tools=TOOLS, tool_choice="none"))
        assert none["choices"] == plain["choices"]
    async with served(SPANS) as swarm, gateway_over(swarm, end_tokens=ENDS, chat_template=HERMES_TEMPLATE) as http:
        body = await posted(http, CHAT, asking(tools=TOOLS, max_tokens=12))
        assert len(body["choices"][0]["message"]["content"]) == 12
        assert "tool_calls" not in body["choices"][0]["message"]
        async with http.post(CHAT, json=asking(tools=TOOLS, max_tokens=12, stream=True, logprobs=True)) as response:
            events = await events_of(response)
        assert text_of(events) == body["choices"][0]["message"]["content"]
        scored = [event["choices"][0]["logprobs"] for event in events]
        assert sum(len(each["content"]) for each in scored if each) == 12


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"response_format": schema_of({"type": "objectt"})}, "response_format", "invalid_grammar"),
        ({"response_format": schema_of({"uniqueItems": True})}, "response_format", "invalid_grammar"),
        ({"response_format": schema_of({"$ref": "https://a.b/c"})}, "response_format", "invalid_grammar"),
        ({"response_format": schema_of({"pattern": "(", "type": "string"})}, "response_format", "invalid_grammar"),
        ({"response_format": schema_of({"enum": ["x" * 70_000]})}, "response_format", "schema_too_large"),
        ({"response_format": schema_of({"const": "\ud800"})}, "response_format", "invalid_grammar"),
        (
            {"tools": [tool("f", a={"type": "x"})], "tool_choice": "required"},
            "tools",
            "invalid_grammar",
        ),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_schemas_that_cannot_be_enforced_are_named_and_disturb_nobody(
    fields: dict[str, Any], param: str, code: str, is_stream: bool
) -> None:
    async with served(SPANS) as swarm, gateway_over(swarm, end_tokens=ENDS) as http:
        other = asyncio.create_task(posted(http, CHAT, asking(max_tokens=200, logit_bias={str(ENDS[0]): -100})))
        async with http.post(CHAT, json=asking(stream=is_stream, **fields)) as response:
            assert response.status == 400
            error = await error_of(response)
        assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
        assert len((await other)["choices"][0]["message"]["content"]) == 200
        await until(lambda: not any(len(made.sessions) for made in swarm.servers.values()))
        swarm.check_free()


async def test_servers_without_grammars_are_named() -> None:
    async with served(SPANS) as swarm, gateway_over(swarm, end_tokens=ENDS) as http:
        swarm.servers["b"].sessions._opening._compile_grammar = None
        async with http.post(CHAT, json=asking(response_format={"type": "json_object"})) as response:
            assert response.status == 501
            error = await error_of(response)
        assert error["code"] == "grammars_unavailable"


async def test_json_that_is_nested_too_deeply_is_refused() -> None:
    async with served(SPANS) as swarm, gateway_over(swarm, end_tokens=ENDS) as http:
        for depth in (300, 900, 5000, 40_000):
            deep = '{"items": ' * depth + "{}" + "}" * depth
            usual = json.dumps(asking())[:-1]
            for field in (
                f'"response_format": {{"type": "json_schema", "json_schema": {{"schema": {deep}}}}}',
                f'"tools": [{{"type": "function", "function": {{"name": "f", "parameters": {deep}}}}}], '
                f'"tool_choice": "required"',
                f'"messages": [{{"role": "user", "content": "a", "more": {deep}}}]',
            ):
                async with http.post(CHAT, data=f"{usual}, {field}}}") as response:
                    if "messages" in field and response.status == 200:
                        continue
                    assert response.status == 400, (depth, await response.text())
                    await error_of(response)


MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "hi"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "greet", "arguments": '{"name": "a"}'}}],
    },
    {"role": "tool", "tool_call_id": "1", "content": "hello a"},
    {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "hello b"}]},
]


def test_templates_get_arguments_as_objects() -> None:
    [conversation] = Chat().read({"model": "m", "messages": MESSAGES, "tools": TOOLS}).prompts
    model = TextModel("m", text_bundle(chat_template=HERMES_TEMPLATE))
    told = [{"type": "function", "function": function} for function in conversation.tools.functions]
    text = model.render_chat(as_templates_have_it(conversation.messages), told)
    assert "tools greet count" in text
    assert '<tool_call>{"name": "a"}</tool_call>' in text
    assert "tool: hello b" in text
    broken = {"id": "1", "type": "function", "function": {"name": "greet", "arguments": "not JSON"}}
    [message] = as_templates_have_it([{"role": "assistant", "tool_calls": [broken]}])
    assert message["tool_calls"][0]["function"]["arguments"] == "not JSON"


def test_a_template_without_tools_gets_text() -> None:
    [conversation] = Chat().read({"model": "m", "messages": MESSAGES}).prompts
    told = described(conversation.messages, Tools((TOOLS[0]["function"],), is_forced=True), DESCRIBED)
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
    assert '"greet"' in told[0]["content"]
    assert told[2]["content"] == '<tool_call>\n{"name": "greet", "arguments": {"name": "a"}}\n</tool_call>'
    assert told[3]["content"].count("<tool_response>") == 2
    with_system = described(
        [{"role": "system", "content": "be kind"}, *told[1:2]], Tools((TOOLS[0]["function"],)), DESCRIBED
    )
    assert with_system[0]["content"].startswith("be kind\n\n")
    assert len(with_system) == 2


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("abπ\ud800", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "properties", "items", "enum", "$ref", "required", "minimum", "x-guidance", "a"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@pytest.mark.slow
async def test_no_schema_is_a_server_error() -> None:
    async with served(SPANS) as swarm, gateway_over(swarm, end_tokens=ENDS) as http:
        loop = asyncio.get_running_loop()

        async def ask(fields: dict[str, Any]) -> None:
            async with http.post(CHAT, json=asking(max_tokens=3, **fields)) as response:
                assert response.status in (200, 400), (fields, await response.text())
                if response.status == 400:
                    await error_of(response)

        @settings(max_examples=150, deadline=None)
        @given(schema=st.dictionaries(st.sampled_from(["type", "properties", "items", "enum", "not"]), json_values))
        def run(schema: dict[str, Any]) -> None:
            forced = {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}
            for fields in ({"response_format": schema_of(schema)}, {**forced, "tool_choice": "required"}):
                asyncio.run_coroutine_threadsafe(ask(fields), loop).result(30)

        await asyncio.to_thread(run)
        await until(lambda: not any(len(made.sessions) for made in swarm.servers.values()))
        swarm.check_free()
        assert isinstance(http, aiohttp.ClientSession)
