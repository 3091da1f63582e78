"""What turns text into tokens and back, as servers hand it to clients that hold no files of the model.

JSON, compressed. Its size is limited on both sides of the compression, and each field by its type and size.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from chainserve.errors import TextModelError

MAX_JSON_BYTES = 64 * 2**20
"""The largest tokenizers of today take about half."""
MAX_TEMPLATE_CHARS = 2**20
MAX_SPECIAL = 256
MAX_SPECIAL_CHARS = 1024
MAX_REASON_CHARS = 500
MAX_TOKENS = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class TextBundle:
    """A model's tokenizer and what belongs to it."""

    tokenizer: str
    """tokenizer.json of the `tokenizers` package."""
    chat_template: str | None
    """In Jinja; None: the model holds no conversations."""
    special_tokens: Mapping[str, str]
    """By the names that the template has for them: bos_token, eos_token and so on."""
    end_tokens: tuple[int, ...]
    """They end an answer."""
    vocab_size: int
    """Token ids that the model knows are below."""
    max_position: int | None
    """Longest sequence that the model was trained for, in tokens; None if it does not say."""


@dataclass(frozen=True, slots=True)
class NoText:
    """Why there is no bundle of this model."""

    reason: str


def pack_text(text: TextBundle | NoText) -> bytes:
    """The bytes to hand out; TextModelError if nobody would take them."""
    fields = {"reason": text.reason[:MAX_REASON_CHARS]} if isinstance(text, NoText) else asdict(text)
    data = json.dumps(fields, ensure_ascii=False).encode(errors="surrogatepass")
    if len(data) > MAX_JSON_BYTES:
        raise TextModelError(f"tokenizer of {len(data)} bytes, at most {MAX_JSON_BYTES} are handed out")
    return zlib.compress(data)


def unpack_text(data: bytes) -> TextBundle | NoText:
    """What a server handed out; TextModelError if any of it is not as it should be."""
    fields = _unpack(data)
    reason = fields.get("reason")
    if type(reason) is str and len(reason) <= MAX_REASON_CHARS:
        return NoText("".join(character if character.isprintable() else " " for character in reason))
    tokenizer, template, special = (fields.get(name) for name in ("tokenizer", "chat_template", "special_tokens"))
    ends = fields.get("end_tokens")
    _check(type(tokenizer) is str, "tokenizer")
    _check(template is None or (type(template) is str and len(template) <= MAX_TEMPLATE_CHARS), "chat_template")
    _check(
        type(special) is dict
        and len(special) <= MAX_SPECIAL
        and all(type(text) is str and len(text) <= MAX_SPECIAL_CHARS for pair in special.items() for text in pair),
        "special_tokens",
    )
    _check(type(ends) is list and len(ends) <= MAX_SPECIAL and all(_is_count(end) for end in ends), "end_tokens")
    _check(_is_count(fields.get("vocab_size")), "vocab_size")
    _check(fields.get("max_position") is None or _is_count(fields["max_position"]), "max_position")
    return TextBundle(
        tokenizer=fields["tokenizer"],
        chat_template=template,
        special_tokens=fields["special_tokens"],
        end_tokens=tuple(fields["end_tokens"]),
        vocab_size=fields["vocab_size"],
        max_position=fields.get("max_position"),
    )


def _unpack(data: bytes) -> dict[str, Any]:
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(data, MAX_JSON_BYTES)
        if not stream.eof or stream.unused_data:
            raise TextModelError(f"tokenizer is cut off, or takes more than {MAX_JSON_BYTES} bytes")
        fields = json.loads(text)
    except (zlib.error, ValueError, RecursionError) as error:
        raise TextModelError(f"tokenizer is not compressed JSON: {error}") from None
    if type(fields) is not dict:
        raise TextModelError("tokenizer is not a JSON object")
    return fields


def _check(holds: bool, name: str) -> None:
    if not holds:
        raise TextModelError(f"tokenizer's {name} is missing, of another type, or too large")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < MAX_TOKENS
