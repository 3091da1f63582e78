"""Round trips between places: from RIPE Atlas measurements, or made up alike.

A place has a base delay of its own and a position; what lies between two places adds to both bases.
"""

import math
from collections.abc import Iterable, Sequence
from csv import DictReader
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chainserve.planning.values import require

BASE_SHARE = 0.3
"""How much of its base delay each end adds to a round trip."""

KM_S = 1e-5
"""Seconds of round trip per km of distance: light in fibre."""

EARTH_KM = 6371.0
KM_PER_DEGREE = EARTH_KM * math.pi / 180
LATENCIES = ("latency_m1", "latency_m2", "latency_m3", "latency_m4")
MIDDLE = (50.1, 8.7)
"""Degrees: near the median of the European anchors, where synthetic ones gather."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """One measured place: its base delay in seconds, its position in degrees."""

    name: str
    base_s: float
    latitude: float
    longitude: float

    def __post_init__(self) -> None:
        require(f"base_s of {self.name}", self.base_s)
        if not (abs(self.latitude) <= 90 and abs(self.longitude) <= 180):
            raise ValueError(f"{self.name} is at latitude {self.latitude}, longitude {self.longitude}: nowhere")


def read_anchors(lines: Iterable[str]) -> tuple[Anchor, ...]:
    """Anchors of a RIPE Atlas table by id, base = median of all positive latencies of the id's rows.

    Columns anchor_id, latency_m1 to latency_m4 (ms), latitude, longitude. Anchors without a positive latency are left
    out. ValueError for a table without these columns, or one that names no anchor.
    """
    latencies_ms: dict[str, list[float]] = {}
    positions: dict[str, tuple[float, float]] = {}
    for number, row in enumerate(DictReader(lines), start=2):
        try:
            anchor = row["anchor_id"]
            positions[anchor] = float(row["latitude"]), float(row["longitude"])
            measured = latencies_ms.setdefault(anchor, [])
            measured.extend(latency for latency in map(float, map(row.__getitem__, LATENCIES)) if latency > 0)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"line {number} of the table of round trips is {list(row.values())}") from error
    if not any(latencies_ms.values()):
        raise ValueError("the table of round trips has no anchor with a positive latency")
    return tuple(
        Anchor(
            name=name,
            base_s=float(np.median(measured)) / 1000,
            latitude=positions[name][0],
            longitude=positions[name][1],
        )
        for name, measured in sorted(latencies_ms.items())
        if measured
    )


def synthetic_anchors(num_anchors: int, *, rng: np.random.Generator) -> tuple[Anchor, ...]:
    """Made-up anchors whose round trips are distributed like those of the European table.

    Within 1,900 km of `MIDDLE`, fewer with the distance, and with a base that grows with it. Round trips have their
    quartiles near 20, 24 and 29 ms (measured: 20, 24, 31).
    """
    distance_km = np.minimum(rng.gamma(2.0, 250.0, size=num_anchors), 1900.0)
    bearing = rng.uniform(0, 2 * np.pi, size=num_anchors)
    base_s = 0.015 + 1.6e-5 * distance_km + rng.gamma(2.0, 0.0032, size=num_anchors)
    latitude = MIDDLE[0] + distance_km * np.cos(bearing) / KM_PER_DEGREE
    longitude = MIDDLE[1] + distance_km * np.sin(bearing) / (KM_PER_DEGREE * np.cos(np.radians(latitude)))
    values = zip(base_s.tolist(), latitude.tolist(), longitude.tolist(), strict=True)
    return tuple(
        Anchor(name=f"place{number}", base_s=base, latitude=north, longitude=east)
        for number, (base, north, east) in enumerate(values)
    )


def choose_anchors(anchors: Sequence[Anchor], num_anchors: int, *, rng: np.random.Generator) -> tuple[Anchor, ...]:
    """Different anchors at random; ValueError if there are not as many."""
    if not 1 <= num_anchors <= len(anchors):
        raise ValueError(f"{num_anchors} places out of {len(anchors)} cannot be chosen")
    places = rng.permutation(len(anchors))[:num_anchors].tolist()
    return tuple(anchors[place] for place in places)


def round_trips_s(anchors: Sequence[Anchor]) -> NDArray[np.float64]:
    """Seconds from each anchor to each and back, as a symmetric matrix with zeros on its diagonal.

    0.3 of both bases and 0.01 ms per km of great circle: as Sun et al. 2026 read the table.
    """
    base_s = np.array([anchor.base_s for anchor in anchors])
    trips_s: NDArray[np.float64] = BASE_SHARE * (base_s[:, None] + base_s) + KM_S * distances_km(anchors)
    np.fill_diagonal(trips_s, 0.0)
    return trips_s


def distances_km(anchors: Sequence[Anchor]) -> NDArray[np.float64]:
    """Great circles between all anchors, by the haversine formula."""
    latitude = np.radians([anchor.latitude for anchor in anchors])
    longitude = np.radians([anchor.longitude for anchor in anchors])
    haversine = (
        np.sin((latitude[:, None] - latitude) / 2) ** 2
        + np.cos(latitude[:, None]) * np.cos(latitude) * np.sin((longitude[:, None] - longitude) / 2) ** 2
    )
    distance_km: NDArray[np.float64] = 2 * EARTH_KM * np.arcsin(np.sqrt(np.minimum(haversine, 1)))
    return distance_km
