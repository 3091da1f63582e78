"""The results as Markdown: for the terminal, and for docs/benchmarks.md."""

from collections.abc import Callable, Mapping
from typing import Any

from sections.table import table

from network.figures import KINDS, PARTS, lower_by, relative_error
from network.settings import OURS, PAPER_LOWER, TITLES

COLUMNS = ("mean", "median", "p95", "p99", "max")


def policies(report: Mapping[str, Any]) -> str:
    """The paper's table, measured here: one row a policy and kind of time."""
    about, rows = report["circumstances"], report["figures"]["of"]
    times = [
        [TITLES[name] if kind == "response" else "", kind, *_cells(row["times"][kind])]
        for name, row in rows.items()
        for kind in KINDS
    ]
    counts = [
        [
            TITLES[name],
            f"{row['num_answered']} of {row['num_requests']}",
            f"{row['requests_per_s']:.2f}",
            f"{row['tokens_per_s']:.1f}",
            _number(row["hops"], ".1f"),
            f"{row['start_s']:.0f}",
            f"{row['cores_busy']:.2f}",
            _number(row["overrun"], ".2f"),
        ]
        for name, row in rows.items()
    ]
    head = ["", "answered", "requests/s", "tokens/s", "hops", "start, s", "cores busy", "overrun"]
    return "\n\n".join(
        [
            f"{heading(about)} {links_line(report)}",
            table(["", "seconds", *COLUMNS], times),
            *gains(rows),
            "Where the mean response time goes, seconds:",
            table(["", *PARTS], [[TITLES[name], *_parts(row)] for name, row in rows.items()]),
            "How it ran. Cores busy count everything on the machine; overrun is how many times as long as emulated the "
            "median forward of the server took where that was most:",
            table(head, counts),
            *model_against_reality(rows),
        ]
    )


def gains(rows: Mapping[str, Any]) -> list[str]:
    """By how much ours is lower than others, beside what the paper measured."""
    if OURS not in rows or (ours := rows[OURS]["times"]["response"]) is None:
        return []
    told = []
    for name, row in rows.items():
        if name == OURS or (theirs := row["times"]["response"]) is None:
            continue
        lower = lower_by(ours["mean"], theirs["mean"])
        paper = f" (the paper: {PAPER_LOWER[name]:.1%})" if name in PAPER_LOWER else ""
        told.append(f"{abs(lower):.1%} {'lower' if lower >= 0 else 'higher'} than with {TITLES[name]}{paper}")
    return [f"The mean response time with {TITLES[OURS]} is {', '.join(told)}."] if told else []


def model_against_reality(rows: Mapping[str, Any]) -> list[str]:
    """The simulator's times beside the measured ones; nothing where there is no prediction."""
    lines = []
    for name, row in rows.items():
        told, measured = row.get("prediction"), row["times"]
        if told is None or measured["response"] is None:
            continue
        error = relative_error(told["response"]["mean"], measured["response"]["mean"])
        cells = [
            f"{told[kind]['mean']:.2f} / {measured[kind]['mean']:.2f}" if told.get(kind) and measured[kind] else "-"
            for kind in ("response", "waiting", "service")
        ]
        bounds = told.get("bounds")
        lines.append(
            [TITLES.get(name, name), *cells, f"{error:+.0%}", f"{bounds[0]:.2f} to {bounds[1]:.2f}" if bounds else "-"]
        )
    if not lines:
        return []
    head = ["", "response", "waiting", "service", "error of the response", "bounds"]
    return ["The simulator's mean times beside the measured ones, seconds, predicted / measured:", table(head, lines)]


