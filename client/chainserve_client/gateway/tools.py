"""Tools of a chat: what a request may say of them, and how the model is told."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chainserve_client.gateway.calls import CallForm
from chainserve_client.gateway.errors import ApiError
from chainserve_client.gateway.schema import Schema, optional

MAX_TOOLS = 128
NAME: Schema = {
    "type": "string",
    "pattern": "^[A-Za-z0-9_-]{1,64}$",
    "title": "a name of up to 64 letters, digits, - and _",
}
TOOL: Schema = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {
        "type": {"enum": ["function"]},
        "function": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": NAME,
                "description": optional("string"),
                "parameters": optional("object"),
                "strict": optional("boolean"),
            },
        },
    },
}
FIELDS: Mapping[str, Schema] = {
    "tools": optional("array", items=TOOL, maxItems=MAX_TOOLS, title=f"an array of up to {MAX_TOOLS} tools"),
    "tool_choice": {
        "anyOf": [
            {"type": "string", "enum": ["none", "auto", "required"]},
            {
                "type": "object",
                "title": "an object that names a function",
                "required": ["type", "function"],
                "properties": {
                    "type": {"enum": ["function"]},
                    "function": {"type": "object", "required": ["name"], "properties": {"name": NAME}},
                },
            },
        ]
    },
    "parallel_tool_calls": optional("boolean", default=True),
}
CALL: Schema = {
    "type": "object",
    "required": ["id", "type", "function"],
    "properties": {
        "id": {"type": "string"},
        "type": {"enum": ["function"]},
        "function": {
            "type": "object",
            "required": ["name", "arguments"],
            "properties": {"name": {"type": "string"}, "arguments": {"type": "string"}},
        },
    },
}
"""In a message of the assistant."""


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools that an answer may or has to call."""

    functions: tuple[Mapping[str, Any], ...] = ()
    is_forced: bool = False
    only: str | None = None  # the function that is to be called
    is_parallel: bool = True

    def __bool__(self) -> bool:
        return bool(self.functions)

    @property
    def callable(self) -> tuple[Mapping[str, Any], ...]:
        return tuple(each for each in self.functions if self.only in (None, each["name"]))


def tools_of(fields: Mapping[str, Any]) -> Tools:
    """What a request says of tools; ApiError if it does not go together."""
    given = fields.get("tools", [])
    functions = tuple({key: value for key, value in tool["function"].items() if value is not None} for tool in given)
    choice = fields.get("tool_choice", "auto")
    if len({function["name"] for function in functions}) < len(functions):
        raise ApiError("two tools have the same name", param="tools", code="invalid_value")
    only = None if isinstance(choice, str) else choice["function"]["name"]
    if only is not None and only not in {function["name"] for function in functions}:
        raise ApiError(
            f"tool_choice names {only!r}, which is none of the tools", param="tool_choice", code="invalid_value"
        )
    if choice == "required" and not functions:
        raise ApiError("tool_choice is required, and there are no tools", param="tool_choice", code="invalid_value")
    if choice == "none":
        return Tools()
    return Tools(functions, choice != "auto", only, fields.get("parallel_tool_calls", True) and only is None)


def as_templates_have_it(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages, with the arguments of calls as objects."""
    return [
        {**message, "tool_calls": [_with_object(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else dict(message)
        for message in messages
    ]


def described(messages: Sequence[Mapping[str, Any]], tools: Tools, form: CallForm) -> list[dict[str, Any]]:
    """The messages for a template that has no tools: a system message tells of them, and calls and what they gave are
    text."""
    told: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            if told and told[-1].get("is_response"):
                told[-1]["content"] += f"\n{text}"
            else:
                told.append({"role": "user", "content": text, "is_response": True})
        else:
            calls = [_written(call, form) for call in message.get("tool_calls") or ()]
            content = "\n".join(filter(None, (message.get("content"), *calls)))
            told.append({"role": message["role"], "content": content})
    for message in told:
        message.pop("is_response", None)
    if tools:
        if told[0]["role"] == "system":
            first = told.pop(0)
            told.insert(0, {**first, "content": f"{first['content']}\n\n{_description(tools, form)}"})
        else:
            told.insert(0, {"role": "system", "content": _description(tools, form)})
    return told


def _description(tools: Tools, form: CallForm) -> str:
    functions = "\n".join(json.dumps(function, ensure_ascii=False) for function in tools.callable)
    example = f'{form.begin}\n{{"name": "the function\'s name", "{form.key}": {{...}}}}\n{form.end}'
    return f"These functions can be called:\n{functions}\nTo call one, answer with\n{example}"


def _written(call: Mapping[str, Any], form: CallForm) -> str:
    function = call["function"]
    return (
        f'{form.begin}\n{{"name": {json.dumps(function["name"])}, "{form.key}": {function["arguments"]}}}\n{form.end}'
    )


def _with_object(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        arguments = function["arguments"]  # what a model has written, and its template may take
    return {**call, "function": {**function, "arguments": arguments}}
