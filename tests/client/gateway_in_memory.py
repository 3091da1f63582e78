"""A gateway at a port of this machine, over a swarm in memory whose tokens are single characters."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from served_in_memory import MODEL, TEMPLATE, MemorySwarmOfServers, text_bundle

from chainserve_client.client import AsyncClient
from chainserve_client.gateway.app import Gateway
from chainserve_client.gateway.command import listening
from chainserve_client.gateway.models import Models
from chainserve_client.health.page import HealthPage
from chainserve_client.health.watch import Watch, watching
from chainserve_client.text_model import TextModel

MAX_POSITION = 500


@asynccontextmanager
async def gateway_over(
    swarm: MemorySwarmOfServers,
    *,
    end_tokens: tuple[int, ...] = (),
    max_position: int = MAX_POSITION,
    chat_template: str = TEMPLATE,
    **options: Any,
) -> AsyncIterator[aiohttp.ClientSession]:
    """A session of an HTTP client whose paths are the gateway's; `options` are those of `Gateway`."""
    network = await swarm.client()
    bundle = text_bundle(end_tokens=end_tokens, max_position=max_position, chat_template=chat_template)
    client = AsyncClient(network, MODEL, TextModel(MODEL.name, bundle))
    async with listening(Gateway(Models(network, client), **options), host="127.0.0.1", port=0) as url:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(url, connector=connector) as http:
            yield http


@asynccontextmanager
async def page_over(swarm: MemorySwarmOfServers, **options: Any) -> AsyncIterator[tuple[aiohttp.ClientSession, Watch]]:
    """An HTTP client whose paths are the gateway's, which has the page; `options` are those of `Gateway`."""
    network = await swarm.client()
    await network.swarm.refresh()
    bundle = text_bundle(end_tokens=(), max_position=MAX_POSITION)
    client = AsyncClient(network, MODEL, TextModel(MODEL.name, bundle))
    async with watching(network, swarm="home") as watch:
        gateway = Gateway(Models(network, client), page=HealthPage(watch), **options)
        async with listening(gateway, host="127.0.0.1", port=0) as url, aiohttp.ClientSession(url) as http:
            yield http, watch


def asking(**fields: Any) -> dict[str, Any]:
    """A request for a chat."""
    usual = {"model": MODEL.name, "messages": [{"role": "user", "content": "hello"}], "temperature": 0}
    return {**usual, "max_tokens": 8, **fields}


def continuing(**fields: Any) -> dict[str, Any]:
    """A request for a completion."""
    return {"model": MODEL.name, "prompt": "hello", "temperature": 0, "max_tokens": 8, **fields}


async def posted(http: aiohttp.ClientSession, path: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The body of an answer; AssertionError if it is an error."""
    async with http.post(path, json=fields) as response:
        body: dict[str, Any] = await response.json()
    assert response.status == 200, body
    return body


async def events_of(response: aiohttp.ClientResponse) -> list[dict[str, Any]]:
    """The events of a stream; AssertionError unless it ends as streams do."""
    assert response.status == 200, await response.text()
    *events, done = [line[6:] for line in (await response.text()).splitlines() if line.startswith("data: ")]
    assert done == "[DONE]"
    return [json.loads(event) for event in events]


def text_of(events: Sequence[dict[str, Any]], index: int = 0) -> str:
    """The text of one choice of a chat."""
    choices = [choice for event in events for choice in event["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content", "") for choice in choices)
