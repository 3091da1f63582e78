"""`chainserve plan`: what a swarm would be, before its servers exist and before anything is downloaded."""

import argparse
from pathlib import Path

from chainserve.models.names import find_model
from chainserve_client.planfile import read_servers

HALF_PRECISION = ("bfloat16", "float16")
DTYPES = (*HALF_PRECISION, "float32")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command and its options."""
    parser = commands.add_parser("plan", help="plan a swarm before its servers exist")
    parser.add_argument(
        "--model", required=True, help="hub id, folder, GGUF file, or smollm2-135m; no weights are read"
    )
    parser.add_argument("--servers", required=True, type=Path, metavar="FILE", help="TOML file with a table per server")
    parser.add_argument("--rate", type=float, default=0.1, metavar="R", help="requests per second (0.1)")
    parser.add_argument("--input-tokens", type=int, default=1000, metavar="N", help="of a mean request (1000)")
    parser.add_argument("--output-tokens", type=int, default=200, metavar="N", help="of a mean request (200)")
    parser.add_argument(
        "--max-length", type=int, metavar="N", help="cache of a session, in tokens (as many as a mean request takes)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of weights and cache (bfloat16)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(options: argparse.Namespace) -> str:
    """What the command prints; UsageError or NoPlanError if there is nothing to plan."""
    from chainserve_client.forecast import Demand, forecast  # takes numpy, which other commands do without
    from chainserve_client.plan_report import to_json, to_text

    mean_length = options.input_tokens + options.output_tokens
    demand = Demand(
        arrival_rate=options.rate,
        input_tokens=options.input_tokens,
        output_tokens=options.output_tokens,
        max_length=mean_length if options.max_length is None else options.max_length,
    )
    swarm = read_servers(options.servers, half_precision=options.dtype in HALF_PRECISION)
    find_model(options.model)

    import torch  # takes seconds: after all that can be refused without it

    from chainserve.models.costs import model_costs
    from chainserve.models.resolve import resolve

    source = resolve(options.model)
    costs = model_costs(source, getattr(torch, options.dtype))
    report = to_json if options.json else to_text
    return report(forecast(swarm, costs, demand), name=source.name, dtype=options.dtype)
