"""What became of requests while servers failed."""

import statistics
from typing import Any

from sections.table import table


def section(report: dict[str, Any]) -> str:
    """What became of requests while servers failed: as Markdown."""
    about, figures = report["circumstances"], report["figures"]
    faults = ", ".join(f"{count} {kind}" for kind, count in sorted(figures["faults"].items()))
    ended = {name: figures[name] for name in ("right", "wrong", "hung")} | figures["errors"]
    parts = [
        f"## Servers that fail\n\n`{about['command']}`, {about['date']}, commit {about['commit']}: "
        f"{about['model']}; {about['hardware']}; {about['software']}.",
        f"{figures['requests']} requests, {about['workers']} at a time, over three spans with two servers each, "
        f"and {sum(figures['faults'].values())} servers that failed meanwhile ({faults}). Answers went on "
        f"elsewhere {figures['recoveries']} times. The longest pause between two tokens of an answer that did: "
        f"median {figures['median_stall_s']:.1f} s, P99 {figures['p99_stall_s']:.1f} s; a server that freezes is "
        f"noticed after 5 s, and all processes share the cores with those that start anew. Afterwards all cache "
        f"was free and nobody waited: {'yes' if figures['is_free_afterwards'] else 'no'}.",
        table(["ended", *ended], [["requests", *map(str, ended.values())]]),
    ]
    if cases := figures["single"]:
        beyond_s = statistics.median(case["stall_s"] - case["prefill_s"] for case in cases)
        parts += [
            f"One server killed while nothing else runs, {len(cases)} times: seconds from that to the next token, "
            f"and of a prefill of the tokens that were known by then. The median of the difference is "
            f"{beyond_s:.2f} s.",
            table(
                ["killed", *(f"server {case['position'] + 1} of 3" for case in cases)],
                [
                    ["to the next token, s", *(f"{case['stall_s']:.2f}" for case in cases)],
                    ["prefill, s", *(f"{case['prefill_s']:.2f}" for case in cases)],
                ],
            ),
        ]
    return "\n\n".join(parts)
