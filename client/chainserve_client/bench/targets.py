"""What is asked: a swarm by its token, or any server of OpenAI's API by its URL. Both as streams."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import aiohttp

from chainserve.errors import ChainserveError
from chainserve_client.client import AsyncClient

ERROR_CHARS = 200


class BenchError(ChainserveError):
    """A request that was not answered as it should be."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """Something of an answer has come."""

    num_tokens: int = 0
    waited_s: float | None = None


Target = Callable[[int], AsyncIterator[Arrival]]
"""Sends the request of this number, and gives what comes."""


def swarm(client: AsyncClient, prompt: str, *, max_tokens: int) -> Target:
    """A swarm: each request begins with its number, so that none has a prompt that is cached."""

    async def ask(index: int) -> AsyncIterator[Arrival]:
        stream = client.stream(f"{index}. {prompt}", max_new_tokens=max_tokens, ignore_end=True)
        async with aclosing(stream):
            async for _ in stream:
                yield Arrival(1)
        yield Arrival(waited_s=stream.result.opened_s)

    return ask


def api(
    http: aiohttp.ClientSession,
    url: str,
    prompt: str,
    *,
    model: str,
    max_tokens: int,
    key: str | None = None,
    is_full_length: bool = False,
) -> Target:
    """A server of OpenAI's API, where `url` ends in /v1. A piece of text counts as a token."""
    more = {"ignore_eos": True} if is_full_length else {}
    headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def ask(index: int) -> AsyncIterator[Arrival]:
        messages = [{"role": "user", "content": f"{index}. {prompt}"}]
        body = {"model": model, "messages": messages, "max_tokens": max_tokens, "stream": True, **more}
        try:
            async with http.post(f"{url.rstrip('/')}/chat/completions", json=body, headers=headers) as response:
                if response.status != 200:
                    raise BenchError(f"HTTP {response.status}: {(await response.text())[:ERROR_CHARS]}")
                async for line in response.content:
                    if read_event(line):
                        yield Arrival(1)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise BenchError(str(error)[:ERROR_CHARS] or type(error).__name__) from None

    return ask


def read_event(line: bytes) -> str:
    """The text in a line of a stream, if there is any; BenchError if the line tells of an error."""
    if not line.startswith(b"data:") or line.strip() == b"data: [DONE]":
        return ""
    event: Any = json.loads(line[5:])
    if not isinstance(event, dict):
        raise BenchError(f"an event that is no object: {line[:ERROR_CHARS]!r}")
    if "error" in event:
        raise BenchError(str(event["error"])[:ERROR_CHARS])
    choices = event.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return ""
    delta = choices[0].get("delta")
    text = delta.get("content") if isinstance(delta, dict) else None
    return text if isinstance(text, str) else ""
