"""What a benchmark is asked for on its command line."""

import argparse
from typing import Any

from chainserve_client.bench.command import measure
from chainserve_client.bench.figures import Run
from chainserve_client.bench.options import load_of
from chainserve_client.cli import build_parser


def options(*words: str, **given: Any) -> argparse.Namespace:
    """The options of these words, with some changed."""
    parsed = build_parser().parse_args(["bench", *words])
    return argparse.Namespace(**vars(parsed) | given)


def of_url(url: str, *words: str) -> argparse.Namespace:
    """Three short requests at once to a server of the API."""
    usual = ("--url", url, "--model", "m", "--rate", "1000", "--requests", "3")
    return options(*usual, "--input-tokens", "4", "--output-tokens", "5", *words)


async def measured(given: argparse.Namespace) -> Run:
    """The run of these options."""
    return await measure(given, load_of(given))
