"""Options of `chainserve-server` for benchmarks alone: who places blocks, and for which load.

The server that plans goes by its own options, so all servers of a swarm should be given the same.
"""

import argparse

from chainserve.errors import UsageError
from chainserve.planning.rules import GBP_CR, PLACEMENTS, ROUTED, PlacementRule
from chainserve.swarm.offers import Demand
from chainserve.swarm.orders import Orders

LOAD_FORM = "RATE,INPUT,OUTPUT"
WINDOW_S = 600.0
"""Seconds for which a load that is ordered is said to have been seen."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What only a swarm that is measured is told; the same for all of its servers."""
    group = parser.add_argument_group("for benchmarks only, the same for all servers of a swarm")
    group.add_argument(
        "--bench-placement",
        choices=PLACEMENTS,
        default=GBP_CR,
        help=f"place blocks by this rule, to compare others with ours ({GBP_CR})",
    )
    group.add_argument(
        "--bench-chains",
        choices=("yes", "no"),
        help="allocate cache to chains, with places at their heads, or leave it to routes that clients compose "
        f"(no for {' and '.join(ROUTED)}, else yes)",
    )
    group.add_argument("--bench-seed", type=int, default=0, metavar="N", help="of rules that draw (0)")
    group.add_argument(
        "--bench-load",
        metavar=LOAD_FORM,
        help="plan for so many requests per second with so many tokens each, whatever comes, and plan again only when "
        "servers come or go (what servers see)",
    )
    group.add_argument(
        "--bench-slot", type=int, metavar="TOKENS", help="plan with so much cache per session (2048 or what is needed)"
    )
    group.add_argument(
        "--bench-petals-cache",
        type=int,
        metavar="TOKENS",
        help="of each block under the rule petals (4096, or 16384 if the model's heads share keys and values)",
    )


def orders_of(options: argparse.Namespace) -> Orders:
    """What was ordered; UsageError says what cannot be."""
    name, cache_tokens, slot_tokens = options.bench_placement, options.bench_petals_cache, options.bench_slot
    has_chains = name not in ROUTED if options.bench_chains is None else options.bench_chains == "yes"
    if slot_tokens is not None and slot_tokens < 1:
        raise UsageError(f"--bench-slot {slot_tokens}: a session takes at least one token of cache")
    try:
        rule = PlacementRule(name=name, seed=options.bench_seed, cache_tokens=cache_tokens, has_chains=has_chains)
    except ValueError as error:
        raise UsageError(f"--bench-...: {error}") from None
    demand = None if options.bench_load is None else parse_load(options.bench_load)
    return Orders(rule=rule, demand=demand, slot_tokens=slot_tokens)


def parse_load(text: str) -> Demand:
    """Read 'RATE,INPUT,OUTPUT'; UsageError if it is anything else."""
    try:
        rate, input_tokens, output_tokens = map(float, text.split(","))
        # A rate is a whole number of requests in a window, which is as long as it takes.
        num_requests = max(1, round(rate * WINDOW_S))
        if not min(rate, input_tokens, output_tokens) > 0:
            raise ValueError(text)
        return Demand(
            num_requests=num_requests,
            window_s=num_requests / rate,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
        )
    except (ValueError, OverflowError):
        raise UsageError(f"--bench-load {text}: want {LOAD_FORM}, as 0.5,205,3, all of them above 0") from None
