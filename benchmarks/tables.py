"""docs/benchmarks.md out of the results: python benchmarks/tables.py"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parent.parent
HEADING = """# Measured

Made by `python benchmarks/tables.py` from `benchmarks/results/`; run the commands named to measure again. Absolute
speeds are those of the machine named; the ratios within one run are what counts.
"""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def decode(report: dict[str, Any]) -> str:
    """One stream, several sessions, time to first token: as Markdown."""
    about, figures = report["circumstances"], report["figures"]
    streams = [
        [
            name,
            f"{row['tokens_per_second']:.1f}",
            f"{row['ms_per_token']:.1f}",
            f"{row['relative_to_transformers']:.2f}",
            "" if row["ms_per_extra_hop"] is None else f"{row['ms_per_extra_hop']:.1f}",
        ]
        for name, row in figures["one_stream"].items()
    ]
    sessions = [
        [name, *(f"{speed:.1f}" for speed in row.values())]
        for name, row in figures["tokens_per_second_of_all_sessions"].items()
    ]
    numbers = next(iter(figures["tokens_per_second_of_all_sessions"].values()))
    first = [[name, *(f"{ms:.0f}" for ms in row.values())] for name, row in figures["ms_to_first_token"].items()]
    lengths = next(iter(figures["ms_to_first_token"].values()))
    return "\n\n".join(
        [
            f"## Decoding on one machine\n\n`{about['command']}`, {about['date']}, commit {about['commit']}: "
            f"{about['model']}; {about['hardware']}; {about['software']}; {about['tokens']} tokens per stream, "
            f"medians of {about['rounds']} rounds.",
            "One stream, 16 prompt tokens:",
            table(["", "tokens/s", "ms per token", "relative to transformers", "ms per extra hop"], streams),
            "Tokens per second of all sessions together:",
            table(["", *(f"{num} at once" for num in numbers)], sessions),
            "Milliseconds to the first token:",
            table(["", *(f"{length} prompt tokens" for length in lengths)], first),
        ]
    )


def main() -> None:
    report = json.loads((PROJECT / "benchmarks" / "results" / "decode.json").read_text())
    (PROJECT / "docs" / "benchmarks.md").write_text(f"{HEADING}\n{decode(report)}\n")


if __name__ == "__main__":
    main()
