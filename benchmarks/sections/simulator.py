"""Requests per second by policy and number of chains."""

from typing import Any

from sections.table import table


def section(report: dict[str, Any]) -> str:
    """Requests per second by policy and number of chains: as Markdown."""
    about, figures = report["circumstances"], report["figures"]["requests_per_second"]
    numbers = next(iter(figures.values()))
    rows = [[name, *(f"{speed / 1000:.0f}" for speed in row.values())] for name, row in figures.items()]
    return "\n\n".join(
        [
            f"## Simulating at the paper's level\n\n`{about['command']}`, {about['date']}, commit {about['commit']}: "
            f"{about['requests']:,} requests at a load of 0.9; {about['hardware']}; {about['software']}; medians of "
            f"{about['rounds']} rounds, one core.",
            "Thousands of requests per second:",
            table(["", *(f"{num} chains" if int(num) > 1 else "1 chain" for num in numbers)], rows),
        ]
    )
