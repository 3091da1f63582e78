"""What was looked at, and what came of it."""

import textwrap
from dataclasses import dataclass
from enum import StrEnum

from chainserve_client.colours import painted
from chainserve_client.tables import WIDTH


class Level(StrEnum):
    """How it stands."""

    OK = "ok"
    NOTE = "note"  # nothing wrong, but to know
    WARNING = "warning"  # works, and not well
    FAILED = "failed"


COLOURS = {Level.OK: "green", Level.NOTE: "grey", Level.WARNING: "yellow", Level.FAILED: "red"}
NAME_WIDTH = 12


@dataclass(frozen=True, slots=True)
class Finding:
    """A fact about one thing, and what to do if it is not well."""

    name: str
    level: Level
    fact: str
    advice: str = ""

    def text(self, *, with_colours: bool) -> str:
        """Lines for a terminal."""
        indent = " " * (9 + NAME_WIDTH)
        lines = textwrap.wrap(self.fact, WIDTH - len(indent), break_on_hyphens=False) or [""]
        advice = textwrap.wrap(f"-> {self.advice}", WIDTH - len(indent), break_on_hyphens=False) if self.advice else []
        mark = painted(f"{self.level:<7}", COLOURS[self.level], with_colours=with_colours)
        return f"{mark}  {self.name:<{NAME_WIDTH}}" + f"\n{indent}".join([*lines, *advice])


def ok(name: str, fact: str) -> Finding:
    return Finding(name, Level.OK, fact)


def note(name: str, fact: str, advice: str = "") -> Finding:
    return Finding(name, Level.NOTE, fact, advice)


def warning(name: str, fact: str, advice: str) -> Finding:
    return Finding(name, Level.WARNING, fact, advice)


def failed(name: str, fact: str, advice: str) -> Finding:
    return Finding(name, Level.FAILED, fact, advice)
