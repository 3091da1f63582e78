"""Hosts and what lies between them: from a small TOML file, or drawn from measured places by a seed."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from chainserve.errors import UsageError
from chainserve.simulator.networks import Anchor, choose_anchors, round_trips_s

FIELDS = ("round_trip_ms", "rate_mbit", "jitter_ms", "loss")
MAX_HOSTS = 250
"""Addresses of hosts differ in their last byte."""


class TopologyError(UsageError):
    """A description of hosts and links that describes none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What lies between two hosts, both ways alike."""

    round_trip_ms: float
    rate_mbit: float | None = None  # each way; None: as fast as it goes
    jitter_ms: float = 0.0  # a packet comes earlier or later by at most this, none overtakes another
    loss: float = 0.0  # share of the packets

    def __post_init__(self) -> None:
        if not (0 <= self.round_trip_ms < math.inf and 0 <= self.jitter_ms <= max(0.0, self.round_trip_ms / 2)):
            raise TopologyError(
                f"a round trip of {self.round_trip_ms:g} ms with a jitter of {self.jitter_ms:g} ms cannot be: "
                "give at least 0 ms, and a jitter of at most half the round trip"
            )
        if self.rate_mbit is not None and not 0 < self.rate_mbit < math.inf:
            raise TopologyError(f"a rate of {self.rate_mbit:g} Mbit/s cannot be: leave it out for no limit")
        if not 0 <= self.loss < 1:
            raise TopologyError(f"a loss of {self.loss:g} cannot be: give a share from 0 to below 1")

    @property
    def one_way_s(self) -> float:
        return self.round_trip_ms / 2000

    @property
    def bytes_per_s(self) -> float:
        return math.inf if self.rate_mbit is None else self.rate_mbit * 1e6 / 8


@dataclass(frozen=True, slots=True)
class Topology:
    """Hosts by name, and the link of every pair, the earlier host first."""

    hosts: tuple[str, ...]
    links: Mapping[tuple[str, str], Link]

    def __post_init__(self) -> None:
        if len(set(self.hosts)) < len(self.hosts) or not 2 <= len(self.hosts) <= MAX_HOSTS:
            raise TopologyError(f"hosts {', '.join(self.hosts)}: give 2 to {MAX_HOSTS} with names of their own")
        if set(self.links) != set(self.pairs):
            missing = [f"{a} and {b}" for a, b in self.pairs if (a, b) not in self.links]
            raise TopologyError(f"nothing is said of {', '.join(missing)}: name that link, or give defaults")

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        return tuple(combinations(self.hosts, 2))

    def link(self, first: str, second: str) -> Link:
        """What lies between two different hosts, in either order."""
        return self.links[(first, second) if (first, second) in self.links else (second, first)]


def parse_topology(text: str) -> Topology:
    """Read TOML: `hosts`, a table `default`, tables `link` with `between` two hosts. TopologyError if it is none."""
    try:
        content = tomllib.loads(text)
        hosts = tuple(map(str, content.pop("hosts")))
        default: dict[str, Any] = content.pop("default", {})
        named: dict[tuple[str, str], Mapping[str, Any]] = {}
        for table in content.pop("link", []):
            first, second = sorted(table.pop("between"), key=hosts.index)
            named[first, second] = table
        if content:
            raise TopologyError(f"nothing is called {', '.join(content)}: there are hosts, default and link")
        pairs = combinations(hosts, 2)
        return Topology(hosts, {pair: _link(default | dict(named.get(pair, {}))) for pair in pairs})
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise TopologyError(f"not a topology: {error}; see docs/network-bench.md for one") from None


def _link(fields: Mapping[str, Any]) -> Link:
    if unknown := set(fields) - set(FIELDS):
        raise TopologyError(f"a link has no {', '.join(sorted(unknown))}: there are {', '.join(FIELDS)}")
    return Link(**fields)


def to_toml(topology: Topology) -> str:
    """What `parse_topology` reads."""
    lines = [f"hosts = [{', '.join(map(_quoted, topology.hosts))}]"]
    for (first, second), link in topology.links.items():
        values = {name: getattr(link, name) for name in FIELDS}
        lines += ["", "[[link]]", f"between = [{_quoted(first)}, {_quoted(second)}]"]
        lines += [f"{name} = {float(value)!r}" for name, value in values.items() if value is not None]
    return "\n".join(lines) + "\n"


def _quoted(name: str) -> str:
    if not name.replace("-", "").replace("_", "").isalnum():
        raise TopologyError(f"not a name for a host: {name!r} (letters, digits, - and _)")
    return f'"{name}"'


def draw_topology(
    anchors: Sequence[Anchor],
    hosts: Sequence[str],
    *,
    seed: int,
    rate_mbit: float | None = None,
    jitter_ms: float = 0.0,
    loss: float = 0.0,
) -> Topology:
    """Each host at a measured place of its own, drawn at random; equal seeds draw the same."""
    trips_s = round_trips_s(choose_anchors(anchors, len(hosts), rng=np.random.default_rng(seed)))
    links = {
        (first, second): Link(
            round_trip_ms=round(1000 * float(trips_s[row, column]), 3),
            rate_mbit=rate_mbit,
            jitter_ms=jitter_ms,
            loss=loss,
        )
        for (row, first), (column, second) in combinations(enumerate(hosts), 2)
    }
    return Topology(tuple(hosts), links)
