"""How the live view of a swarm is shown."""

import json
from typing import Any, cast

import pytest

from chainserve.errors import LinkLostError
from chainserve.swarm.records import Announcement, ServerState
from chainserve.swarm.view import make_view
from chainserve.transport.links import Links
from chainserve.types import PeerId, Span
from chainserve_client.cli import main
from chainserve_client.status import Status, Way, measure, to_json, to_text

NOW = 1_800_000_000.0


def server(name: str, start: int, end: int, **fields: Any) -> Announcement:
    usual: dict[str, Any] = {
        "peer": PeerId(f"Qm{name * 6}"),
        "state": ServerState.ONLINE,
        "model": "org/model",
        "model_digest": "d1",
        "num_blocks": 8,
        "span": Span(start, end),
        "dtype": "bfloat16",
        "quant": None,
        "weight_bytes": 0,
        "cache_tokens": 20_000,
        "free_tokens": 12_345,
        "addresses": ("wss://10.0.0.5:8300/link#sha256=aa",),
        "version": "0.1.0",
        "started_at": NOW - 7_500,
    }
    return Announcement(**usual | fields)


def status(*servers: Announcement, ways: dict[str, Way] | None = None) -> Status:
    by_peer = {PeerId(f"Qm{name * 6}"): way for name, way in (ways or {}).items()}
    return Status(swarm="home", view=make_view(servers, taken_at=NOW), ways=by_peer)


def test_servers_come_in_the_order_of_their_blocks_with_all_that_counts() -> None:
    lines = to_text(
        status(
            server("a", 4, 8, state=ServerState.DRAINING),
            server("b", 0, 4),
            ways={"b": Way("direct", 0.0123)},
        )
    ).splitlines()
    title = "org/model: 8 blocks, 2 servers, dtype bfloat16, version 0.1.0"
    assert lines[:3] == ["swarm home: 2 servers", "", title]
    assert lines[4].split("  ")[0] == "bbbbbb"
    for part in ("online", "0:4", "[####....]", "61% of 20,000", "direct, 12.3 ms", "2 h 5 min"):
        assert part in lines[4]
    for part in ("aaaaaa", "draining", "4:8", "[....####]", "no answer"):
        assert part in lines[5]


def test_servers_that_differ_in_dtype_or_version_say_which_they_have() -> None:
    text = to_text(status(server("a", 0, 8), server("b", 0, 8, dtype="float32")))
    assert "2 servers, version 0.1.0\n" in text
    assert [line.split()[-5] for line in text.splitlines()[4:6]] == ["bfloat16", "float32"]
    text = to_text(status(server("a", 0, 8), server("b", 0, 8, quant="nf4")))
    assert "nf4 in bfloat16" in text
    assert "dtype bfloat16\n" in to_text(status(server("a", 0, 8), server("b", 0, 8, version="0.2.0")))


def test_blocks_that_no_online_server_holds_are_named() -> None:
    gap = status(server("a", 0, 3), server("b", 3, 5, state=ServerState.LOADING), server("c", 6, 8))
    assert "\nnobody serves blocks 3:6\n" in to_text(gap)
    assert "\nevery block is served\n" in to_text(status(server("a", 0, 8)))


def test_a_server_that_waits_for_blocks_comes_last_and_holds_none() -> None:
    waiting = server("a", 0, 1, span=None, state=ServerState.JOINING, cache_tokens=0, free_tokens=0)
    shown = status(waiting, server("b", 0, 8))
    lines = to_text(shown).splitlines()
    assert lines[4].startswith("bbbbbb")
    assert lines[5].split()[:4] == ["aaaaaa", "joining", "none", "[........]"]
    assert "\nnobody serves blocks 0:8\n" in to_text(status(waiting))
    entry = json.loads(to_json(shown))["servers"][0]
    assert (entry["peer"], entry["blocks"]) == ("Qmaaaaaa", None)


def test_a_server_without_cache_has_none_free() -> None:
    assert "0% of 0" in to_text(status(server("a", 0, 8, cache_tokens=0, free_tokens=0)))


def test_several_models_are_shown_apart() -> None:
    both = status(server("a", 0, 8), server("b", 0, 3, model="org/another", model_digest="d2", num_blocks=3))
    text = to_text(both)
    assert text.startswith("swarm home: 2 servers, 2 models\n\norg/another: 3 blocks, 1 server, ")
    assert "\n\norg/model: 8 blocks, 1 server, " in text


def test_a_swarm_without_servers_is_said_to_be_empty() -> None:
    assert to_text(status()) == "swarm home: 0 servers"
    assert json.loads(to_json(status()))["servers"] == []


def test_long_figures_still_fit_100_columns_as_maps_get_narrower() -> None:
    large: dict[str, Any] = {"num_blocks": 126, "cache_tokens": 1_234_567, "free_tokens": 1_234_567}
    draining = server("a", 100, 126, state=ServerState.DRAINING, pinned=True, weight_bytes=98_700_000_000, **large)
    text = to_text(status(draining, ways={"a": Way("relayed", 0.123)}))
    assert max(map(len, text.splitlines())) <= 100
    assert "100:126*" in text
    assert "  98.7 GB  " in text
    assert text.splitlines()[4].count(".") > text.splitlines()[4].count("#") > 2


def test_json_has_whole_ids_and_plain_numbers() -> None:
    content = json.loads(to_json(status(server("a", 0, 3), server("b", 2, 5), ways={"a": Way("relayed", 0.25)})))
    assert content["swarm"] == "home"
    assert content["num_servers"] == 2
    assert content["models"] == [
        {
            "name": "org/model",
            "digest": "d1",
            "num_blocks": 8,
            "num_servers": 2,
            "num_online": 2,
            "missing_blocks": [5, 6, 7],
            "plan": None,
        }
    ]
    a, b = content["servers"]
    assert a == {
        "peer": "Qmaaaaaa",
        "state": "online",
        "model_digest": "d1",
        "blocks": [0, 3],
        "is_pinned": False,
        "epoch": 0,
        "dtype": "bfloat16",
        "quant": None,
        "weight_bytes": 0,
        "cache_tokens": 20_000,
        "free_tokens": 12_345,
        "addresses": ["wss://10.0.0.5:8300/link#sha256=aa"],
        "link": "relayed",
        "round_trip_s": 0.25,
        "version": "0.1.0",
        "up_s": 7_500.0,
        "offer": None,
    }
    assert (b["link"], b["round_trip_s"]) == (None, None)


class FakeLinks:
    """Links to three peers: one answers, one cannot be reached, one is silent; the fourth is lost at once."""

    def __init__(self) -> None:
        self.connected: set[PeerId] = set()

    async def connect(self, peer: PeerId) -> None:
        if peer == "Qmbbbbbb":
            raise LinkLostError(peer, "nobody listens")
        self.connected.add(peer)

    def kind(self, peer: PeerId) -> str | None:
        return "direct" if peer in self.connected and peer != "Qmdddddd" else None

    def round_trip_s(self, peer: PeerId) -> float | None:
        return 0.02 if peer == "Qmaaaaaa" else None


async def test_only_servers_that_answer_in_time_have_a_round_trip() -> None:
    view = status(*(server(name, 0, 8) for name in "abcd")).view
    ways = await measure(cast(Links, FakeLinks()), view, timeout_s=0.2)
    assert ways == {"Qmaaaaaa": Way("direct", 0.02)}


def test_a_token_that_is_none_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "nonsense"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert "not a join token" in shown.err
