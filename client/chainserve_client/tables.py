"""Tables for a terminal of 100 columns, and maps of who holds which blocks."""

import textwrap
from collections.abc import Sequence

from chainserve.types import PeerId, Span

WIDTH = 100
MAP_CELLS = 24
MAX_FOREIGN = 200  # characters of what another peer wrote
LEAST_LAST = 16  # characters that are left for the last column, whatever the others take


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> list[str]:
    """Lines of a table; columns named in `right` are aligned to the right, and the last one is wrapped if long."""
    widths = [max(len(line[column]) for line in (head, *rows)) for column in range(len(head))]
    indent = sum(width + 2 for width in widths[:-1])
    widths[-1] = min(widths[-1], max(WIDTH - indent, LEAST_LAST))
    lines = []
    for row in (head, *rows):
        cells = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(head, row, widths, strict=True)
        ]
        first, *others = textwrap.wrap(row[-1], widths[-1], break_on_hyphens=False) or [""]
        last = first.rjust(widths[-1]) if head[-1] in right else first
        lines.append("  ".join([*cells[:-1], last]).rstrip())
        lines += [" " * indent + other for other in others]
    return lines


def block_map(span: Span | None, *, num_blocks: int, max_cells: int = MAP_CELLS) -> str:
    """Where a span is in the model, as '[..###...]'; a cell of several blocks is # if any of them is in the span."""
    num_cells = min(num_blocks, max_cells)
    cells = {block * num_cells // num_blocks for block in span or ()}
    return "[" + "".join("#" if cell in cells else "." for cell in range(num_cells)) + "]"


def wrapped(text: str, *, indent: int = 2) -> list[str]:
    """Lines of a sentence that may be longer than one, the others indented."""
    return textwrap.wrap(text, WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False)


def printable(text: str) -> str:
    """What another peer wrote, without what could do something to a terminal, and not without end."""
    shown = "".join(character if character.isprintable() else "?" for character in text[:MAX_FOREIGN])
    return shown + ("..." if len(text) > MAX_FOREIGN else "")


def short(peer: PeerId) -> str:
    """The end of a peer id, which tells peers apart where its beginning does not."""
    return printable(peer[-6:])


def count(number: int, noun: str) -> str:
    """'1 server', '2 servers', '1,200 servers'."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
