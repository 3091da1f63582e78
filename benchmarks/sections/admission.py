"""Waiting by chains, tickets and delay."""

from typing import Any

from sections.table import table


def section(report: dict[str, Any]) -> str:
    """Waiting by chains, tickets and delay, with heads and with one central queue: as Markdown."""
    about, figures = report["circumstances"], report["figures"]

    def cell(row: dict[str, float], what: str = "waiting") -> str:
        return f"{row[f'{what}_mean_s']:.2f} / {row[f'{what}_p99_s']:.1f}"

    mean = "waiting_mean_s"
    few, all_ = (
        {delay: row[mean] for delay, row in figures["tickets"]["0.9"][num_tickets].items()}
        for num_tickets in ("4", "16")
    )
    farther_s = max(
        row["0.1"]["heads"][mean] - row["0.1"]["central"][mean]
        for rows in figures["chains"].values()
        for row in rows.values()
    )
    parts = [
        f"## Admission without a centre\n\n`{about['command']}`, {about['date']}, commit {about['commit']}: "
        f"{about['requests']:,} requests per case, simulated, chains of capacity 2 with service times from 6 s to 14 "
        f"s; {about['software']}.",
        f"Without delay, tickets at all heads are one central queue, request for request. A request asks up to 16 "
        f"heads and then keeps its tickets at 4 of them, which costs {few['0.0'] - all_['0.0']:.2f} s of mean waiting "
        f"for 16 chains at load 0.9, where a central queue makes {all_['0.0']:.2f} s. With messages that take 0.1 s "
        f"it waits at most {farther_s:.2f} s longer in the mean than with a centre as far away: a round trip, 0.2 s, "
        f"as the fastest chain is asked before all others; the rest as places are offered to requests that have found "
        f"one elsewhere. At load 0.9 and 0.3 s both are near their limit, as a place is empty for three messages "
        f"between two sessions.",
        f"Tickets at all heads would be worse, the more the longer messages take: all heads offer their places to the "
        f"same request, the first in each queue, and to the next only when it has withdrawn, so that a round trip "
        f"starts about one request. For 16 chains at load 0.9 and 0.3 s this makes {all_['0.3']:.0f} s of waiting "
        f"where 4 tickets make {few['0.3']:.0f} s.",
    ]
    for load, rows in figures["chains"].items():
        delays = next(iter(rows.values()))
        lines = [
            [num, cell(row["0.0"]["central"]), *(f"{cell(r['heads'])} ({cell(r['central'])})" for r in row.values())]
            for num, row in rows.items()
        ]
        parts += [
            f"Load {load}: seconds of waiting, mean / P99, with heads (with a centre as far away):",
            table(["chains", "one queue, no messages", *(f"delay {delay} s" for delay in delays)], lines),
        ]
    for load, rows in figures["tickets"].items():
        delays = next(iter(rows.values()))
        lines = [[num, *map(cell, row.values())] for num, row in rows.items()]
        parts += [
            f"16 chains, all asked, load {load}: seconds of waiting, mean / P99, by the tickets that are kept:",
            table(["tickets", *(f"delay {delay} s" for delay in delays)], lines),
        ]
    for load, rows in figures["patience"].items():
        _, *delays = next(iter(rows.values()))
        lines = [[name, *(cell(case, "response") for case in row.values())] for name, row in rows.items()]
        parts += [
            f"4 chains of 6 s to 40 s, load {load}: seconds of response, mean / P99, if slow chains are patient:",
            table(["", "one queue, no messages", *(f"delay {delay} s" for delay in delays)], lines),
        ]
    return "\n\n".join(parts)
