"""What the requests of a run come to, where their time went, and the tables of it."""

from typing import Any

import pytest
from network import report
from network.figures import figures_of, links_of, lower_by, where
from network.settings import OURS, POLICIES, TWO_CORES, bench_options, scaled, server_options, with_servers
from network.swarm import is_served
from network.topology import Link, Topology

TOPOLOGY = Topology(
    ("client", "x", "y"),
    {
        ("client", "x"): Link(round_trip_ms=20),
        ("client", "y"): Link(round_trip_ms=40),
        ("x", "y"): Link(round_trip_ms=10),
    },
)
HOST_OF = {"P": "x", "Q": "y"}


def request(**fields: Any) -> dict[str, Any]:
    return {
        "arrival_s": 1.0,
        "waited_s": 0.5,
        "first_s": 1.0,
        "between_s": [0.25, 0.25],
        "total_s": 1.5,
        "service_s": 1.0,
        "num_tokens": 3,
        "num_input_tokens": 9,
        "chain": [["P", 0, 10], ["Q", 10, 30]],
        "hops": [{"peer": "P", "queue_s": 0.1, "compute_s": 0.2}, {"peer": "Q", "queue_s": 0.0, "compute_s": 0.3}],
        "retries": 0,
        "error": None,
        **fields,
    }


def test_messages_of_a_request_go_around_its_chain_once_per_token() -> None:
    # 10 ms to the head, 3 x 5 ms along, 2 x 5 ms back, 20 ms to the client
    assert links_of(["x", "y"], TOPOLOGY, num_tokens=3) == pytest.approx(0.055)
    assert links_of(["x"], TOPOLOGY, num_tokens=5) == pytest.approx(0.02)


def test_the_parts_of_a_request_sum_up_to_its_response_time() -> None:
    parts = where(request(), TOPOLOGY, HOST_OF)
    assert parts is not None
    assert sum(parts.values()) == pytest.approx(1.5)
    assert (parts["waiting"], parts["queues"], parts["blocks"]) == pytest.approx((0.5, 0.1, 0.5))
    assert parts["software"] == pytest.approx(1.0 - 0.055 - 0.6)


def test_nothing_is_said_of_where_time_went_on_servers_that_are_not_known() -> None:
    assert where(request(chain=[["other", 0, 30]]), TOPOLOGY, HOST_OF) is None
    assert where(request(hops=[]), TOPOLOGY, HOST_OF) is None


def test_requests_that_failed_count_and_their_times_do_not() -> None:
    figures = figures_of({"requests": [request(), request(error="lost", total_s=99.0)]}, TOPOLOGY, HOST_OF)
    assert (figures["num_requests"], figures["num_answered"]) == (2, 1)
    assert figures["errors"] == {"lost": 1}
    assert figures["times"]["response"]["max"] == 1.5
    assert figures["times"]["service"]["mean"] == pytest.approx(1.0)
    assert figures["times"]["between tokens"]["mean"] == 0.25
    assert figures["took_s"] == 2.5


def row(mean_s: float) -> dict[str, Any]:
    figures = figures_of({"requests": [request(total_s=mean_s)]}, TOPOLOGY, HOST_OF)
    prediction = {kind: {"mean": mean_s} for kind in ("response", "waiting", "service")} | {"bounds": [1.0, 2.0]}
    return {**figures, "start_s": 9.0, "cores_busy": 1.0, "overrun": None, "prediction": prediction}


def test_the_table_says_by_how_much_ours_is_lower_and_what_the_paper_found() -> None:
    rows = {"petals": row(4.0), OURS: row(1.0)}
    (told,) = report.gains(rows)
    assert "75.0% lower than with PETALS (the paper: 76.8%)" in told
    assert lower_by(1.0, 4.0) == 0.75
    assert report.gains({"petals": row(4.0)}) == []
    assert "+0%" in report.model_against_reality(rows)[1]


def test_servers_and_load_are_told_what_the_policy_asks_for() -> None:
    petals = server_options(TWO_CORES, "small-1", POLICIES["petals"])
    assert petals[petals.index("--bench-placement") + 1] == "petals"
    assert "--bench-petals-cache" in petals
    ours = server_options(TWO_CORES, "large-1", POLICIES[OURS])
    assert "--bench-placement" not in ours
    assert "--slowdown" in ours
    assert "--dispatch" not in bench_options(TWO_CORES.load, POLICIES[OURS])
    assert "bprr" in bench_options(TWO_CORES.load, POLICIES["bprr"])


def test_a_setting_can_have_other_numbers_of_servers_and_another_load() -> None:
    few = scaled(with_servers(TWO_CORES, num_large=1, num_small=2), rate=0.5, num_requests=7)
    assert few.hosts == ("client", "small-1", "small-2", "large-1")
    assert (few.load.rate, few.load.num_requests) == (0.5, 7)


def status(**server: Any) -> dict[str, Any]:
    planned = {"peer": "P", "blocks": [0, 30]}
    plan = {"epoch": 2, "is_settled": True, "num_followers": 1, "servers": [planned]}
    shown = {"peer": "P", "blocks": [0, 30], "epoch": 2, "state": "online", **server}
    return {"models": [{"missing_blocks": [], "plan": plan}], "servers": [shown]}


def test_a_swarm_serves_when_all_follow_the_plan_and_hold_what_it_says() -> None:
    assert is_served(status(), num_servers=1)
    assert not is_served(status(), num_servers=2)
    assert not is_served(status(epoch=1), num_servers=1)
    assert not is_served(status(state="loading"), num_servers=1)
    assert not is_served(status(blocks=[0, 29]), num_servers=1)
    assert not is_served({"models": [], "servers": []}, num_servers=1)
