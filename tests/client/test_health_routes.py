"""What the health page's addresses answer, over a swarm in memory: the page, JSON, the stream, and keys."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from gateway_in_memory import asking, page_over, posted
from served_in_memory import MODEL, served, until

from chainserve.errors import RecordError
from chainserve.types import Span
from chainserve_client.gateway.keys import Keys, new_key, read_keys
from chainserve_client.health.hub import Listener

SPANS = {"a": Span(0, 5), "b": Span(4, 8)}


async def get(http: aiohttp.ClientSession, path: str, **options: Any) -> Any:
    async with http.get(path, **options) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def events_of(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
    kind = ""
    async for line in response.content:
        if line.startswith(b"event: "):
            kind = line[7:].decode().strip()
        elif line.startswith(b"data: "):
            yield kind, json.loads(line[6:])


async def test_the_page_and_its_files_come_with_a_strict_policy_and_refer_to_nothing_else() -> None:
    async with served(SPANS) as swarm, page_over(swarm) as (http, _):
        async with http.get("/") as response:
            text = await response.text()
            assert response.content_type == "text/html"
        assets = [part.split('"')[0] for part in text.split('="/')[1:]]
        assert "assets/main.js" in assets
        for path in ("/", *(f"/{asset}" for asset in assets if asset.startswith("assets/"))):
            async with http.get(path) as response:
                assert response.status == 200, path
                assert "default-src 'self'" in response.headers["Content-Security-Policy"]
                assert "unsafe" not in response.headers["Content-Security-Policy"]
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                body = await response.text()
                for scheme in ("http:", "https:", "innerHTML", "eval("):
                    assert scheme not in body.replace("http://www.w3.org/2000/svg", ""), path
        for path in ("/assets/none.js", "/assets/..%2fpage.py", "/assets/"):
            async with http.get(path) as response:
                assert response.status == 404
                assert (await response.json())["error"]["code"] == "not_found"


async def test_the_state_says_who_holds_what_and_what_would_be_missing() -> None:
    async with served(SPANS) as swarm, page_over(swarm) as (http, _):
        state = await get(http, "/api/v1/state")
        [model] = state["models"]
        assert (state["swarm"], model["name"], model["coverage"]) == ("home", MODEL.name, [1, 1, 1, 1, 2, 1, 1, 1])
        assert model["verdict"]["health"] == "at_risk"
        assert [server["if_it_leaves"]["missing_blocks"] for server in model["servers"]] == [[[0, 4]], [[5, 8]]]
        assert all(server["device"] is None for server in model["servers"])  # of a server of before
        assert not any("addresses" in server for server in model["servers"])
        plan = await get(http, "/api/v1/plan")
        assert [one["name"] for one in plan["models"]] == [MODEL.name]
        assert await get(http, "/api/v1/events") == {"events": []}
        history = await get(http, "/api/v1/history")
        assert len(history["fields"]) == len(history["samples"][0]) == 5


async def test_the_stream_tells_of_a_server_that_is_lost() -> None:
    async with served(SPANS) as swarm, page_over(swarm) as (http, watch), http.get("/api/v1/stream") as response:
        assert response.content_type == "text/event-stream"
        first, told = [], {}
        async with asyncio.timeout(20):
            async for kind, data in events_of(response):
                if len(first) < 4:
                    first.append(kind)
                told[kind] = data
                if kind == "state" and all(server["link"] for server in data["models"][0]["servers"]):
                    await swarm.servers["b"].die()
                if kind == "events" and data:
                    break
        assert first == ["clock", "state", "events", "history"]
        assert [event["kind"] for event in told["events"]] == ["broken", "lost"]
        [model] = told["state"]["models"]
        assert model["verdict"] == model["verdict"] | {"health": "broken", "missing_blocks": [[5, 8]]}
        assert [server["state"] for server in model["servers"]] == ["online", "unreachable"]
        assert len(watch.hub) == 1


async def test_with_keys_the_page_is_open_and_what_it_shows_is_not(tmp_path: Path) -> None:
    key, table = new_key("alice")
    (tmp_path / "keys.toml").write_text(table + "requests_per_minute = 2\n")
    keys = Keys(read_keys(tmp_path / "keys.toml"))
    known = {"Authorization": f"Bearer {key}"}
    origin = {"Origin": "https://elsewhere.example"}
    async with served(SPANS) as swarm, page_over(swarm, keys=keys, cors_origins=["*"]) as (http, _):
        for path in ("/", "/assets/main.js", "/healthz"):
            async with http.get(path) as response:
                assert response.status == 200
        for path in ("state", "plan", "events", "history", "stream"):
            async with http.get(f"/api/v1/{path}", headers=origin) as response:
                assert response.status == 401
                assert "Access-Control-Allow-Origin" not in response.headers
                assert "Qm" not in await response.text()
        for _ in range(5):  # looking does not count
            assert (await get(http, "/api/v1/state", headers=known))["models"]
        async with http.post("/v1/chat/completions", json=asking(), headers=known) as response:
            assert response.status != 401


async def test_the_gateway_answers_beside_the_page() -> None:
    async with served(SPANS) as swarm, page_over(swarm) as (http, _):
        body = await posted(http, "/v1/chat/completions", asking(chainserve=True))
        assert body["choices"][0]["chainserve"]["route"]


async def test_a_listener_that_is_slow_gets_the_newest_of_each_kind_and_then_the_end() -> None:
    listener = Listener()
    news = listener.news(idle_s=0.01)
    listener.tell("state", b"old")
    listener.tell("state", b"new")
    listener.tell("sample", b"one")
    assert [await anext(news), await anext(news)] == [b"new", b"one"]
    assert await anext(news) == b": still here\n\n"
    listener.end()
    with pytest.raises(StopAsyncIteration):
        await anext(news)


async def test_a_plan_shows_its_chains_and_one_that_cannot_be_read_the_reason() -> None:
    spans = {"a": Span(0, 4), "b": Span(4, 8)}
    async with served(spans) as swarm, page_over(swarm) as (_, watch):
        swarm.plan((("a", "b"), 3, 1.5))

        def plan() -> dict[str, Any]:
            return watch.state["models"][0]["plan"] or {}

        await until(lambda: "chains" in plan())
        [chain] = plan()["chains"]
        assert (chain["places"], chain["is_whole"], chain["predicted"]["request_s"]) == (3, True, 1.5)
        assert plan()["now"]["response_s"] == {"lower": 1.5, "upper": 1.5}  # nobody asks

        async def refuse(*_: object) -> None:
            raise RecordError("its bytes are gone")

        swarm.networks[0].read_plan = refuse  # type: ignore[method-assign, assignment]
        swarm.plan((("a", "b"), 2, 1.0), epoch=2)
        await until(lambda: plan().get("cannot_be_read"))
        assert plan()["epoch"] == 2
        assert "its bytes are gone" in plan()["cannot_be_read"]
        assert [event.epoch for event in watch.events] == [1, 2]
