"""A run as text for a terminal, as Markdown, as JSON and as CSV."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from chainserve_client.bench.figures import KINDS, Figures, Run, Share, chain_name, figures_of
from chainserve_client.bench.timing import rounded, to_plain
from chainserve_client.tables import count, printable, table
from chainserve_client.units import format_age, format_seconds

HEAD = ("mean", "median", "p95", "p99", "max")
ON_TERMINAL = ("response", "waiting", "service", "first token", "between tokens")
NAMES = {field: name for name, field in KINDS.items()}
MAX_CHAINS = 12
"""That are shown one by one."""
COLUMNS = (
    "index",
    "client",
    "arrival_s",
    "late_s",
    "waited_s",
    "first_s",
    "between_mean_s",
    "between_max_s",
    "total_s",
    "service_s",
    "num_input_tokens",
    "num_asked_tokens",
    "num_tokens",
    "chain",
    "queue_s",
    "compute_s",
    "retries",
    "error",
)
PLOTS = {
    "response.svg": "how long requests took: the share that was within so many seconds",
    "load.svg": "requests at each moment, running and waiting",
    "chains.svg": "requests at each moment by the chain they ran on",
}
MEANING = """\
In seconds, counted from when a request was due. *Response* is until the last token, *waiting* until it had its place on
a chain and its session was open there, *service* the rest. *Between tokens* has every gap of every answer; tokens that
were drafted ahead come at once. *Slowdown* is response over service, *response per token* is over the tokens of prompt
and answer. *Sent late* is how far the client itself was behind: if that is not small, more clients are needed.
Percentiles are values that were seen (nearest rank). Fairness is Jain's index: 1 if all fared alike, 1/n if one of n
had everything."""


def to_text(run: Run) -> str:
    """A few tables; rows and columns of which nothing is known are left out."""
    figures = figures_of(run)
    rows = [
        [title, *(format_seconds(getattr(found, name)) for name in HEAD)]
        for title in ON_TERMINAL
        if (found := figures.summary[KINDS[title]]) is not None
    ]
    lines = [*table(["", *HEAD], rows, right=HEAD), ""] if rows else []
    lines += facts(figures)
    if figures.chains:
        head, shares = _shares_table(figures.chains, chain_name)
        lines += ["", *table([*head[1:], head[0]], [[*row[1:], row[0]] for row in shares], right=head[1:])]
    return "\n".join([*lines, *(f"failed: {_failure(text, number)}" for text, number in figures.errors.items())])


def facts(figures: Figures) -> list[str]:
    """Sentences beside the tables."""
    took = format_age(figures.took_s) if figures.took_s >= 60 else format_seconds(figures.took_s)
    lines = [
        f"{figures.num_answered} of {figures.num_sent} requests were answered in {took}: "
        f"{figures.requests_per_s:.3g} per second, {figures.tokens_per_s:.1f} tokens/s out, "
        f"{figures.input_tokens_per_s:.1f} in",
    ]
    if figures.is_interrupted:
        lines.append(f"interrupted: {figures.num_due - figures.num_sent} of {figures.num_due} were not sent")
    for who, fairness in (("requests", figures.fairness_of_requests), ("clients", figures.fairness_of_clients)):
        known = [f"{value:.2f} of {NAMES[field]}" for field, value in fairness.items() if value is not None]
        if known and figures.num_answered > 1:
            lines.append(f"fairness between {who}: {', '.join(known)} (1 is equal)")
    if figures.num_retried:
        lines.append(f"{count(figures.num_retried, 'request')} went on over another chain")
    return lines


def to_content(run: Run, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All there is of a run, for JSON."""
    figures = figures_of(run)
    plain = asdict(figures)
    plain["chains"] = [{"chain": route, **asdict(share)} for route, share in figures.chains.items()]
    plain["clients"] = [{"client": number, **asdict(share)} for number, share in sorted(figures.clients.items())]
    requests = [to_plain(result) for result in run.results]
    content: dict[str, Any] = rounded({"settings": dict(settings), **plain, "requests": requests})
    return content


def to_json(run: Run, settings: Mapping[str, Any]) -> str:
    """As one object."""
    return json.dumps(to_content(run, settings), indent=2, allow_nan=False)


def to_csv(run: Run) -> str:
    """A line per request."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for result in run.results:
        gaps = result.between_s
        summed = {
            "between_mean_s": round(sum(gaps) / len(gaps), 6) if gaps else None,
            "between_max_s": round(max(gaps), 6) if gaps else None,
            "chain": " > ".join(f"{peer} {start}:{end}" for peer, start, end in result.chain),
            "queue_s": round(sum(hop.queue_s for hop in result.hops), 6) if result.hops else None,
            "compute_s": round(sum(hop.compute_s for hop in result.hops), 6) if result.hops else None,
        }
        known = to_plain(result) | summed
        writer.writerow({name: known[name] for name in COLUMNS})
    return text.getvalue()


def to_markdown(run: Run, settings: Mapping[str, Any], *, plots: Sequence[str]) -> str:
    """A page with all tables, in seconds, and the plots of these names."""
    return "\n".join([*_page(figures_of(run), settings, plots), ""])


def _page(figures: Figures, settings: Mapping[str, Any], plots: Sequence[str]) -> Iterator[str]:
    yield "# Requests, measured\n"
    known = [[name.replace("_", " "), str(value)] for name, value in settings.items() if value is not None]
    yield from _markdown(["setting", ""], known)
    yield ""
    yield from (f"- {fact}" for fact in facts(figures))
    yield "\n## Times\n"
    rows = [
        [title, *(f"{getattr(found, name):.4f}" for name in HEAD)]
        for title, field in KINDS.items()
        if (found := figures.summary[field]) is not None
    ]
    yield from _markdown(["", *(name.replace("p", "P") for name in HEAD)], rows)
    yield f"\n{MEANING}"
    for name in plots:
        yield f"\n![{PLOTS[name]}]({name})"
    if figures.chains:
        yield "\n## Chains\n"
        yield from _markdown(*_shares_table(figures.chains, chain_name))
    if len(figures.clients) > 1:
        yield "\n## Clients\n"
        yield from _markdown(*_shares_table(dict(sorted(figures.clients.items())), str))
    if figures.errors:
        yield "\n## Failures\n"
        yield from _markdown(["requests", "error"], [[str(n), printable(text)] for text, n in figures.errors.items()])


def _shares_table(shares: Mapping[Any, Share], name_of: Any) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of chains or clients; means in seconds."""
    head = ["", "requests", "tokens in", "tokens out", "response", "service", "per token"]
    rows = []
    for name, share in list(shares.items())[:MAX_CHAINS]:
        service = "" if share.service_s is None else format_seconds(share.service_s)
        each = "" if share.per_token_s is None else format_seconds(share.per_token_s)
        numbers = (share.num_requests, share.num_input_tokens, share.num_tokens)
        rows.append([name_of(name), *(f"{n:,}" for n in numbers), format_seconds(share.response_s), service, each])
    return head, rows


def _failure(text: str, number: int) -> str:
    return printable(text) if number == 1 else f"{printable(text)} ({number} times)"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (head, ["---"] * len(head), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
