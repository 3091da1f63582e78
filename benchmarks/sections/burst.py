"""Waiting on real servers beside one simulated queue."""

from typing import Any

from sections.table import table


def section(report: dict[str, Any]) -> str:
    """Waiting on real servers beside one simulated queue: as Markdown."""
    about, figures = report["circumstances"], report["figures"]
    chains = figures["chains"]
    rows = [
        ["real servers, places at heads", f"{figures['mean_waiting_s']:.2f}", f"{figures['p99_waiting_s']:.1f}"],
        [
            "simulated, one central queue",
            f"{figures['simulated_mean_waiting_s']:.2f}",
            f"{figures['simulated_p99_waiting_s']:.1f}",
        ],
    ]
    return "\n\n".join(
        [
            f"## A burst on real servers\n\n`{about['command']}`, {about['date']}, commit {about['commit']}: "
            f"{about['model']}; {about['hardware']}; {about['software']}.",
            f"{figures['requests']} requests of {about['clients']} client processes, all within 2 s, on {len(chains)} "
            f"chains of capacity {chains[0]['capacity']}. The simulator has the same arrivals and service times. Mean "
            f"waiting is {figures['relative_mean_waiting']:.2f} of the central queue's.",
            table(["seconds of waiting", "mean", "P99"], rows),
        ]
    )
