"""Hosts and links: read from TOML, drawn by a seed, and given to whatever makes them."""

import math
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from network import netem
from network.emulation import wire_of
from network.shaping import FRAME_BYTES, QUEUE_S, Lane, wire_bytes
from network.topology import Link, Topology, TopologyError, draw_topology, parse_topology, to_toml

from chainserve.simulator.networks import round_trips_s, synthetic_anchors
from chainserve.types import PeerId

TEXT = """
hosts = ["client", "near", "far"]
[default]
round_trip_ms = 20
rate_mbit = 100
[[link]]
between = ["far", "client"]
round_trip_ms = 80.5
loss = 0.01
"""


def test_links_that_are_named_differ_from_the_default_in_what_is_said_of_them() -> None:
    topology = parse_topology(TEXT)
    assert topology.pairs == (("client", "near"), ("client", "far"), ("near", "far"))
    assert topology.link("near", "far") == Link(round_trip_ms=20, rate_mbit=100)
    assert topology.link("far", "client") == Link(round_trip_ms=80.5, rate_mbit=100, loss=0.01)


def test_what_is_written_is_read_again() -> None:
    topology = parse_topology(TEXT)
    assert parse_topology(to_toml(topology)) == topology


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('hosts = ["a"]', "give 2 to 250"),
        ('hosts = ["a", "a"]\ndefault = {round_trip_ms = 1}', "names of their own"),
        ('hosts = ["a", "b"]', "round_trip_ms"),
        ('hosts = ["a", "b"]\ndefault = {round_trip_ms = -1}', "give at least 0 ms"),
        ('hosts = ["a", "b"]\ndefault = {round_trip_ms = 10, jitter_ms = 6}', "at most half the round trip"),
        ('hosts = ["a", "b"]\ndefault = {round_trip_ms = 10, rate_mbit = 0}', "leave it out for no limit"),
        ('hosts = ["a", "b"]\ndefault = {round_trip_ms = 10, loss = 1}', "from 0 to below 1"),
        ('hosts = ["a", "b"]\ndefault = {round_trip_ms = 10, speed = 3}', "no speed"),
        ('hosts = ["a", "b"]\nlinks = 3\ndefault = {round_trip_ms = 10}', "nothing is called links"),
        ('hosts = ["a", "b"]\n[[link]]\nbetween = ["a", "c"]\nround_trip_ms = 1', "not a topology"),
        ("hosts = [", "not a topology"),
        ("", "not a topology"),
    ],
)
def test_what_is_no_topology_is_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(TopologyError, match=said):
        parse_topology(text)


def test_equal_seeds_draw_equal_places_and_their_round_trips() -> None:
    anchors = synthetic_anchors(40, rng=np.random.default_rng(1))
    hosts = ["client", "one", "two", "three"]
    drawn = draw_topology(anchors, hosts, seed=3, rate_mbit=200)
    assert drawn == draw_topology(anchors, hosts, seed=3, rate_mbit=200)
    assert drawn != draw_topology(anchors, hosts, seed=4, rate_mbit=200)
    possible = set(np.round(1000 * round_trips_s(anchors), 3).flatten().tolist())
    assert {link.round_trip_ms for link in drawn.links.values()} <= possible


def lane(**fields: float) -> Lane:
    return Lane(Link(**{"round_trip_ms": 20.0, **fields}), chance=Random(0))


def test_a_packet_takes_half_the_round_trip() -> None:
    assert lane().due(5.0, num_bytes=1500) == pytest.approx(5.01)


def test_packets_leave_one_after_another_at_the_rate_of_the_link() -> None:
    slow = lane(rate_mbit=8.0)  # a byte per microsecond
    assert [slow.due(0.0, num_bytes=1000) for _ in range(3)] == pytest.approx([0.011, 0.012, 0.013])
    assert slow.due(1.0, num_bytes=1000) == pytest.approx(1.011)


def test_what_would_wait_too_long_is_dropped_as_by_a_full_buffer() -> None:
    slow = lane(rate_mbit=8.0)
    arrived = [slow.due(0.0, num_bytes=1000) for _ in range(1000)]
    num_queued = round(QUEUE_S / 0.001)
    assert slow.num_dropped == 1000 - sum(due is not None for due in arrived)
    assert num_queued <= 1000 - slow.num_dropped <= num_queued + 2


def test_jitter_is_within_what_was_asked_and_no_packet_overtakes_another() -> None:
    shaky = lane(jitter_ms=4.0)
    sent = [0.01 * number for number in range(500)]
    arrived = [shaky.due(at, num_bytes=100) or math.nan for at in sent]
    delays_ms = [1000 * (due - at) for at, due in zip(sent, arrived, strict=True)]
    assert arrived == sorted(arrived)
    assert 6.0 <= min(delays_ms) < 7.0
    assert 13.0 < max(delays_ms) <= 14.0


def test_about_the_share_that_was_asked_is_lost() -> None:
    leaky = lane(loss=0.2)
    lost = sum(leaky.due(float(number), num_bytes=100) is None for number in range(5000))
    assert leaky.num_lost == lost
    assert 0.17 < lost / 5000 < 0.23


def test_a_large_packet_counts_as_the_segments_it_stands_for() -> None:
    assert wire_bytes(1500, segment_bytes=0) == 1500 + FRAME_BYTES
    assert wire_bytes(40 + 4 * 1448, segment_bytes=1448) > 4 * (1488 + FRAME_BYTES)


def test_links_in_memory_are_those_of_the_hosts_where_peers_are() -> None:
    topology = parse_topology(TEXT)
    a, b, c = (PeerId(name) for name in "abc")
    wire = wire_of(topology, {a: "client", b: "far", c: "far"})
    assert wire(b, a).delay_s == pytest.approx(0.04025)
    assert wire(a, b).bytes_per_s == pytest.approx(12.5e6)
    assert wire(b, c).delay_s == 0


def test_netem_is_told_of_each_other_host_its_delay_rate_and_loss() -> None:
    topology = Topology(("a", "b"), {("a", "b"): Link(round_trip_ms=30, rate_mbit=50, jitter_ms=2, loss=0.01)})
    words = [" ".join(command) for command in netem.commands(topology, 0)]
    assert any("htb rate 50mbit" in line for line in words)
    assert any("netem delay 15ms 2ms loss 1% limit" in line for line in words)
    assert any("match ip dst 10.77.0.2/32 flowid 1:2" in line for line in words)
    assert len(words) == 4
