"""docs/paper.md: the prose is written by hand, what stands between markers is made from the results."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from circumstances import PROJECT

PAGE = PROJECT / "docs" / "paper.md"


def fill(sections: Mapping[str, tuple[str, Callable[[dict[str, Any]], str]]], results: Path) -> None:
    """Put anew what stands between `<!-- NAME -->` and `<!-- /NAME -->`, for every section whose result is there.

    A section names its result and says how to write it. ValueError for one that the page has no or two places for.
    """
    text = PAGE.read_text()
    for name, (result, describe) in sections.items():
        path = results / f"{result}.json"
        if not path.exists():
            continue
        report = json.loads(path.read_text())
        made = f"{_heading(report['circumstances'])}\n\n{describe(report['figures'])}"
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"{PAGE} has no one place for {name}")
        before, rest = text.split(begin)
        text = f"{before}{begin}{made}\n{end}{rest.split(end)[1]}"
    PAGE.write_text(text)


def _heading(about: dict[str, Any]) -> str:
    made_up = [f"{what} {source}" for what, source in about["sources"].items() if source.startswith("made up")]
    name = about["benchmark"].removeprefix("paper: ")
    facts = [f"commit {about['commit']}, {about['software']}", f"{about['runs']} runs with seeds from 0 on", *made_up]
    return f"`python benchmarks/paper --only {name}`, {about['date']}, {'; '.join(facts)}."
