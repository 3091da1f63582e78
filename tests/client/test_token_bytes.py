"""The bytes of tokens: together they are those of the text, whatever way the vocabulary writes them."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from chainserve.models.resolve import resolve
from chainserve.models.text import text_of
from chainserve_client.text_model import TextModel
from chainserve_client.token_bytes import byte_alphabet, bytes_of_tokens


@pytest.fixture(scope="module")
def model() -> TextModel:
    return TextModel("smollm2-135m", text_of(resolve("smollm2-135m")))


@settings(deadline=None)
@given(text=st.text(max_size=40))
def test_a_byte_level_vocabulary_gives_back_the_text(text: str, model: TextModel) -> None:
    ids = model.encode(text)  # without a few characters that the vocabulary lacks
    assert b"".join(map(model.token_bytes, ids)).decode(errors="replace") == model.decode(ids)


def test_every_byte_has_a_character_of_its_own() -> None:
    assert sorted(byte_alphabet().values()) == [bytes([byte]) for byte in range(256)]


def test_special_tokens_are_their_names_and_unknown_ones_nothing(model: TextModel) -> None:
    assert model.token_bytes(2) == b"<|im_end|>"
    assert model.token_bytes(10**6) == b""


@pytest.mark.parametrize(
    ("decoder", "expected"),
    [
        (decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback()]), [b" big", b"\xf0", b"a"]),
        (None, ["\u2581big".encode(), b"\xf0", b"a"]),
    ],
    ids=["with marked spaces", "without a decoder"],
)
def test_bytes_that_a_vocabulary_names_are_those(decoder: decoders.Decoder | None, expected: Sequence[bytes]) -> None:
    vocab = {"\u2581big": 0, "<0xF0>": 1, "a": 2}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    if decoder is not None:
        tokenizer.decoder = decoder
    assert list(map(bytes_of_tokens(tokenizer), range(3))) == expected
