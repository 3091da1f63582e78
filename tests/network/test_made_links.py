"""Real links in network namespaces: what packets take through the router, and what is left afterwards."""

import subprocess

import pytest
from network import netem
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


def test_packets_come_when_asked_and_never_sooner() -> None:
    """The quickest of many, as on a busy machine others come later: `benchmarks/network links` has the medians."""
    with emulated(parse_topology(TEXT), "router") as hosts:
        trips_ms = round_trips_ms(hosts, rounds=60)
        for pair, asked_ms in ((("a", "b"), 20), (("a", "c"), 60), (("b", "c"), 10)):
            assert asked_ms - 0.1 < min(trips_ms[pair]) < asked_ms * 1.05 + 1
        assert len(trips_ms["a", "b"]) == 60
        assert 15 < len(trips_ms["b", "c"]) < 50  # half the echoes come back
        assert burst_mbit(hosts, "a", "b") < 51
    assert hosts.carried["packets"] > 0
    assert hosts.carried["lost"] > 0
    assert not any((FOLDER / name).exists() for name in hosts.names)


def test_commands_run_on_their_host_and_nothing_is_left_when_one_fails() -> None:
    made: list[Hosts] = []

    def run(*words: str) -> str:
        with emulated(parse_topology(TEXT), "router") as hosts:
            made.append(hosts)
            return subprocess.run(hosts.command("b", words), capture_output=True, text=True, check=True).stdout

    assert "10." in run("ip", "-brief", "address", "show", "dev", "wan0")
    with pytest.raises(subprocess.CalledProcessError):
        run("false")
    assert not any((FOLDER / name).exists() for hosts in made for name in hosts.names)


@pytest.mark.skipif(netem.is_there(), reason="this kernel has netem")
def test_what_cannot_be_made_is_said_before_anything_is() -> None:
    with pytest.raises(EmulationError, match="no netem"), emulated(parse_topology(TEXT), "netem"):
        pytest.fail("made without netem")


def test_a_table_shows_what_was_asked_beside_what_is() -> None:
    with emulated(parse_topology(TEXT), "router") as hosts:
        rows = links_json(measure(hosts, rounds=3, bursts=False))
    text = links_table(rows)
    assert "a - c" in text
    assert "60.00" in text
    assert is_near(20.9, 20)
    assert not is_near(22.1, 20)
