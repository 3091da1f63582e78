"""What a server hands out of its model's text side, whatever the model's files are."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from chainserve.errors import ModelNotFoundError
from chainserve.models.source import ModelSource
from chainserve.models.text import end_tokens, text_of
from chainserve.protocol.text import NoText, TextBundle


class Tokenizer:
    eos_token_id = 7
    chat_template: Any = None
    special_tokens_map: dict[str, Any] = {"bos_token": "<s>", "additional_special_tokens": ["<a>"]}  # noqa: RUF012

    def __init__(self, **changes: Any) -> None:
        vars(self).update(changes)


class Fast(Tokenizer):
    backend_tokenizer = SimpleNamespace(to_str=lambda: "{}")


def source_of(tokenizer: Any, **config: Any) -> ModelSource:
    def load() -> Any:
        if isinstance(tokenizer, Exception):
            raise tokenizer
        return tokenizer

    usual = {"vocab_size": 100, "eos_token_id": [2, 3], "max_position_embeddings": 2048}
    generation = SimpleNamespace(eos_token_id=5)
    return cast(
        ModelSource,
        SimpleNamespace(tokenizer=load, config=SimpleNamespace(**usual | config), generation_config=lambda: generation),
    )


def test_a_bundle_holds_all_that_a_client_has_to_know() -> None:
    assert text_of(source_of(Fast(chat_template="{{ bos_token }}"))) == TextBundle(
        tokenizer="{}",
        chat_template="{{ bos_token }}",
        special_tokens={"bos_token": "<s>"},
        end_tokens=(2, 3, 5, 7),
        vocab_size=100,
        max_position=2048,
    )


@pytest.mark.parametrize(
    ("template", "handed_out"),
    [(None, None), ({"default": "a", "tool_use": "b"}, "a"), ({"tool_use": "b"}, None)],
)
def test_of_several_templates_the_default_is_handed_out(template: Any, handed_out: str | None) -> None:
    text = text_of(source_of(Fast(chat_template=template), max_position_embeddings=None))
    assert isinstance(text, TextBundle)
    assert text.chat_template == handed_out
    assert text.max_position is None


def test_a_tokenizer_that_is_no_fast_one_or_is_not_there_is_named() -> None:
    assert text_of(source_of(Tokenizer())) == NoText(
        "Tokenizer is no fast tokenizer, it runs only where the model's files are"
    )
    assert text_of(source_of(ModelNotFoundError("m has no tokenizer"))) == NoText("m has no tokenizer")


@pytest.mark.parametrize(("eos", "wanted"), [(None, {5, 7}), (4, {4, 5, 7}), ([4, 9], {4, 5, 7, 9})])
def test_end_tokens_are_those_of_all_who_say_so(eos: Any, wanted: set[int]) -> None:
    assert end_tokens(source_of(None, eos_token_id=eos), Tokenizer()) == wanted
