"""Values that cannot be wrong."""

import pytest

from chainserve.errors import SpanError, describe_blocks
from chainserve.types import Chain, Hop, PeerId, Span

A, B = PeerId("A"), PeerId("B")


@pytest.mark.parametrize("text", ["", "3", "3:", ":3", "3-5", "5:3", "3:3", "-1:3", "a:b", "0:1:2", " 0:3"])
def test_what_is_not_a_span_is_refused(text: str) -> None:
    with pytest.raises(SpanError, match="not a span"):
        Span.parse(text)


def test_a_span_is_half_open() -> None:
    span = Span.parse("2:5")
    assert list(span) == [2, 3, 4]
    assert len(span) == 3
    assert 5 not in span
    assert str(span) == "2:5"


def test_a_span_covers_itself_and_what_lies_within() -> None:
    assert Span(0, 4).covers(Span(0, 4))
    assert Span(0, 4).covers(Span(1, 2))
    assert not Span(0, 4).covers(Span(3, 5))


@pytest.mark.parametrize("spans", [[], [Span(1, 2)], [Span(0, 2), Span(3, 4)], [Span(0, 2), Span(1, 4)]], ids=str)
def test_a_chain_has_neither_gaps_nor_overlaps(spans: list[Span]) -> None:
    with pytest.raises(ValueError, match="a chain"):
        Chain(tuple(Hop(A, span) for span in spans))


def test_a_chain_knows_its_head_and_tail() -> None:
    chain = Chain((Hop(A, Span(0, 2)), Hop(B, Span(2, 6))))
    assert (chain.head, chain.tail, chain.num_blocks) == (A, B, 6)


def test_blocks_are_named_as_spans() -> None:
    assert describe_blocks([7, 0, 1, 2]) == "blocks 0:3, 7:8"