def churn(report: Mapping[str, Any]) -> str:
    """What became of requests while servers were killed."""
    about, row = report["circumstances"], report["figures"]["of"]
    killed = ", ".join(f"{one['host']} at {one['at_s']:.0f} s" for one in row["killed"])
    return "\n\n".join(
        [
            f"{heading(about)} {links_line(report)}",
            f"{len(row['killed'])} servers were killed, one every 30 s, and started again after 5 s ({killed}). "
            f"{row['num_answered']} of {row['num_requests']} requests were answered, {row['num_lost']} were lost; "
            f"{row['num_retried']} went on over another chain.",
            table(["seconds", *COLUMNS], [[kind, *_cells(row["times"][kind])] for kind in KINDS]),
            *(f"Failed: {error} ({number} times)." for error, number in row["errors"].items()),
        ]
    )


def loads(report: Mapping[str, Any]) -> str:
    """Response times by load."""
    about, figures = report["circumstances"], report["figures"]["of"]
    rows = [
        [
            share,
            f"{row['rate']:.2f}",
            f"{row['num_answered']} of {row['num_requests']}",
            *_cells(row["times"]["response"])[:3],
            *_cells(row["times"]["waiting"])[:1],
            *_cells(row["times"]["service"])[:1],
            _number(row["prediction"] and row["prediction"]["response"]["mean"], ".2f"),
        ]
        for share, row in figures["loads"].items()
    ]
    head = ["load", "requests/s", "answered", *(f"response {name}" for name in COLUMNS[:3])]
    return "\n\n".join(
        [
            f"{heading(about)} {links_line(report)}",
            f"The plan's capacity is {figures['max_requests_per_s']:.2f} requests per second. Seconds:",
            table([*head, "waiting mean", "service mean", "response predicted"], rows),
        ]
    )


SECTIONS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "policies": policies,
    "gpu": policies,
    "churn": churn,
    "loads": loads,
}
HEADINGS = {
    "policies": "Many servers, wide links, a real trace",
    "churn": "The same, with a server killed every 30 s",
    "loads": "The same, by load",
    "gpu": "The full size on a GPU",
}


def section(report: Mapping[str, Any]) -> str:
    """One result as a section of the page."""
    name = report["circumstances"]["benchmark"].removeprefix("network: ")
    return f"## {HEADINGS[name]}\n\n{SECTIONS[name](report)}"


def heading(about: Mapping[str, Any]) -> str:
    """How it was measured, in words."""
    kinds = "; ".join(
        f"{name}: {kind['memory']}" + ("" if kind["slowdown"] is None else f", {kind['slowdown']:g} times as slow")
        for name, kind in about["kinds"].items()
    )
    made_up = [f"{what} {source}" for what, source in about["sources"].items() if source.startswith("made up")]
    num_in, num_out = about["mean_tokens"]
    rate = " each" if about["benchmark"] == "network: loads" else f", {about['rate']:g} per second"
    facts = [
        f"`{about['command']}`, {about['date']}, commit {about['commit']}: {about['model']}",
        f"{about['servers']} servers ({kinds})",
        f"{about['num_requests']} requests{rate}, {num_in:.0f} tokens in and {num_out:.1f} out",
        f"{about['hardware']}; {about['software']}",
        *made_up,
    ]
    return "; ".join(facts) + f". It took {about['took_s'] / 60:.0f} minutes."


def links_line(report: Mapping[str, Any]) -> str:
    """What was asked of the links and what they are."""
    links = report["figures"]["links"]
    off = [abs(link["round_trip_ms"] - link["asked_ms"]) for link in links if link["round_trip_ms"] is not None]
    good = sum(link["is_as_asked"] for link in links)
    asked = [link["asked_ms"] for link in links]
    return (
        f"Links by {report['circumstances']['links']}, round trips of {min(asked):.0f} to {max(asked):.0f} ms: "
        f"{good} of {len(links)} within 1 ms + 5 % of what was asked, at most {max(off, default=0):.2f} ms off."
    )


def _cells(one: Mapping[str, float] | None) -> list[str]:
    return ["-"] * len(COLUMNS) if one is None else [f"{one[name]:.2f}" for name in COLUMNS]


def _parts(row: Mapping[str, Any]) -> list[str]:
    return ["-"] * len(PARTS) if row["where"] is None else [f"{row['where'][part]:.2f}" for part in PARTS]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
