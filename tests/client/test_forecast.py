"""What is foretold of servers that do not exist yet."""

import json
import math
from typing import Any

import pytest

from chainserve.errors import NoPlanError, UsageError
from chainserve.models.costs import ModelCosts
from chainserve.types import PeerId, Span
from chainserve_client.forecast import MAX_LEFT_OUT, Demand, Forecast, forecast
from chainserve_client.outlook import MAX_CHAINS
from chainserve_client.plan_report import to_json, to_text
from chainserve_client.planfile import FutureServer, FutureSwarm
from chainserve_client.tables import WIDTH

COSTS = ModelCosts(
    num_blocks=8,
    block_bytes=1_000_000_000,
    active_bytes=500_000_000,
    flop_per_token=1e9,
    token_bytes=10_000,
    embedding_bytes=200_000_000,
    head_bytes=300_000_000,
    is_tied=False,
)
DEMAND: dict[str, Any] = {"arrival_rate": 0.05, "input_tokens": 1000, "output_tokens": 101, "max_length": 2000}


def server(
    name: str,
    memory_gb: float,
    *,
    speed: float = 1.0,
    pinned: Span | None = None,
    round_trip_s: float = 0.02,
    decode_s: float | None = None,
) -> FutureServer:
    return FutureServer(
        peer=PeerId(name),
        memory_bytes=memory_gb * 1e9,
        round_trip_s=round_trip_s,
        overhead_s=0.001,
        prefill_s=None,
        decode_s=decode_s,
        flop_per_s=speed * 1e14,
        bytes_per_s=speed * 1e12,
        pinned=pinned,
    )


def swarm_forecast(
    *servers: FutureServer, round_trips_s: dict[frozenset[PeerId], float] | None = None, **demand: Any
) -> Forecast:
    return forecast(FutureSwarm(servers, round_trips_s or {}), COSTS, Demand(**DEMAND | demand))


def text_of(found: Forecast) -> str:
    return to_text(found, name="some/model", dtype="bfloat16")


def json_of(found: Forecast) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(to_json(found, name="some/model", dtype="bfloat16"))
    return content


def test_a_lone_server_is_a_round_trip_away_and_computes_all_blocks() -> None:
    found = swarm_forecast(server("a", 20))
    (chain,), (prediction,) = found.plan.chains, found.predictions
    assert prediction.token_s == pytest.approx(0.02 + 8 * 0.5e9 / 1e12)
    assert prediction.first_token_s == pytest.approx(0.02 + 8 * (0.001 + 1000 * 1e9 / 1e14))
    assert chain.service_s == pytest.approx(prediction.first_token_s + 100 * prediction.token_s)
    slot_bytes = 2000 * 10_000
    assert chain.capacity == (20_000_000_000 - 8_500_000_000) // slot_bytes // 8


def test_between_servers_a_token_takes_half_their_round_trip() -> None:
    pair = frozenset({PeerId("a"), PeerId("b")})
    servers = server("a", 6, pinned=Span(0, 4)), server("b", 6, pinned=Span(4, 8), round_trip_s=0.06)
    compute_s = 8 * 0.5e9 / 1e12
    assert swarm_forecast(*servers).predictions[0].token_s == pytest.approx(0.02 + 0.02 + compute_s)
    near = swarm_forecast(*servers, round_trips_s={pair: 0.002})
    assert near.predictions[0].token_s == pytest.approx(0.02 + 0.001 + compute_s)
    assert near.plan.chains[0].service_s == pytest.approx(
        near.predictions[0].first_token_s + 100 * near.predictions[0].token_s
    )


def test_measured_times_go_before_those_of_the_hardware() -> None:
    found = swarm_forecast(server("a", 20, decode_s=0.01))
    assert found.predictions[0].token_s == pytest.approx(0.02 + 8 * 0.01)


def test_spares_and_servers_that_are_needed_are_told_apart() -> None:
    found = swarm_forecast(server("fast", 20), server("slow", 20, speed=0.3), server("tiny", 0.5))
    assert found.left_out[PeerId("slow")].is_spare
    assert found.left_out[PeerId("tiny")].is_spare
    assert not found.left_out[PeerId("fast")].is_spare
    text = text_of(found)
    assert "better left as a spare: slow" in text
    assert "no room for a block: a spare" in text
    needed = swarm_forecast(server("a", 6), server("b", 6))
    assert all(math.isinf(left_out.slowdown) for left_out in needed.left_out.values())
    assert "better left as a spare" not in text_of(needed)
    assert "no room for blocks" in text_of(needed)


def test_one_of_several_spares_is_offered_not_all() -> None:
    servers = [server("fast", 20), *(server(name, 20, speed=0.3) for name in ("slow", "slower"))]
    assert "better left as a spare: one of slow, slower" in text_of(swarm_forecast(*servers))


def test_in_a_large_swarm_no_server_is_left_out() -> None:
    servers = [server(f"s{number}", 10) for number in range(MAX_LEFT_OUT)]
    found = swarm_forecast(*servers, server("tiny", 0.5))
    assert set(found.left_out) == {PeerId("tiny")}
    without = {entry["name"]: entry["without_it"] for entry in json_of(found)["servers"]}
    assert without["s0"] is None
    assert without["tiny"] == {"slowdown": 0.0, "missing_blocks": [], "is_spare": True}


