"""Predicted beside observed times of steps."""

from typing import Any

from sections.table import table


def section(report: dict[str, Any]) -> str:
    """Predicted beside observed times of steps, by chain: as Markdown."""
    about, figures = report["circumstances"], report["figures"]

    def cell(case: dict[str, float]) -> str:
        return f"{case['predicted_ms']:.0f} / {case['observed_ms']:.0f} ({case['error']:+.0%})"

    def cases(kind: str) -> str:
        rows = [[name, *(cell(case) for case in row.values())] for name, row in figures[kind].items()]
        return table(["", *next(iter(figures[kind].values()))], rows)

    errors = figures["median_error"]
    return "\n\n".join(
        [
            f"## Profiles\n\n`{about['command']}`, {about['date']}, commit {about['commit']}: {about['model']}; "
            f"{about['hardware']}; {about['software']}; medians of {about['rounds']} rounds, with a new "
            f"profile before each chain. Measuring took {figures['measure_s']:.1f} s, reading a profile that was kept "
            f"{1000 * figures['read_s']:.1f} ms.",
            f"Milliseconds of a forward, summed over the servers of the chain, predicted / observed. The median error "
            f"is {errors['prefill']:.0%} for prefill and {errors['decode']:.0%} for decoding. Servers that compute at "
            f"the same time share the cores here, as several sessions over several servers do, which no profile of one "
            f"server can know: over one server only, the median errors are {errors['prefill of 1 server']:.0%} and "
            f"{errors['decode of 1 server']:.0%}.",
            "Prefill, by tokens of the prompt, in chunks of at most 512:",
            cases("prefill"),
            "Decoding, by sessions at once:",
            cases("decode"),
        ]
    )
