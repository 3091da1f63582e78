"""`chainserve bench`: its options, and what it prints."""

import argparse
import dataclasses
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

from chainserve.errors import UsageError
from chainserve_client.bench.timing import Timed, summary
from chainserve_client.examples import TOKEN_HELP
from chainserve_client.tables import printable, table
from chainserve_client.units import format_seconds

if TYPE_CHECKING:
    from chainserve_client.bench.targets import Target

TEXT = "the river runs past the old mill and on to the sea where ships wait for wind"
ROWS = {
    "wait for a place": "waited_s",
    "first token": "first_s",
    "between tokens": "between_s",
    "whole request": "total_s",
}
HEAD = ("mean", "median", "p95", "p99", "max")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command and its options."""
    parser = commands.add_parser("bench", help="send requests at random times, and see how long they take")
    parser.add_argument("token", metavar="TOKEN", nargs="?", help=TOKEN_HELP)
    parser.add_argument("--url", help="ask this server of OpenAI's API instead: http://HOST:PORT/v1")
    parser.add_argument("--api-key", metavar="KEY", help="for --url")
    parser.add_argument("--model", help="which model; for --url it is needed")
    parser.add_argument("--rate", type=float, default=1.0, metavar="R", help="requests per second on average (1)")
    parser.add_argument("--requests", type=int, default=20, metavar="N", help="so many in all (20)")
    parser.add_argument("--input-words", type=int, default=32, metavar="N", help="length of prompts (32)")
    parser.add_argument("--output-tokens", type=int, default=32, metavar="N", help="length of answers (32)")
    parser.add_argument(
        "--full-length",
        action="store_true",
        help="for --url: send ignore_eos, which not every server knows, so that no answer ends early, as over a swarm",
    )
    parser.add_argument("--seed", type=int, default=0, help="equal seeds send at equal times (0)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON, each request's times included")


def check(options: argparse.Namespace) -> None:
    """UsageError if this cannot be run."""
    if (options.token is None) == (options.url is None):
        raise UsageError("give a join token, or --url")
    if options.url is not None and options.model is None:
        raise UsageError("--url needs --model: the name of the model there")
    if not (0 < options.rate < float("inf")):
        raise UsageError(f"--rate {options.rate:g}: it has to be above 0")
    for name in ("requests", "input_words", "output_tokens"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(options, name)}: at least 1")


async def measure(options: argparse.Namespace) -> list[Timed]:
    """Send the requests; what they took."""
    from chainserve_client.bench.run import arrival_times, run

    times = arrival_times(options.requests, rate=options.rate, chance=random.Random(options.seed))
    async with _target(options) as target:
        return await run(target, times, clock=time.monotonic)


@asynccontextmanager
async def _target(options: argparse.Namespace) -> "AsyncIterator[Target]":
    from chainserve_client.bench import targets

    prompt = " ".join(islice(cycle(TEXT.split()), options.input_words))
    if options.url is None:
        from chainserve_client.client import AsyncClient

        async with await AsyncClient.connect(options.token, model=options.model) as client:
            yield targets.swarm(client, prompt, max_tokens=options.output_tokens)
    else:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_read=600)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as http:
            yield targets.api(
                http,
                options.url,
                prompt,
                model=options.model,
                max_tokens=options.output_tokens,
                key=options.api_key,
                is_full_length=options.full_length,
            )


def values_of(results: Sequence[Timed], field: str) -> list[float]:
    """All values of one kind, of requests that came to their end."""
    values: list[float] = []
    for result in results:
        value = getattr(result, field) if result.error is None else None
        values += value if isinstance(value, tuple) else [] if value is None else [value]
    return values


def to_text(results: Sequence[Timed]) -> str:
    """A table; rows of which nothing is known are left out."""
    rows = []
    for title, field in ROWS.items():
        if (found := summary(values_of(results, field))) is not None:
            rows.append([title, *(format_seconds(getattr(found, name)) for name in HEAD)])
    done = [result for result in results if result.error is None]
    lines = table(["", *HEAD], rows, right=HEAD) if rows else []
    lines += ["", f"{len(done)} of {len(results)} requests were answered, {tokens_per_s(results):.1f} tokens/s in all"]
    errors = {printable(result.error) for result in results if result.error is not None}
    return "\n".join([*lines, *(f"failed: {error}" for error in sorted(errors))])


def tokens_per_s(results: Sequence[Timed]) -> float:
    """Tokens of all requests over the time from the first to the end of the last."""
    took_s = max((result.sent_s + (result.total_s or 0.0) for result in results), default=0.0)
    return sum(result.num_tokens for result in results) / took_s if took_s else 0.0


def to_json(results: Sequence[Timed], options: argparse.Namespace) -> str:
    found = {field: summary(values_of(results, field)) for field in ROWS.values()}
    content: dict[str, Any] = {
        "rate": options.rate,
        "seed": options.seed,
        "num_requests": len(results),
        "num_answered": sum(result.error is None for result in results),
        "tokens_per_s": tokens_per_s(results),
        "summary": {field: one and dataclasses.asdict(one) for field, one in found.items()},
        "requests": [dataclasses.asdict(result) for result in results],
    }
    return json.dumps(content, indent=2, allow_nan=False)
