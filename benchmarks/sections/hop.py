"""What one more server costs."""

from typing import Any

from sections.table import table


def section(report: dict[str, Any]) -> str:
    """What one more server costs, as Markdown."""
    about, figures = report["circumstances"], report["figures"]
    alone_ms = figures["1"]["ms_per_token"]
    rows = [
        [
            num,
            f"{row['ms_per_token']:.2f}",
            "" if num == "1" else f"{row['ms_per_extra_hop']:.2f}",
            "" if num == "1" else f"{(row['ms_per_token'] - alone_ms) / int(num):.2f}",
        ]
        for num, row in figures.items()
    ]
    return "\n\n".join(
        [
            f"## One more server\n\n`{about['command']}`, {about['date']}, commit {about['commit']}: a model that "
            f"computes next to nothing, with hidden states of {about['bytes_per_token']:,} bytes per token, servers on "
            f"loopback; {about['hardware']}; {about['software']}; medians of {about['rounds']} rounds of "
            f"{about['tokens']} tokens.",
            "The tail also tells the head: for a token n servers send each other n messages, one server none.",
            table(["servers", "ms per token", "ms per extra hop", "ms more per message"], rows),
        ]
    )
