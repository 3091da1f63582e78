"""Tables fit a terminal, and maps show where blocks are."""

import pytest

from chainserve.types import PeerId, Span
from chainserve_client.tables import WIDTH, block_map, count, printable, short, table, wrapped


def test_columns_are_as_wide_as_they_need_to_be() -> None:
    assert table(("name", "size", "note"), [("a", "10", "x"), ("bcdef", "9", "")], right=("size",)) == [
        "name   size  note",
        "a        10  x",
        "bcdef     9",
    ]


def test_the_last_column_may_be_aligned_to_the_right() -> None:
    assert table(("name", "size"), [("a", "10")], right=("size",)) == ["name  size", "a       10"]


def test_a_long_last_column_is_wrapped_at_100_columns() -> None:
    words = " ".join(f"word{number}" for number in range(40))
    lines = table(("number", "words"), [("1", words)])
    assert max(map(len, lines)) <= WIDTH
    assert " ".join(line.strip() for line in lines[1:]) == f"1       {words}"
    assert lines[2].startswith(" " * 8 + "word")


@pytest.mark.parametrize(
    ("span", "num_blocks", "expected"),
    [
        (Span(0, 2), 6, "[##....]"),
        (Span(2, 5), 6, "[..###.]"),
        (None, 3, "[...]"),
        (Span(0, 1), 64, "[#" + "." * 23 + "]"),
        (Span(63, 64), 64, "[" + "." * 23 + "#]"),
        (Span(0, 126), 126, "[" + "#" * 24 + "]"),
    ],
)
def test_a_map_shows_blocks_or_cells_of_several(span: Span | None, num_blocks: int, expected: str) -> None:
    assert block_map(span, num_blocks=num_blocks) == expected


def test_a_map_may_be_narrower() -> None:
    assert block_map(Span(0, 32), num_blocks=64, max_cells=8) == "[####....]"
    assert block_map(Span(0, 3), num_blocks=6, max_cells=8) == "[###...]"


def test_long_sentences_go_on_in_the_next_line() -> None:
    lines = wrapped("start: " + "; ".join(f"part{number}" for number in range(40)))
    assert max(map(len, lines)) <= WIDTH
    assert all(line.startswith("  part") for line in lines[1:])
    assert wrapped("short") == ["short"]


def test_what_others_wrote_does_nothing_to_a_terminal_and_has_an_end() -> None:
    assert printable("caf\u00e9 \x1b[31mred\n\u202e") == "caf\u00e9 ?[31mred??"
    assert printable("x" * 1000) == "x" * 200 + "..."
    assert short(PeerId("QmXoypiz\x07abcde")) == "?abcde"


def test_counts_agree_with_their_nouns() -> None:
    assert (count(1, "server"), count(0, "server"), count(1200, "server")) == ("1 server", "0 servers", "1,200 servers")
