"""Memory, times and perplexity of blocks by their kind of weights."""

from typing import Any

from sections.table import table


def section(report: dict[str, Any]) -> str:
    """Memory, times and perplexity of blocks by their kind of weights: as Markdown."""
    about, figures = report["circumstances"], report["figures"]
    first = next(iter(figures.values()))

    def beside(value: float, plain: float, form: str) -> str:
        return f"{value:{form}} ({value / plain:.2f})"

    rows = [
        [
            name,
            beside(row["weight_mb"], first["weight_mb"], ".0f"),
            f"{row['load_s']:.1f}",
            *(beside(ms, first["decode_ms"][num], ".1f") for num, ms in row["decode_ms"].items()),
            beside(row["prefill_ms"], first["prefill_ms"], ".0f"),
            beside(row["perplexity"], first["perplexity"], ".2f"),
        ]
        for name, row in figures.items()
    ]
    steps = [f"decode step of {num} session{'s' if int(num) > 1 else ''}, ms" for num in first["decode_ms"]]
    return "\n\n".join(
        [
            f"## Quantized blocks\n\n`{about['command']}`, {about['date']}, commit {about['commit']}: "
            f"{about['model']}; {about['hardware']}; {about['software']}; medians of {about['rounds']} rounds.",
            f"Perplexity is that of {about['text']}. In brackets: relative to float32.",
            table(["", "weights of blocks, MB", "loading, s", *steps, "prefill of 256, ms", "perplexity"], rows),
        ]
    )
