"""/v1/completions: the continuation of one or more texts."""

import codecs
from typing import Any

from chainserve_client.client import AsyncClient
from chainserve_client.gateway.asked import MAX_CHOICES, Asked, asked_of, object_of, read
from chainserve_client.gateway.form import Choice, Scored
from chainserve_client.gateway.schema import Schema, optional
from chainserve_client.text_model import TextModel

MAX_LOGPROBS = 5
"""OpenAI's own limit here."""

TOKENS: Schema = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0},
    "minItems": 1,
    "title": "an array of token ids",
}


def _several(items: Schema, title: str) -> Schema:
    return {"type": "array", "items": items, "minItems": 1, "maxItems": MAX_CHOICES, "title": title}


class Completions:
    """The endpoint."""

    schema = object_of(
        {
            "prompt": {
                "anyOf": [
                    {"type": "string", "minLength": 1, "title": "a string that is not empty"},
                    _several({"type": "string", "minLength": 1}, f"an array of up to {MAX_CHOICES} strings"),
                    _several(TOKENS, f"an array of up to {MAX_CHOICES} arrays of token ids"),
                    TOKENS,
                ]
            },
            "logprobs": optional("integer", minimum=0, maximum=MAX_LOGPROBS),
        },
        "model",
        "prompt",
    )
    id_prefix = "cmpl"
    whole_object = chunk_object = "text_completion"
    default_max_tokens = 16

    def read(self, body: object) -> Asked:
        fields = read(body, self.schema)
        prompt = fields["prompt"]
        is_one = isinstance(prompt, str) or isinstance(prompt[0], int)
        return asked_of(
            fields,
            [prompt] if is_one else prompt,
            max_tokens=fields.get("max_tokens"),
            num_logprobs=fields.get("logprobs"),
        )

    def encode(self, client: AsyncClient, prompt: Any) -> list[int]:
        return client.encode(prompt)

    def logprobs(self, text: TextModel) -> "CompletionLogprobs":
        return CompletionLogprobs(text)

    def grammar(self, client: AsyncClient, prompt: Any) -> None:
        return None

    def writer(self, text: TextModel, prompt: Any) -> "CompletionWriter":
        return CompletionWriter()


class CompletionWriter:
    """The text as it is."""

    def whole(self, text: str) -> Choice:
        return {"text": text}

    def first(self) -> None:
        return None

    def more(self, text: str) -> list[Choice]:
        return [{"text": text}] if text else []

    def rest(self) -> list[Choice]:
        return []

    def empty(self) -> Choice:
        return {"text": ""}

    def reason(self, reason: str) -> str:
        return reason


class CompletionLogprobs:
    """Tokens, their log-probabilities, the likeliest tokens, and where in the text each token begins."""

    def __init__(self, text: TextModel) -> None:
        self._text = text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def write(self, scored: Scored) -> dict[str, Any]:
        written: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token, logprobs in scored:
            written["tokens"].append(self._name(token))
            written["token_logprobs"].append(logprobs.chosen)
            likeliest = {self._name(other): logprob for other, logprob in logprobs.likeliest}
            written["top_logprobs"].append({**likeliest, self._name(token): logprobs.chosen})
            written["text_offset"].append(self._offset)
            self._offset += len(self._decoder.decode(self._text.token_bytes(token)))
        return dict(written)

    def _name(self, token: int) -> str:
        """Its text, or its bytes where these are no text."""
        data = self._text.token_bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
