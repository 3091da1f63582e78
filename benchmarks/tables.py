"""docs/benchmarks.md out of the results: python benchmarks/tables.py"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parent.parent
HEADING = """# Measured

Made by `python benchmarks/tables.py` from `benchmarks/results/`; run the commands named to measure again. Absolute
speeds are those of the machine named; the ratios within one run are what counts.
"""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def decode(report: dict[str, Any]) -> str:
    """One stream, several sessions, time to first token: as Markdown."""
    about, figures = report["circumstances"], report["figures"]
    streams = [
        [
            name,
            f"{row['tokens_per_second']:.1f}",
            f"{row['ms_per_token']:.1f}",
            f"{row['relative_to_transformers']:.2f}",
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
            f"## Decoding on one machine\n\n`{about['command']}`, {about['date']}, commit {about['commit']}: "
            f"{about['model']}; {about['hardware']}; {about['software']}; {about['tokens']} tokens per stream, "
            f"medians of {about['rounds']} rounds.",
            "One stream, 16 prompt tokens:",
            table(["", "tokens/s", "ms per token", "relative to transformers", "ms per extra hop"], streams),
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


PLANNED = {
    "placement": "GBP-CR",
    "allocation": "GCA",
    "both": "both",
    "pairs": "GCA, every pair its own time",
    "search": "search over c",
    "whole": "plan(), with the local search",
}


def planning(report: dict[str, Any]) -> str:
    """CPU seconds against servers, with the exponent of growth since the row above: as Markdown."""
    about, figures = report["circumstances"], report["figures"]

    def cell(name: str, row: dict[str, float], before: dict[str, float] | None) -> str:
        if name not in row:
            return ""
        if before is None:
            return f"{row[name]:.2g}"
        exponent = math.log(row[name] / before[name]) / math.log(row["servers"] / before["servers"])
        return f"{row[name]:.2g} (J^{exponent:.1f})"

    rows = [
        [f"{row['servers']:,}", f"{row['chains']:,}", *(cell(name, row, before) for name in PLANNED)]
        for before, row in zip([None, *figures], figures, strict=False)
    ]
    return "\n\n".join(
        [
            f"## Planning\n\n`{about['command']}`, {about['date']}, commit {about['commit']}: {about['model']}; "
            f"{about['hardware']}; {about['software']}; medians of {about['rounds']} rounds, CPU seconds of one core. "
            f"In brackets the exponent with which the time grew since the row above.",
            table(["servers J", "chains", *(f"{column}, s" for column in PLANNED.values())], rows),
        ]
    )


def distance(reports: Mapping[str, dict[str, Any]]) -> str:
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


def simulator(report: dict[str, Any]) -> str:
    """Requests per second by policy and number of chains: as Markdown."""
    about, figures = report["circumstances"], report["figures"]["requests_per_second"]
    numbers = next(iter(figures.values()))
    rows = [[name, *(f"{speed / 1000:.0f}" for speed in row.values())] for name, row in figures.items()]
    return "\n\n".join(
        [
            f"## Simulating at the paper's level\n\n`{about['command']}`, {about['date']}, commit {about['commit']}: "
            f"{about['requests']:,} requests at a load of 0.9; {about['hardware']}; {about['software']}; medians of "
            f"{about['rounds']} rounds, one core.",
            "Thousands of requests per second:",
            table(["", *(f"{num} chains" if int(num) > 1 else "1 chain" for num in numbers)], rows),
        ]
    )


def profiles(report: dict[str, Any]) -> str:
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


def churn(report: dict[str, Any]) -> str:
    """What a day of joins, leaves and losses costs, with and without a price on loading: as Markdown."""
    about, figures = report["circumstances"], report["figures"]
    rows = [
        [
            f"{case}, {price}",
            f"{row['joins']:,} / {row['leaves']:,} / {row['losses']:,}",
            f"{row['epochs']:,}",
            f"{row['blocks_moved_per_event']:.2f}",
            f"{row['gb_loaded_again_per_event']:.2f}",
            f"{row['uncovered_s']:.0f}",
            f"{row['uncovered_by_moves']}",
            f"{row['mean_response_s']:.2f}",
            f"{row['took_s']:.0f}, {row['planning_s']:.0f}",
        ]
        for case, prices in figures.items()
        for price, row in prices.items()
    ]
    head = [
        "",
        "joins / leaves / losses",
        "epochs",
        "blocks given up per event",
        "GB loaded again per event",
        "s with a block unserved",
        "blocks unserved by a move",
        "predicted response, s",
        "took s, planning",
    ]
    return "\n\n".join(
        [
            f"## A day of churn\n\n`{about['command']}`, {about['date']}, commit {about['commit']}: "
            f"{about['hours']:g} hours by a virtual clock, {about['num_blocks']} blocks of 1.7 GB over servers of 12 "
            f"to 40 GB; {about['hardware']}; {about['software']}.",
            "Real members and planners, hosts that only pretend to load. What a server loads when it has just joined "
            "is not counted as loaded again. A block goes unserved by a move if a server gives it up that is the last "
            "to hold it as far as records tell; a lost server's record counts until its lease is over.",
            table(head, rows),
        ]
    )


def admission(report: dict[str, Any]) -> str:
    """Waiting by chains, tickets and delay, with heads and with one central queue: as Markdown."""
    about, figures = report["circumstances"], report["figures"]

    def cell(row: dict[str, float], what: str = "waiting") -> str:
        return f"{row[f'{what}_mean_s']:.2f} / {row[f'{what}_p99_s']:.1f}"

    mean = "waiting_mean_s"
    few, all_ = (
        {delay: row[mean] for delay, row in figures["tickets"]["0.9"][num_tickets].items()}
        for num_tickets in ("4", "16")
    )
    farther_s = max(
        row["0.1"]["heads"][mean] - row["0.1"]["central"][mean]
        for rows in figures["chains"].values()
        for row in rows.values()
    )
    parts = [
        f"## Admission without a centre\n\n`{about['command']}`, {about['date']}, commit {about['commit']}: "
        f"{about['requests']:,} requests per case, simulated, chains of capacity 2 with service times from 6 s to 14 "
        f"s; {about['software']}.",
        f"Without delay, tickets at all heads are one central queue, request for request. A request asks up to 16 "
        f"heads and then keeps its tickets at 4 of them, which costs {few['0.0'] - all_['0.0']:.2f} s of mean waiting "
        f"for 16 chains at load 0.9, where a central queue makes {all_['0.0']:.2f} s. With messages that take 0.1 s "
        f"it waits at most {farther_s:.2f} s longer in the mean than with a centre as far away: a round trip, 0.2 s, "
        f"as the fastest chain is asked before all others; the rest as places are offered to requests that have found "
        f"one elsewhere. At load 0.9 and 0.3 s both are near their limit, as a place is empty for three messages "
        f"between two sessions.",
        f"Tickets at all heads would be worse, the more the longer messages take: all heads offer their places to the "
        f"same request, the first in each queue, and to the next only when it has withdrawn, so that a round trip "
        f"starts about one request. For 16 chains at load 0.9 and 0.3 s this makes {all_['0.3']:.0f} s of waiting "
        f"where 4 tickets make {few['0.3']:.0f} s.",
    ]
    for load, rows in figures["chains"].items():
        delays = next(iter(rows.values()))
        lines = [
            [num, cell(row["0.0"]["central"]), *(f"{cell(r['heads'])} ({cell(r['central'])})" for r in row.values())]
            for num, row in rows.items()
        ]
        parts += [
            f"Load {load}: seconds of waiting, mean / P99, with heads (with a centre as far away):",
            table(["chains", "one queue, no messages", *(f"delay {delay} s" for delay in delays)], lines),
        ]
    for load, rows in figures["tickets"].items():
        delays = next(iter(rows.values()))
        lines = [[num, *map(cell, row.values())] for num, row in rows.items()]
        parts += [
            f"16 chains, all asked, load {load}: seconds of waiting, mean / P99, by the tickets that are kept:",
            table(["tickets", *(f"delay {delay} s" for delay in delays)], lines),
        ]
    for load, rows in figures["patience"].items():
        _, *delays = next(iter(rows.values()))
        lines = [[name, *(cell(case, "response") for case in row.values())] for name, row in rows.items()]
        parts += [
            f"4 chains of 6 s to 40 s, load {load}: seconds of response, mean / P99, if slow chains are patient:",
            table(["", "one queue, no messages", *(f"delay {delay} s" for delay in delays)], lines),
        ]
    return "\n\n".join(parts)


def burst(report: dict[str, Any]) -> str:
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


def chaos(report: dict[str, Any]) -> str:
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


def quantization(report: dict[str, Any]) -> str:
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


def hop(report: dict[str, Any]) -> str:
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


def model(report: dict[str, Any]) -> str:
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


def on_a_gpu(forward: dict[str, Any], decode: dict[str, Any]) -> str:
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


def network_sections(results: Path) -> list[str]:
    """Those of the network bench whose results are there."""
    from network.report import HEADINGS, section  # which takes `table` from here

    paths = [results / f"{name}.json" for name in HEADINGS]
    return [section(json.loads(path.read_text())) for path in paths if path.exists()]


SECTIONS = (decode, hop, planning, simulator, profiles, churn, admission, burst, chaos, quantization)


def main() -> None:
    def result(name: str) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((PROJECT / "benchmarks" / "results" / f"{name}.json").read_text())
        return report

    sections = [section(result(section.__name__)) for section in SECTIONS]
    sections.insert(2, on_a_gpu(result("gpu/forward"), result("gpu/decode")))
    parts = (PROJECT / "benchmarks" / "results" / "distance").glob("*.json")
    sections.insert(3, distance({part.stem: json.loads(part.read_text()) for part in parts}))
    sections += network_sections(PROJECT / "benchmarks" / "results" / "network")
    (PROJECT / "docs" / "benchmarks.md").write_text("\n\n".join([HEADING.strip(), *sections]) + "\n")


if __name__ == "__main__":
    main()
