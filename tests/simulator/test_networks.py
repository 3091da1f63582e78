"""Networks: the table of round trips, distances, and places made up alike."""

import numpy as np
import pytest

from chainserve.simulator.networks import (
    Anchor,
    choose_anchors,
    distances_km,
    read_anchors,
    round_trips_s,
    synthetic_anchors,
)

TABLE = [
    "measure_id,anchor_id,dst_ip,init_time,latency_m1,latency_m2,latency_m3,latency_m4,latitude,longitude",
    "x,2,10.0.0.2,2024-07-19,10,20,30,40,52.37,4.9",
    "x,1,10.0.0.1,2024-07-19,8,-1,12,0,48.86,2.35",
    "x,2,10.0.0.2,2024-07-20,50,60,70,80,52.37,4.9",
    "x,3,10.0.0.3,2024-07-20,-1,-1,-1,-1,41.9,12.5",
]
PARIS = Anchor(name="paris", base_s=0.01, latitude=48.8566, longitude=2.3522)
BERLIN = Anchor(name="berlin", base_s=0.03, latitude=52.52, longitude=13.405)


def test_an_anchors_base_is_the_median_of_its_positive_latencies() -> None:
    assert read_anchors(TABLE) == (
        Anchor(name="1", base_s=0.010, latitude=48.86, longitude=2.35),
        Anchor(name="2", base_s=0.045, latitude=52.37, longitude=4.9),
    )


def test_the_order_of_the_rows_does_not_matter() -> None:
    assert read_anchors(TABLE) == read_anchors([TABLE[0], *reversed(TABLE[1:])])


@pytest.mark.parametrize(
    "row",
    [
        "x,4,10.0.0.4,2024-07-20,1,2,3,many,41.9,12.5",
        "x,4,10.0.0.4,2024-07-20,1,2,3,4,north,12.5",
        "x,4,10.0.0.4,2024-07-20,1,2,3",
    ],
)
def test_names_the_line_of_a_table_it_cannot_read(row: str) -> None:
    with pytest.raises(ValueError, match="line 6 of the table of round trips is"):
        read_anchors([*TABLE, row])


def test_a_table_needs_its_columns_and_an_anchor() -> None:
    with pytest.raises(ValueError, match="line 2 of the table of round trips"):
        read_anchors(["a,b", "1,2"])
    for lines in ([], TABLE[:1], [TABLE[0], TABLE[4]]):
        with pytest.raises(ValueError, match="no anchor with a positive latency"):
            read_anchors(lines)


def test_a_round_trip_is_made_of_both_bases_and_the_distance() -> None:
    assert distances_km([PARIS, BERLIN])[0, 1] == pytest.approx(877, abs=2)
    trips_s = round_trips_s([PARIS, BERLIN])
    assert trips_s[0, 1] == pytest.approx(0.3 * 0.04 + 0.00877, abs=2e-5)
    assert trips_s[0, 1] == trips_s[1, 0]
    assert trips_s.diagonal().tolist() == [0, 0]


def test_the_other_side_of_the_earth_is_20000_km_away() -> None:
    there = Anchor(name="there", base_s=0.01, latitude=-48.8566, longitude=2.3522 - 180)
    assert distances_km([PARIS, there])[0, 1] == pytest.approx(20015, abs=1)


def test_chosen_anchors_are_different_and_follow_the_seed() -> None:
    anchors = synthetic_anchors(30, rng=np.random.default_rng(0))
    first, second, other = (choose_anchors(anchors, 20, rng=np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == second != other
    assert len({anchor.name for anchor in first}) == 20
    assert set(first) <= set(anchors)


@pytest.mark.parametrize("num_anchors", [0, 3])
def test_only_anchors_that_exist_can_be_chosen(num_anchors: int) -> None:
    with pytest.raises(ValueError, match=f"{num_anchors} places out of 2"):
        choose_anchors([PARIS, BERLIN], num_anchors, rng=np.random.default_rng(0))


def test_synthetic_round_trips_are_spread_like_the_measured_ones() -> None:
    """Measured between 320 European anchors: 10 ms at least, quartiles 19.9, 24.1 and 30.6 ms, 95 of 100 below 39."""
    for seed in range(3):
        anchors = synthetic_anchors(320, rng=np.random.default_rng(seed))
        trips_ms = 1000 * round_trips_s(anchors)[np.triu_indices(320, 1)]
        low, first, median, third, high = np.percentile(trips_ms, [0, 25, 50, 75, 95])
        assert 9 < low < 13
        assert (first, median, third, high) == pytest.approx((19.9, 24.1, 30.6, 39.3), rel=0.1)


def test_the_same_seed_gives_the_same_places() -> None:
    first, second = (synthetic_anchors(5, rng=np.random.default_rng(4)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("base_s", "latitude", "longitude", "fact"),
    [
        (0.0, 1, 1, "base_s of x"),
        (1, 91, 1, "latitude 91"),
        (1, 1, -181, "longitude -181"),
        (1, float("nan"), 1, "nan"),
    ],
)
def test_a_place_is_on_earth(base_s: float, latitude: float, longitude: float, fact: str) -> None:
    with pytest.raises(ValueError, match=fact):
        Anchor(name="x", base_s=base_s, latitude=latitude, longitude=longitude)
