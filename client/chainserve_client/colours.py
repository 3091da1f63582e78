"""Colours for a terminal that wants them."""

import os
from collections.abc import Mapping
from typing import TextIO

CODES = {"green": "32", "yellow": "33", "red": "31", "grey": "90"}


def wants_colours(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the stream is a terminal that shows colours, and nobody has set NO_COLOR (no-color.org)."""
    return stream.isatty() and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


def painted(text: str, colour: str, *, with_colours: bool) -> str:
    """The text in a colour, or as it is."""
    return f"\x1b[{CODES[colour]}m{text}\x1b[0m" if with_colours else text