def test_the_text_fits_100_columns_and_says_what_to_expect() -> None:
    names = [f"rather-long-one{number}" for number in range(8)]
    found = swarm_forecast(*(server(name, 2, pinned=Span(i, i + 1)) for i, name in enumerate(names)))
    text = text_of(found)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert text.startswith("some/model in bfloat16\nweights: 8 blocks of 1.00 GB, embedding 200 MB, head 300 MB\n")
    assert "cache for 2,000 tokens, 20.0 MB per block" in text
    assert "rather-long-one3" in text
    assert "3:4*" in text
    assert "* blocks chosen by the servers file" in text
    assert "at 0.05 per second (load" in text


def test_servers_come_in_the_order_of_their_blocks() -> None:
    found = swarm_forecast(
        server("z", 6, pinned=Span(0, 4)), server("a", 6, pinned=Span(4, 8)), server("m", 0.5), server("b", 20)
    )
    column = [line.split()[0] for line in text_of(found).splitlines() if "[" in line]
    assert column.index("z") < column.index("a") < column.index("m") == len(column) - 1


def test_a_load_beyond_the_swarm_is_said_and_is_no_number_in_json() -> None:
    found = swarm_forecast(server("a", 9), arrival_rate=50.0)
    assert "the queue would grow without end" in text_of(found)
    content = json_of(found)
    assert content["is_stable"] is False
    assert content["response_s"] == {"lower": None, "upper": None}
    assert content["max_requests_per_s"] < 50
    assert content["servers"][0]["without_it"]["slowdown"] is None


def test_a_server_without_which_the_load_is_too_high_is_said_to_be_needed() -> None:
    servers = server("a", 9), server("b", 9)
    bearable = 1.2 * swarm_forecast(servers[0]).plan.total_rate
    found = swarm_forecast(*servers, arrival_rate=bearable)
    assert found.plan.is_stable
    assert "the load is too high" in text_of(found)


def test_of_many_chains_the_fastest_are_shown_and_json_has_all() -> None:
    halves = [
        server(f"{half}{number}", 5, pinned=span, speed=1 - number / 100, round_trip_s=0.02 + number / 1000)
        for number in range(18)
        for half, span in (("a", Span(0, 4)), ("b", Span(4, 8)))
    ]
    found = swarm_forecast(*halves)
    num_hidden = len(found.plan.chains) - MAX_CHAINS
    assert num_hidden > 0
    assert f"and {num_hidden} slower chain" in text_of(found)
    assert len(json_of(found)["chains"]) == len(found.plan.chains)


def test_json_has_the_plan_in_bytes_and_seconds() -> None:
    found = swarm_forecast(server("a", 20), server("b", 6, pinned=Span(4, 8)))
    content = json_of(found)
    assert content["model"]["num_blocks"] == 8
    assert content["demand"] == {
        "requests_per_s": 0.05,
        "input_tokens": 1000,
        "output_tokens": 101,
        "max_length": 2000,
    }
    a, b = content["servers"]
    assert (a["name"], a["is_pinned"], b["blocks"], b["is_pinned"]) == ("a", False, [4, 8], True)
    assert b["weight_bytes"] == 4.3e9
    assert b["cache_slots"] == found.plan.slots[PeerId("b")]
    assert content["chains"][0]["hops"][0][:2] == ["a", 0]
    assert content["chains"][0]["tokens_per_s"] == pytest.approx(found.predictions[0].tokens_per_s)
    assert content["explanation"] == found.plan.explain()


def test_too_little_memory_is_said_with_the_blocks_that_have_no_room() -> None:
    with pytest.raises(NoPlanError, match="blocks 4:8 of 8"):
        swarm_forecast(server("a", 5))


@pytest.mark.parametrize(
    ("pinned", "fact"), [(Span(4, 9), "the model has 8 blocks"), (Span(0, 8), "blocks 0:8 take .* a has")]
)
def test_pinned_blocks_have_to_be_there_and_to_fit(pinned: Span, fact: str) -> None:
    with pytest.raises(UsageError, match=f"{fact}.*; change its blocks in the servers file"):
        swarm_forecast(server("a", 6, pinned=pinned), server("b", 20))


@pytest.mark.parametrize(
    ("demand", "fact"),
    [
        ({"arrival_rate": 0.0}, "not a rate of requests: 0"),
        ({"arrival_rate": math.nan}, "not a rate of requests: nan"),
        ({"arrival_rate": math.inf}, "not a rate of requests: inf"),
        ({"input_tokens": 0}, "requests of 0 tokens in"),
        ({"output_tokens": -1}, "and -1 out"),
        ({"max_length": 1100}, "takes 1101 tokens, sessions hold at most 1100: raise --max-length"),
    ],
)
def test_a_demand_that_makes_no_sense_is_refused(demand: dict[str, Any], fact: str) -> None:
    with pytest.raises(UsageError, match=fact):
        Demand(**DEMAND | demand)
