"""The options of `chainserve bench`, and what they ask for as values."""

import argparse
import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chainserve import __version__
from chainserve.errors import UsageError
from chainserve_client.bench.aim import DISPATCHES, Aim
from chainserve_client.bench.load import Arrivals, Due, Lengths, Wanted, make_load, read_trace
from chainserve_client.examples import TOKEN_HELP
from chainserve_client.parameters import TIMEOUT_S

AT_LEAST_ONE = (
    "requests",
    "input_tokens",
    "output_tokens",
    "min_output",
    "max_input",
    "max_output",
    "clients",
)


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command and its options."""
    parser = commands.add_parser("bench", help="send requests as users would, and see how long they take")
    parser.add_argument("token", metavar="TOKEN", nargs="?", help=TOKEN_HELP)
    parser.add_argument("--url", help="ask this server of OpenAI's API instead: http://HOST:PORT/v1")
    parser.add_argument("--api-key", metavar="KEY", help="for --url")
    parser.add_argument("--model", help="which model; for --url it is needed")
    parser.add_argument("--requests", type=int, default=20, metavar="N", help="so many in all (20)")
    parser.add_argument("--rate", type=float, metavar="R", help="requests per second on average (1; a trace: its own)")
    parser.add_argument(
        "--arrivals",
        choices=[str(kind) for kind in Arrivals],
        help="when they come: as in the trace, at random (a Poisson process), or with gaps of a Gamma distribution "
        "(trace if there is one, else poisson)",
    )
    parser.add_argument("--shape", type=float, metavar="K", help="of the Gamma distribution: below 1 comes in bursts")
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="times and lengths from a CSV file with the columns TIMESTAMP, ContextTokens, GeneratedTokens",
    )
    parser.add_argument("--first", type=int, default=0, metavar="N", help="begin with this request of the trace (0)")
    parser.add_argument("--scale-tokens", type=float, default=1.0, metavar="F", help="lengths of the trace times F (1)")
    parser.add_argument("--min-output", type=int, default=1, metavar="N", help="answers have at least so many (1)")
    parser.add_argument("--max-input", type=int, metavar="N", help="prompts have at most so many tokens")
    parser.add_argument("--max-output", type=int, metavar="N", help="answers have at most so many tokens")
    parser.add_argument("--input-tokens", type=int, default=32, metavar="N", help="of prompts without a trace (32)")
    parser.add_argument("--output-tokens", type=int, default=32, metavar="N", help="of answers without a trace (32)")
    parser.add_argument(
        "--shared-prefix",
        type=int,
        default=0,
        metavar="N",
        help="so many first tokens are the same in all prompts, which servers then need not compute again (0)",
    )
    parser.add_argument("--seed", type=int, default=0, help="equal seeds send the same at the same times (0)")
    parser.add_argument("--clients", type=int, default=1, metavar="N", help="processes that share the requests (1)")
    parser.add_argument(
        "--timeout",
        dest="timeout_s",
        type=float,
        default=TIMEOUT_S,
        metavar="SECONDS",
        help="a request that takes longer has failed (600)",
    )
    parser.add_argument(
        "--dispatch",
        choices=DISPATCHES,
        default=DISPATCHES[0],
        help="how a swarm's chains are chosen, to compare (jffc)",
    )
    parser.add_argument("--max-drafts", type=int, metavar="N", help="tokens guessed ahead per step, over a swarm (16)")
    parser.add_argument(
        "--full-length",
        action="store_true",
        help="for --url: send ignore_eos, which not every server knows, so that no answer ends early, as over a swarm",
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="keep report, requests and plots in this folder")
    parser.add_argument("--json", action="store_true", help="print everything as JSON, each request's times included")


def check(options: argparse.Namespace) -> None:
    """UsageError if this cannot be run."""
    if (options.token is None) == (options.url is None):
        raise UsageError("give a join token, or --url")
    if options.url is not None and options.model is None:
        raise UsageError("--url needs --model: the name of the model there")
    for name in ("rate", "shape", "scale_tokens", "timeout_s"):
        value = getattr(options, name)
        if value is not None and not (0 < value < math.inf):
            raise UsageError(f"--{_dashed(name)} {value:g}: it has to be above 0")
    for name in AT_LEAST_ONE:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{_dashed(name)} {value}: at least 1")
    for name in ("first", "shared_prefix", "max_drafts"):
        value = getattr(options, name)
        if value is not None and value < 0:
            raise UsageError(f"--{_dashed(name)} {value}: at least 0")
    if options.max_output is not None and options.max_output < options.min_output:
        raise UsageError(f"--max-output {options.max_output} is less than --min-output {options.min_output}")
    if options.arrivals == Arrivals.TRACE and options.trace is None:
        raise UsageError("--arrivals trace needs --trace FILE")
    if (options.shape is not None) != (options.arrivals == Arrivals.GAMMA):
        raise UsageError("--arrivals gamma and --shape K belong together")
    for name in ("dispatch", "max_drafts"):
        if options.url is not None and getattr(options, name) not in (None, DISPATCHES[0]):
            raise UsageError(f"--{_dashed(name)} is for a swarm: what is behind --url has ways of its own")


def _dashed(name: str) -> str:
    return name.removesuffix("_s").replace("_", "-")


def load_of(options: argparse.Namespace) -> list[Due]:
    """The requests to send; UsageError if the trace cannot be read, or is too short."""
    rows = None if options.trace is None else read_trace(options.trace)
    return make_load(_wanted(options), rows)


def _wanted(options: argparse.Namespace) -> Wanted:
    usual = Arrivals.POISSON if options.trace is None else Arrivals.TRACE
    return Wanted(
        num_requests=options.requests,
        arrivals=usual if options.arrivals is None else Arrivals(options.arrivals),
        rate=options.rate,
        shape=options.shape or 1.0,
        seed=options.seed,
        lengths=Lengths(
            scale=options.scale_tokens,
            min_output=options.min_output,
            max_input=options.max_input,
            max_output=options.max_output,
        ),
        num_input_tokens=options.input_tokens,
        num_output_tokens=options.output_tokens,
        first=options.first,
    )


def aim_of(options: argparse.Namespace) -> Aim:
    """Whom to ask."""
    return Aim(
        token=options.token,
        url=options.url,
        api_key=options.api_key,
        model=options.model,
        dispatch=options.dispatch,
        is_full_length=options.full_length,
        timeout_s=options.timeout_s,
        seed=options.seed,
        num_shared=options.shared_prefix,
        max_drafts=options.max_drafts,
    )


def settings_of(options: argparse.Namespace, load: Sequence[Due]) -> dict[str, Any]:
    """What a reader of the report has to know of how it was made; no secrets, and no paths of this machine."""
    wanted = _wanted(options)
    last_s = load[-1].arrival_s
    traced = options.trace is not None
    return {
        "date": datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "target": "swarm" if options.url is None else options.url,
        "model": options.model,
        "dispatch": options.dispatch if options.url is None else None,
        "max_drafts": options.max_drafts,
        "arrivals": str(wanted.arrivals),
        "rate": round((len(load) - 1) / last_s, 6) if last_s else None,
        "shape": options.shape,
        "trace": options.trace.name if traced else None,
        "first": options.first if traced else None,
        "scale_tokens": options.scale_tokens if traced else None,
        "min_output": options.min_output if traced else None,
        "max_input": options.max_input if traced else None,
        "max_output": options.max_output if traced else None,
        "num_requests": len(load),
        "mean_input_tokens": round(sum(due.num_input_tokens for due in load) / len(load), 2),
        "mean_output_tokens": round(sum(due.num_output_tokens for due in load) / len(load), 2),
        "shared_prefix": options.shared_prefix,
        "full_length": True if options.url is None else options.full_length,
        "clients": options.clients,
        "timeout_s": options.timeout_s,
        "seed": options.seed,
    }
