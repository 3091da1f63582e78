"""What a day of joins, leaves and losses costs."""

from typing import Any

from sections.table import table


def section(report: dict[str, Any]) -> str:
    """What a day of joins, leaves and losses costs, with and without a price on loading: as Markdown."""
    about, figures = report["circumstances"], report["figures"]
    rows = [
        [
            f"{case}, {price}",
            f"{row['joins']:,} / {row['leaves']:,} / {row['losses']:,}",
            f"{row['epochs']:,}",
            f"{row['blocks_moved_per_event']:.2f}",
            f"{row['gb_loaded_again_per_event']:.2f}",
            f"{row['uncovered_s']:.0f}",
            f"{row['uncovered_by_moves']}",
            f"{row['mean_response_s']:.2f}",
            f"{row['took_s']:.0f}, {row['planning_s']:.0f}",
        ]
        for case, prices in figures.items()
        for price, row in prices.items()
    ]
    head = [
        "",
        "joins / leaves / losses",
        "epochs",
        "blocks given up per event",
        "GB loaded again per event",
        "s with a block unserved",
        "blocks unserved by a move",
        "predicted response, s",
        "took s, planning",
    ]
    return "\n\n".join(
        [
            f"## A day of churn\n\n`{about['command']}`, {about['date']}, commit {about['commit']}: "
            f"{about['hours']:g} hours by a virtual clock, {about['num_blocks']} blocks of 1.7 GB over servers of 12 "
            f"to 40 GB; {about['hardware']}; {about['software']}.",
            "Real members and planners, hosts that only pretend to load. What a server loads when it has just joined "
            "is not counted as loaded again. A block goes unserved by a move if a server gives it up that is the last "
            "to hold it as far as records tell; a lost server's record counts until its lease is over.",
            table(head, rows),
        ]
    )
