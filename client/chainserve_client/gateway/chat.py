"""/v1/chat/completions: the answer to a conversation."""

from typing import Any

from chainserve.protocol.sampling import MAX_LOGPROBS
from chainserve_client.client import AsyncClient
from chainserve_client.gateway.asked import MAX_TOKENS, Asked, asked_of, object_of, read
from chainserve_client.gateway.errors import ApiError
from chainserve_client.gateway.form import Choice, Scored
from chainserve_client.gateway.schema import Schema, optional
from chainserve_client.text_model import TextModel

TEXT_PART: Schema = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"enum": ["text"]}, "text": {"type": "string"}},
}
MESSAGE: Schema = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": TEXT_PART, "minItems": 1, "title": "an array of text parts"},
            ]
        },
        "name": optional("string"),
    },
}


class Chat:
    """The endpoint."""

    schema = object_of(
        {
            "messages": {"type": "array", "items": MESSAGE, "minItems": 1, "title": "an array of one or more messages"},
            "max_completion_tokens": optional("integer", minimum=1, maximum=MAX_TOKENS),
            "logprobs": optional("boolean", default=False),
            "top_logprobs": optional("integer", minimum=0, maximum=MAX_LOGPROBS),
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
        return asked_of(
            fields,
            [[_message(message) for message in fields["messages"]]],
            max_tokens=fields.get("max_completion_tokens", fields.get("max_tokens")),
            num_logprobs=fields.get("top_logprobs", 0) if with_logprobs else None,
        )

    def encode(self, client: AsyncClient, prompt: Any) -> list[int]:
        return client.encode_chat(prompt)

    def logprobs(self, text: TextModel) -> "ChatLogprobs":
        return ChatLogprobs(text)

    def whole(self, text: str) -> Choice:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def first(self) -> Choice:
        return {"delta": {"role": "assistant", "content": ""}}

    def delta(self, text: str) -> Choice:
        return {"delta": {"content": text}}

    def last(self) -> Choice:
        return {"delta": {}}


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """A message as chat templates know them: one text, and 'system' for what OpenAI calls 'developer' by now."""
    content = message["content"]
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    role = "system" if message["role"] == "developer" else message["role"]
    return {**message, "role": role, "content": text}


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
