"""CPU seconds of planning against servers."""

import math
from typing import Any

from sections.table import table

PLANNED = {
    "placement": "GBP-CR",
    "allocation": "GCA",
    "both": "both",
    "pairs": "GCA, every pair its own time",
    "search": "search over c",
    "whole": "plan(), with the local search",
}


def section(report: dict[str, Any]) -> str:
    """CPU seconds against servers, with the exponent of growth since the row above: as Markdown."""
    about, figures = report["circumstances"], report["figures"]

    def cell(name: str, row: dict[str, float], before: dict[str, float] | None) -> str:
        if name not in row:
            return ""
        if before is None:
            return f"{row[name]:.2g}"
        exponent = math.log(row[name] / before[name]) / math.log(row["servers"] / before["servers"])
        return f"{row[name]:.2g} (J^{exponent:.1f})"

    rows = [
        [f"{row['servers']:,}", f"{row['chains']:,}", *(cell(name, row, before) for name in PLANNED)]
        for before, row in zip([None, *figures], figures, strict=False)
    ]
    return "\n\n".join(
        [
            f"## Planning\n\n`{about['command']}`, {about['date']}, commit {about['commit']}: {about['model']}; "
            f"{about['hardware']}; {about['software']}; medians of {about['rounds']} rounds, CPU seconds of one core. "
            f"In brackets the exponent with which the time grew since the row above.",
            table(["servers J", "chains", *(f"{column}, s" for column in PLANNED.values())], rows),
        ]
    )
