"""A server of OpenAI's API as a target: whatever it does not know or tell is left out of what is measured."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from chainserve.errors import ChainserveError
from chainserve.types import PeerId
from chainserve_client.bench.load import Due
from chainserve_client.bench.prompts import word_prompt
from chainserve_client.bench.targets import Arrival
from chainserve_client.bench.timing import Change
from chainserve_client.token_session import HopTime

ERROR_CHARS = 200
LOOK_S = 10.0
"""For the list of models, which tells what kind of server it is."""
TEXT_FIELDS = ("content", "reasoning_content", "reasoning")


class BenchError(ChainserveError):
    """A request that was not answered as it should be."""


@dataclass(slots=True, kw_only=True)
class Endpoint:
    """Where to ask, and what is known of it; `url` ends in /v1."""

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    is_full_length: bool = False
    seed: int = 0
    num_shared: int = 0
    timeout_s: float = 600.0
    is_gateway: bool = False
    """One of ours, which tells of chains if it is asked to."""
    knows_usage: bool = True
    """Whether it counts tokens in streams; false once it has refused to."""

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def body(self, due: Due) -> dict[str, Any]:
        prompt = word_prompt(due.index, due.num_input_tokens, seed=self.seed, num_shared=self.num_shared)
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": due.num_output_tokens,
            "temperature": 0,
            "stream": True,
            **({"stream_options": {"include_usage": True}} if self.knows_usage else {}),
            **({"ignore_eos": True} if self.is_full_length else {}),
            **({"chainserve": True} if self.is_gateway else {}),
        }

    async def look(self, http: aiohttp.ClientSession) -> None:
        """Find out whether it is a gateway of ours; if it does not say, it is not."""
        try:
            async with asyncio.timeout(LOOK_S), http.get(self._at("models"), headers=self.headers) as response:
                content = await response.json()
                self.is_gateway = any(model["owned_by"] == "chainserve" for model in content["data"])
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
            self.is_gateway = False

    async def ask(self, http: aiohttp.ClientSession, due: Due) -> AsyncIterator[Arrival]:
        """Send a request; what comes of its answer. BenchError says what went wrong."""
        try:
            async with asyncio.timeout(self.timeout_s):
                response = await self._post(http, due)
                async with response:
                    async for arrival in _arrivals(response):
                        yield arrival
        except TimeoutError:
            raise BenchError(f"the request did not end within {self.timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise BenchError(str(error)[:ERROR_CHARS] or type(error).__name__) from None

    async def _post(self, http: aiohttp.ClientSession, due: Due) -> aiohttp.ClientResponse:
        """Send it, without asking for usage where a server refuses that."""
        while True:
            body = self.body(due)
            response = await http.post(self._at("chat/completions"), json=body, headers=self.headers)
            if response.status == 200:
                return response
            async with response:
                text = (await response.text())[:ERROR_CHARS]
            if response.status not in (400, 422) or "stream_options" not in body:
                raise BenchError(f"HTTP {response.status}: {text}")
            self.knows_usage = False

    def _at(self, path: str) -> str:
        return f"{self.url.rstrip('/')}/{path}"


async def _arrivals(response: aiohttp.ClientResponse) -> AsyncIterator[Arrival]:
    """What the events of a stream tell; BenchError if it is none, tells of an error, or breaks off."""
    if response.content_type != "text/event-stream":
        raise BenchError(f"the answer is {response.content_type} instead of a stream of events")
    has_ended = False
    async for line in response.content:
        event = read_event(line)
        if event is None:
            has_ended = has_ended or line.strip() == b"data: [DONE]"
            continue
        arrival, is_last = read_arrival(event)
        has_ended = has_ended or is_last
        yield arrival
    if not has_ended:
        raise BenchError("the stream broke off before its end")


def read_event(line: bytes) -> Mapping[str, Any] | None:
    """The event in a line of a stream, None if there is none; BenchError if the line tells of an error."""
    if not line.startswith(b"data:") or line.strip() == b"data: [DONE]":
        return None
    event: Any = json.loads(line[5:])
    if not isinstance(event, dict):
        raise BenchError(f"an event that is no object: {line[:ERROR_CHARS]!r}")
    if event.get("error"):
        raise BenchError(str(event["error"])[:ERROR_CHARS])
    return event


def read_arrival(event: Mapping[str, Any]) -> tuple[Arrival, bool]:
    """What an event tells, and whether the answer ends with it. A piece of text counts as a token."""
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    delta = choice.get("delta")
    texts = [delta.get(name) for name in TEXT_FIELDS] if isinstance(delta, dict) else []
    usage = event.get("usage")
    counted = usage if isinstance(usage, dict) else {}
    report = choice.get("chainserve")
    told = report_of(report) if isinstance(report, dict) else Arrival()
    now = Arrival(
        num_tokens=int(any(isinstance(text, str) and text for text in texts)),
        num_input_tokens=_count(counted.get("prompt_tokens")),
        num_output_tokens=_count(counted.get("completion_tokens")),
    )
    return told.then(now), choice.get("finish_reason") is not None


def report_of(report: Mapping[str, Any]) -> Arrival:
    """What one of our gateways says of an answer; ValueError if that makes no sense."""
    try:
        return Arrival(
            waited_s=float(report["queue_s"]),
            chain=tuple((str(hop["peer"]), *map(int, hop["blocks"])) for hop in report["route"]),  # type: ignore[misc]
            hops=tuple(
                HopTime(PeerId(str(hop["peer"])), float(hop["queue_s"]), float(hop["compute_s"]))
                for hop in report["hops"]
            ),
            changes=tuple(
                Change(str(each["peer"]), str(each["reason"]), float(each["stall_s"])) for each in report["recoveries"]
            ),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"a report that makes no sense: {error}") from None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
