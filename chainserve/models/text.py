"""The text side of a model, from its files: what servers hand to clients that have none."""

from typing import Any

from chainserve.errors import ModelNotFoundError
from chainserve.models.source import ModelSource
from chainserve.protocol.text import NoText, TextBundle


def text_of(source: ModelSource) -> TextBundle | NoText:
    """What turns text into tokens of this model and back, or why there is nothing that does so without its files.

    Takes seconds. OSError if the tokenizer's files cannot be read.
    """
    try:
        tokenizer: Any = source.tokenizer()
    except ModelNotFoundError as error:
        return NoText(str(error))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return NoText(f"{type(tokenizer).__name__} is no fast tokenizer, it runs only where the model's files are")
    config = source.config
    longest = getattr(config, "max_position_embeddings", None)
    return TextBundle(
        tokenizer=backend.to_str(),
        chat_template=_chat_template(tokenizer),
        special_tokens={name: text for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)},
        end_tokens=tuple(sorted(end_tokens(source, tokenizer))),
        vocab_size=int(config.vocab_size),
        max_position=int(longest) if longest else None,
    )


def end_tokens(source: ModelSource, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer, as the model's generation config, its config and its tokenizer say."""
    ids: set[int] = set()
    for holder in (source.generation_config(), source.config, tokenizer):
        end = getattr(holder, "eos_token_id", None)
        ids.update([end] if isinstance(end, int) else end or [])
    return frozenset(ids)


def _chat_template(tokenizer: Any) -> str | None:
    """The one that transformers takes when no tools are given."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else None
