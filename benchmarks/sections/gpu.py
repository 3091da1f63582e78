"""One packed forward, and a swarm on the same device."""

from typing import Any

from sections.table import table


def section(forward: dict[str, Any], decode: dict[str, Any]) -> str:
    """One packed forward, and a swarm on the same device, as Markdown."""
    about, figures = forward["circumstances"], forward["figures"]
    num_sessions = list(figures["128 cached"]["graphs"])
    forwards = [
        [f"{cached}, {how}", *(f"{1e3 * seconds:.1f}" for seconds in by_num.values())]
        for cached, rows in figures.items()
        if isinstance(rows, dict)
        for how, by_num in rows.items()
    ]
    swarm = decode["figures"]
    speeds = [
        [name, *(f"{rows['tokens_per_s'][num]:.0f}" for num in num_sessions), f"{rows['of_roofline']:.3f}"]
        for name, rows in swarm.items()
        if isinstance(rows, dict)
    ]
    roofline_ms, served = 1e3 * figures["roofline_s"], decode["circumstances"]
    return "\n\n".join(
        [
            f"## On a GPU\n\nA model of Llama-2-7B's shape with random weights in bfloat16 on one {about['device']}, "
            f"{about['date']}, commit {about['commit']}; {about['software']}.",
            f"`{about['command']}`: milliseconds of a decode step through all blocks, medians of {about['rounds']}. "
            f"The device reads the blocks' weights in {roofline_ms:.1f} ms.",
            table(["", *(f"{num} sessions" for num in num_sessions)], forwards),
            f"`{served['command']}`: tokens per second through servers on this one device, and of one session over "
            f"what reading all weights but the embedding allows ({swarm['roofline_tokens_per_s']:.0f}).",
            table(["", *(f"{num} sessions" for num in num_sessions), "of the roofline"], speeds),
        ]
    )
