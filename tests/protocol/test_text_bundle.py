"""What servers hand out as a model's text side: it arrives, and nothing else does."""

import contextlib
import json
import zlib
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainserve.errors import TextModelError
from chainserve.protocol import text
from chainserve.protocol.text import MAX_REASON_CHARS, NoText, TextBundle, pack_text, unpack_text

BUNDLE = TextBundle(
    tokenizer='{"model": "ünï"}',
    chat_template="{{ bos_token }}",
    special_tokens={"bos_token": "<s>"},
    end_tokens=(0, 2),
    vocab_size=100,
    max_position=2048,
)


def packed(fields: object) -> bytes:
    return zlib.compress(json.dumps(fields).encode())


@pytest.mark.parametrize("bundle", [BUNDLE, replace(BUNDLE, chat_template=None, max_position=None, end_tokens=())])
def test_what_is_handed_out_arrives(bundle: TextBundle) -> None:
    assert unpack_text(pack_text(bundle)) == bundle


def test_a_reason_arrives_on_one_line_and_cut() -> None:
    assert unpack_text(pack_text(NoText("no\nfast one"))) == NoText("no fast one")
    assert unpack_text(pack_text(NoText("x" * 10_000))) == NoText("x" * MAX_REASON_CHARS)


def test_half_a_character_travels() -> None:
    bundle = replace(BUNDLE, special_tokens={"unk_token": "\udc80"})
    with contextlib.suppress(TextModelError):
        assert unpack_text(pack_text(bundle)) == bundle


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokenizer", None),
        ("tokenizer", {}),
        ("chat_template", 7),
        ("chat_template", "x" * (text.MAX_TEMPLATE_CHARS + 1)),
        ("special_tokens", None),
        ("special_tokens", []),
        ("special_tokens", {"bos_token": 7}),
        ("special_tokens", {"bos_token": "x" * 2000}),
        ("special_tokens", {f"token_{number}": "x" for number in range(300)}),
        ("end_tokens", 2),
        ("end_tokens", [True]),
        ("end_tokens", [-1]),
        ("end_tokens", ["2"]),
        ("end_tokens", [2] * 300),
        ("vocab_size", 1.5),
        ("vocab_size", None),
        ("vocab_size", 2**31),
        ("max_position", "long"),
    ],
)
def test_a_field_that_does_not_fit_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(TextModelError, match=name):
        unpack_text(packed(asdict(BUNDLE) | {name: value}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        zlib.compress(b"nonsense"),
        zlib.compress(b"\xff"),
        zlib.compress(b"[" * 1_000_000),
        zlib.compress(b"9" * 10_000),
        packed([]),
        packed(None),
        packed({}),
        packed({"reason": 7}),
        packed({"reason": "x" * 501}),
        pack_text(BUNDLE)[:-1],
        pack_text(BUNDLE) + b"\0",
    ],
)
def test_what_is_no_bundle_is_refused(data: bytes) -> None:
    with pytest.raises(TextModelError):
        unpack_text(data)


def test_what_swells_beyond_the_limit_is_refused_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MAX_JSON_BYTES", 10_000)
    with pytest.raises(TextModelError, match="more than 10000 bytes"):
        unpack_text(zlib.compress(b" " * 10_000_000 + b"{}"))
    with pytest.raises(TextModelError, match="at most 10000"):
        pack_text(replace(BUNDLE, tokenizer="x" * 10_000))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@given(st.binary(max_size=100) | anything.map(packed))
def test_anything_raises_nothing_but_one_error(data: bytes) -> None:
    with contextlib.suppress(TextModelError):
        unpack_text(data)


@given(st.sampled_from(sorted(asdict(BUNDLE))), anything)
def test_fields_of_any_type_raise_nothing_but_one_error(name: str, value: Any) -> None:
    with contextlib.suppress(TextModelError):
        bundle = unpack_text(packed(asdict(BUNDLE) | {name: value}))
        assert isinstance(bundle, TextBundle)
