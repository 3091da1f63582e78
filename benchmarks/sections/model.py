"""What the simulator says of requests beside what they took."""

from typing import Any

from sections.table import table


def section(report: dict[str, Any]) -> str:
    """What the simulator says of requests beside what they took, as Markdown."""
    about, figures = report["circumstances"], report["figures"]
    rows = []
    for name, run in figures.items():
        measured, predicted, bounds = run["measured"]["mean"], run["predicted"]["mean"], run["predicted"]["bounds_s"]
        rows.append([
            name,
            *(f"{measured[kind]:.3f} / {predicted[kind]:.3f}" for kind in ("response_s", "waiting_s", "service_s")),
            f"{100 * run['off_by']:+.0f} %",
            " to ".join("none" if bound is None else f"{bound:.3f}" for bound in bounds),
            f"{run['message_ms']:.1f}",
        ])  # fmt: skip
    return "\n\n".join(
        [
            f"## The model against reality\n\n`{about['command']}`, {about['date']}, commit {about['commit']}: "
            f"{about['requests']} requests, {about['rate']:g} per second, three servers of "
            f"{', '.join(about['memory'])} that sleep {', '.join(f'{slow:g}' for slow in about['slowness'])} times as "
            f"long as distance.py's; everybody {about['one_way_ms']:g} ms from everybody; {about['hardware']}; "
            f"{about['software']}. Mean seconds, measured / predicted by the simulator, and Thm. 4's bounds:",
            table(
                ["", "response", "waiting", "service", "response off by", "bounds", "ms of software per message"],
                rows,
            ),
        ]
    )
