"""Text as it comes: characters are whole, stop texts end it wherever tokens are cut."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainserve_client.text import TextStream


def decode_bytes(ids: Sequence[int]) -> str:
    """A tokenizer with one token per byte."""
    return bytes(ids).decode(errors="replace")


def pieces(stream: TextStream, data: bytes) -> list[str]:
    out = [stream.push(byte) for byte in data if not stream.stopped]
    return [*out, stream.finish()]


@given(st.text(max_size=30))
def test_the_pieces_make_up_the_text(text: str) -> None:
    assert "".join(pieces(TextStream(decode_bytes), text.encode())) == text


@given(st.text(max_size=12), st.text(alphabet="ab", min_size=1, max_size=4), st.text(alphabet="ab", max_size=12))
def test_text_ends_before_the_first_stop(before: str, stop: str, after: str) -> None:
    text = before + after
    expected = text.split(stop)[0]
    assert "".join(pieces(TextStream(decode_bytes, [stop]), text.encode())) == expected


def test_no_piece_shows_half_a_character() -> None:
    assert pieces(TextStream(decode_bytes), "a€😀".encode()) == ["a", "", "", "€", "", "", "", "😀", ""]


def test_what_may_begin_a_stop_text_is_held_until_it_is_known() -> None:
    assert pieces(TextStream(decode_bytes, ["END"]), b"xENyEND!") == ["x", "", "", "ENy", "", "", "", ""]


def test_of_two_stop_texts_the_earlier_one_counts() -> None:
    assert "".join(pieces(TextStream(decode_bytes, ["cd", "bcde"]), b"abcdef")) == "ab"


def test_bytes_that_are_no_text_come_out_in_the_end() -> None:
    assert "".join(pieces(TextStream(decode_bytes), b"a\xff")) == "a\ufffd"


@pytest.mark.parametrize("space", ["", " "])
def test_a_tokenizer_that_drops_the_leading_space_is_given_context(space: str) -> None:
    words = ["Hello", "big", "world"]

    def decode(ids: Sequence[int]) -> str:
        return (space + " ".join(words[i] for i in ids)).lstrip()

    stream = TextStream(decode)
    assert [stream.push(i) for i in range(3)] == ["Hello", " big", " world"]
