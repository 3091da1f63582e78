"""One stream, several sessions, time to first token."""

from typing import Any

from sections.table import table


def section(report: dict[str, Any]) -> str:
    """One stream, several sessions, time to first token: as Markdown."""
    about, figures = report["circumstances"], report["figures"]
    streams = [
        [
            name,
            f"{row['tokens_per_second']:.1f}",
            f"{row['ms_per_token']:.1f}",
            f"{row['relative_to_transformers']:.2f}",
            f"{row['relative_to_one_server']:.2f}",
            "" if row["ms_per_extra_hop"] is None else f"{row['ms_per_extra_hop']:.1f}",
        ]
        for name, row in figures["one_stream"].items()
    ]

    def speeds(rows: dict[str, dict[str, float]]) -> str:
        """Tokens per second by how many there are at once."""
        head = ["", *(f"{num} at once" for num in next(iter(rows.values()))), "8 over 1", "16 over 1"]
        cells = [
            [
                name,
                *(f"{by_num[num]:.1f}" for num in by_num),
                *(f"{by_num[num] / by_num['1']:.1f}" for num in ("8", "16")),
            ]
            for name, by_num in rows.items()
        ]
        return table(head, cells)

    packed = {"packed forwards, between them": figures["tokens_per_second_of_packed_forwards"]}
    over_one = figures["over_one_relative_to_packed_forwards"]
    of_packed = [
        [name, *(f"{ratio:.2f}" for ratio in row.values()), *(f"{over_one[name][num]:.2f}" for num in ("8", "16"))]
        for name, row in figures["relative_to_packed_forwards"].items()
    ]
    relative = figures["first_token_relative_to_transformers"]
    first = [
        [name, *(f"{ms:.0f} ({relative[name][length]:.2f})" for length, ms in row.items())]
        for name, row in figures["ms_to_first_token"].items()
    ]
    lengths, sessions = next(iter(figures["ms_to_first_token"].values())), next(iter(over_one.values()))
    return "\n\n".join(
        [
            f"## Decoding on one machine: {about['dtype']}\n\n"
            f"`{about['command']}`, {about['date']}, commit {about['commit']}: {about['model']}; {about['hardware']}; "
            f"{about['software']}; {about['tokens']} tokens per stream, medians of {about['rounds']} rounds.",
            f"One stream, 16 prompt tokens, {about['streams']} times in every round:",
            table(
                [
                    "",
                    "tokens/s",
                    "ms per token",
                    "relative to transformers",
                    "relative to 1 server",
                    "ms per extra hop",
                ],
                streams,
            ),
            "Tokens per second of all sessions together, with their prompts:",
            speeds(figures["tokens_per_second_of_all_sessions"]),
            "The same without them, each session from its first token on:",
            speeds(figures["tokens_per_second_after_the_first"] | packed),
            "Their speed relative to packed forwards of as many right before and after them, and how much more 8 and "
            "16 make of 1 than packed forwards do:",
            table(["", *(f"{num} at once" for num in sessions), "8 over 1", "16 over 1"], of_packed),
            "Milliseconds to the first token, and relative to transformers:",
            table(["", *(f"{length} prompt tokens" for length in lengths)], first),
        ]
    )
