"""/v1/chat/completions: the answer to a conversation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chainserve.protocol.sampling import MAX_LOGPROBS
from chainserve_client.client import AsyncClient
from chainserve_client.gateway.asked import MAX_TOKENS, Asked, asked_of, object_of, read
from chainserve_client.gateway.calls import Argued, Called, CallReader, Part, Said, form_of, grammar_of_calls
from chainserve_client.gateway.errors import ApiError
from chainserve_client.gateway.form import Choice, Scored
from chainserve_client.gateway.schema import Schema, optional
from chainserve_client.gateway.structured import RESPONSE_FORMAT, grammar_of_json, wanted_json
from chainserve_client.gateway.tools import CALL, FIELDS, Tools, as_templates_have_it, described, tools_of
from chainserve_client.text_model import TextModel

TEXT_PART: Schema = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"enum": ["text"]}, "text": {"type": "string"}},
}
MESSAGE: Schema = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {
            "anyOf": [
                optional("string"),
                {"type": "array", "items": TEXT_PART, "minItems": 1, "title": "an array of text parts"},
            ]
        },
        "name": optional("string"),
        "tool_calls": optional("array", items=CALL),
        "tool_call_id": optional("string"),
    },
}


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is to be answered, and how."""

    messages: Sequence[Mapping[str, Any]]
    tools: Tools
    wanted_json: Mapping[str, Any] | None  # the schema of the answer


class Chat:
    """The endpoint."""

    schema = object_of(
        {
            "messages": {"type": "array", "items": MESSAGE, "minItems": 1, "title": "an array of one or more messages"},
            "max_completion_tokens": optional("integer", minimum=1, maximum=MAX_TOKENS),
            "logprobs": optional("boolean", default=False),
            "top_logprobs": optional("integer", minimum=0, maximum=MAX_LOGPROBS),
            "response_format": RESPONSE_FORMAT,
            **FIELDS,
        },
        "model",
        "messages",
    )
    id_prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    default_max_tokens = 1024

    def read(self, body: object) -> Asked:
        fields = read(body, self.schema)
        with_logprobs = fields.get("logprobs", False)
        if "top_logprobs" in fields and not with_logprobs:
            raise ApiError("top_logprobs needs logprobs to be true", param="top_logprobs", code="invalid_value")
        messages = [_message(message, f"messages.{at}") for at, message in enumerate(fields["messages"])]
        tools, schema = tools_of(fields), wanted_json(fields)
        if tools and schema is not None:
            message = (
                "an answer is either JSON of response_format or calls of tools: set tool_choice to none, or leave one"
            )
            raise ApiError(message, param="response_format", code="invalid_value")
        return asked_of(
            fields,
            [Conversation(messages, tools, schema)],
            max_tokens=fields.get("max_completion_tokens", fields.get("max_tokens")),
            num_logprobs=fields.get("top_logprobs", 0) if with_logprobs else None,
            grammar_param="response_format" if schema is not None else "tools" if tools.is_forced else None,
        )

    def encode(self, client: AsyncClient, prompt: Conversation) -> list[int]:
        form, tools = form_of(client.text.template_text), prompt.tools
        if form.is_known:
            told = [{"type": "function", "function": function} for function in tools.functions]
            return client.encode_chat(as_templates_have_it(prompt.messages), told)
        if tools and not tools.is_forced:
            message = (
                f"the chat template of {client.model.name} has no tools that could be told of: with tool_choice "
                f"required, or a function's name, the answer is held to a call"
            )
            raise ApiError(message, param="tools", code="unsupported_parameter")
        return client.encode_chat(described(prompt.messages, tools, form))

    def grammar(self, client: AsyncClient, prompt: Conversation) -> str | None:
        tools = prompt.tools
        if prompt.wanted_json is not None:
            return grammar_of_json(prompt.wanted_json, param="response_format")
        if tools.is_forced:
            form = form_of(client.text.template_text)
            return grammar_of_calls(form, tools.callable, is_parallel=tools.is_parallel)
        return None

    def logprobs(self, text: TextModel) -> "ChatLogprobs":
        return ChatLogprobs(text)

    def writer(self, text: TextModel, prompt: Conversation) -> "ChatWriter":
        tools = prompt.tools
        if not tools:
            return ChatWriter(None)
        names = [function["name"] for function in tools.callable]
        return ChatWriter(CallReader(form_of(text.template_text), names, is_parallel=tools.is_parallel))


def _message(message: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A message as chat templates know them: one text, and 'system' for what OpenAI calls 'developer' by now."""
    given = {key: value for key, value in message.items() if value is not None}
    content = given.get("content")
    if content is None and not given.get("tool_calls"):
        raise ApiError(f"{name}.content is missing", param=f"{name}.content", code="missing")
    if given.get("tool_calls") and given["role"] != "assistant":
        raise ApiError(f"{name}.tool_calls: only the assistant calls", param=f"{name}.tool_calls", code="invalid_value")
    if given["role"] == "developer":
        given["role"] = "system"
    if isinstance(content, list):
        given["content"] = "".join(part["text"] for part in content)
    return given


class ChatWriter:
    """A message of the assistant: text, and calls if there may be any."""

    def __init__(self, reader: CallReader | None) -> None:
        self._reader = reader

    def whole(self, text: str) -> Choice:
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._reader is not None:
            parts = [*self._reader.push(text), *self._reader.finish()]
            calls = [part for part in parts if isinstance(part, Called)]
            said = "".join(part.text for part in parts if isinstance(part, Said))
            arguments = [part for part in parts if isinstance(part, Argued)]
            if calls:
                message["content"] = said or None
                message["tool_calls"] = [
                    _call(call, "".join(part.text for part in arguments if part.index == call.index)) for call in calls
                ]
            else:
                message["content"] = said
        return {"message": message}

    def first(self) -> Choice:
        return {"delta": {"role": "assistant", "content": ""}}

    def more(self, text: str) -> list[Choice]:
        if self._reader is None:
            return [{"delta": {"content": text}}] if text else []
        return [_delta(part) for part in self._reader.push(text)]

    def rest(self) -> list[Choice]:
        return [] if self._reader is None else [_delta(part) for part in self._reader.finish()]

    def empty(self) -> Choice:
        return {"delta": {}}

    def reason(self, reason: str) -> str:
        has_called = self._reader is not None and self._reader.num_calls > 0
        return "tool_calls" if has_called and reason == "stop" else reason


def _call(call: Called, arguments: str) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _delta(part: Part) -> Choice:
    match part:
        case Said(text):
            return {"delta": {"content": text}}
        case Called(index):
            return {"delta": {"tool_calls": [{"index": index, **_call(part, "")}]}}
        case Argued(index, text):
            return {"delta": {"tool_calls": [{"index": index, "function": {"arguments": text}}]}}


class ChatLogprobs:
    """Every token with its log-probability, bytes, and those of the likeliest tokens."""

    def __init__(self, text: TextModel) -> None:
        self._text = text

    def write(self, scored: Scored) -> dict[str, Any]:
        content = [
            self._entry(token, logprobs.chosen)
            | {"top_logprobs": [self._entry(other, logprob) for other, logprob in logprobs.likeliest]}
            for token, logprobs in scored
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        data = self._text.token_bytes(token)
        return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}
