"""What far servers cost, each part measured by itself."""

from collections.abc import Mapping
from typing import Any

from sections.table import table


def section(reports: Mapping[str, dict[str, Any]]) -> str:
    """What far servers cost, each part measured by itself: as Markdown."""
    parts = {"loop": loop, "drafts": drafts, "prompt": long_prompt, "prefix": prefix}
    return "\n\n".join(
        [
            "## Servers far from each other\n\nEvery frame takes some milliseconds longer, over real links between "
            "processes of one machine.",
            *(parts[name](reports[name]) for name in parts if name in reports),
        ]
    )


def measured(about: dict[str, Any]) -> str:
    """How a part of a benchmark was measured, in words."""
    return (
        f"`{about['command']}`, {about['date']}, commit {about['commit']}: {about['model']}; {about['hardware']}; "
        f"{about['software']}; {about['one_way_ms']:.0f} ms one way; medians of {about['rounds']} rounds."
    )


def loop(report: dict[str, Any]) -> str:
    """Tokens around far servers beside the bound."""
    rows = [
        [name, f"{row['ms_per_token']:.1f}", f"{row['bound_ms']:.1f}", f"{row['ratio']:.3f}"]
        for name, row in report["figures"].items()
    ]
    return "\n\n".join(
        [
            f"One stream around the servers; the bound is what they computed, and one way per server. "
            f"{measured(report['circumstances'])}",
            table(["", "ms per token", "bound, ms", "ratio"], rows),
        ]
    )


def drafts(report: dict[str, Any]) -> str:
    """Speed with drafts."""
    rows = [
        [
            kind,
            f"{row['plain_tokens_per_second']:.1f}",
            f"{row['drafted_tokens_per_second']:.1f}",
            f"{row['speedup']:.2f}",
            f"{row['least']:.2f} to {row['most']:.2f}",
        ]
        for kind, row in report["figures"].items()
    ]
    return "\n\n".join(
        [
            "Three servers, greedy answers with drafts and without, the same tokens. Where there is a draft model it "
            "is the servers' own, for want of a smaller one: nearly all is right, and a draft takes long. "
            f"{measured(report['circumstances'])}",
            table(["prompts", "tokens/s without", "with", "speedup", "of single prompts"], rows),
        ]
    )


def long_prompt(report: dict[str, Any]) -> str:
    """A prompt through many servers."""
    about = report["circumstances"]
    rows = [
        [
            name if num == "1" else "",
            num,
            f"{row['ms_to_first_token']:.0f}",
            f"{row['speedup']:.2f}",
            f"{row['per_server']:.2f}",
            f"{row['bound']:.2f}",
        ]
        for name, by_number in report["figures"].items()
        for num, row in by_number.items()
    ]
    return "\n\n".join(
        [
            f"A prompt of {about['prompt_tokens']:,} tokens through equal servers that sleep where they would compute, "
            "by card and round trip. The bound is the best of equal chunks without links: small ones take longer per "
            f"token, large ones keep servers waiting at both ends. {measured(about)}",
            table(["", "servers", "ms to first token", "speedup", "per server", "bound"], rows),
        ]
    )


def prefix(report: dict[str, Any]) -> str:
    """Sessions whose prompts begin alike."""
    about = report["circumstances"]
    rows = [
        [kind, str(row["tokens"]), ", ".join(map(str, row["computed"])), f"{row['ms_to_last_first_token']:.0f}"]
        for kind, row in report["figures"].items()
    ]
    return "\n\n".join(
        [
            f"{about['prefix_sessions']} sessions at once through two servers, whose prompts begin with the same "
            f"{about['prefix_tokens']:,} tokens, or not. {measured(about)}",
            table(["prompts", "tokens of all", "computed by each server", "ms until all have a token"], rows),
        ]
    )
