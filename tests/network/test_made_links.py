"""Real links in network namespaces: what packets take through the router, and what is left afterwards."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from network.emulation import EmulationError, Hosts, emulated
from network.measuring import burst_mbit, is_near, links_json, links_table, measure, round_trips_ms
from network.namespaces import FOLDER, why_not
from network.topology import parse_topology

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"takes namespaces: {why_not()}")

TEXT = """
hosts = ["a", "b", "c"]
default = {round_trip_ms = 20, rate_mbit = 50}
[[link]]
between = ["a", "c"]
round_trip_ms = 60
[[link]]
between = ["b", "c"]
round_trip_ms = 10
loss = 0.3
"""


def test_round_trips_and_rates_of_each_pair_are_as_asked() -> None:
    with emulated(parse_topology(TEXT), "router") as hosts:
        found = {one.pair: one for one in measure(hosts, rounds=9, bursts=False)}
        assert found["a", "b"].is_as_asked
        assert found["a", "c"].is_as_asked
        assert found["b", "c"].is_as_asked
        assert 35 < burst_mbit(hosts, "a", "b") < 51
        lossy = round_trips_ms(hosts, rounds=60)
        assert len(lossy["a", "b"]) == 60
        assert 15 < len(lossy["b", "c"]) < 50  # half the echoes come back
    assert hosts.carried["packets"] > 0
    assert hosts.carried["lost"] > 0
    assert not any((FOLDER / name).exists() for name in hosts.names)


def test_commands_run_on_their_host_and_nothing_is_left_when_one_fails() -> None:
    names: list[str] = []
    with pytest.raises(subprocess.CalledProcessError), emulated(parse_topology(TEXT), "router") as hosts:  # noqa: PT012
        names += show_address(hosts)
        subprocess.run(hosts.command("b", ["false"]), check=True)
    assert len(names) == 3
    assert not any((FOLDER / name).exists() for name in names)


def show_address(hosts: Hosts) -> tuple[str, ...]:
    words = hosts.command("b", ["ip", "-brief", "address", "show", "dev", "wan0"])
    assert hosts.address("b") in subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return hosts.names


def test_what_cannot_be_made_is_said_before_anything_is() -> None:
    with pytest.raises(EmulationError, match="no netem"), emulated(parse_topology(TEXT), "netem"):
        pytest.fail("this kernel has netem: say so here")


def test_a_table_shows_what_was_asked_beside_what_is() -> None:
    with emulated(parse_topology(TEXT), "router") as hosts:
        rows = links_json(measure(hosts, rounds=3, bursts=False))
    text = links_table(rows)
    assert "a - c" in text
    assert "60.00" in text
    assert is_near(20.9, 20)
    assert not is_near(22.1, 20)
