"""Options for benchmarks, as a server reads them."""

import pytest

from chainserve.errors import UsageError
from chainserve.planning.rules import PlacementRule
from chainserve.swarm.orders import Orders
from chainserve_server.bench_options import orders_of, parse_load
from chainserve_server.cli import build_parser, config_of


def orders(*arguments: str) -> Orders:
    return orders_of(build_parser().parse_args(["--model", "m", *arguments]))


def test_without_any_nothing_is_ordered() -> None:
    assert orders() == Orders()


@pytest.mark.parametrize(("name", "has_chains"), [("petals", False), ("bprr", False), ("random", True)])
def test_systems_that_have_no_chains_get_none_unless_they_are_asked_for(name: str, has_chains: bool) -> None:
    assert orders("--bench-placement", name).rule == PlacementRule(name=name, has_chains=has_chains)
    assert orders("--bench-placement", name, "--bench-chains", "yes").rule.has_chains


def test_a_load_is_a_rate_and_tokens() -> None:
    demand = parse_load("0.73,205,2.8")
    assert demand.arrival_rate == pytest.approx(0.73)
    assert (demand.input_tokens, demand.output_tokens) == (205, 2.8)


@pytest.mark.parametrize("text", ["", "1", "1,2", "a,b,c", "0,1,1", "1,-1,1", "nan,1,1", "1,2,3,4"])
def test_what_is_no_load_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="RATE,INPUT,OUTPUT"):
        parse_load(text)


def test_blocks_of_ones_own_and_another_systems_placement_do_not_go_together() -> None:
    options = build_parser().parse_args(["--model", "m", "--blocks", "0:4", "--bench-placement", "bprr"])
    with pytest.raises(UsageError, match="leave out --blocks"):
        config_of(options)
    with pytest.raises(UsageError, match="at least one token"):
        orders("--bench-slot", "0")
    with pytest.raises(UsageError, match="takes at least one"):
        orders("--bench-petals-cache", "0")
