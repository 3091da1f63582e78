"""A server of OpenAI's API that is none of ours: it streams what it is told to, and remembers what it was asked."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

DONE = b"data: [DONE]\n\n"


@dataclass
class Stub:
    """How it answers, and what it was asked."""

    lines: Sequence[bytes]
    status: int = 200
    content_type: str = "text/event-stream"
    refuses: Sequence[str] = ()
    """Fields of a request that it does not know."""
    hangs: bool = False
    """Sends nothing more after its lines, and does not end."""
    url: str = ""
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.headers.append(dict(request.headers))
        self.bodies.append(body)
        if unknown := [name for name in self.refuses if name in body]:
            return web.json_response({"error": f"unknown field {unknown[0]}"}, status=422)
        response = web.StreamResponse(status=self.status, headers={"Content-Type": self.content_type})
        await response.prepare(request)
        for line in self.lines:
            await response.write(line)
        if self.hangs:
            await asyncio.Event().wait()
        return response


@asynccontextmanager
async def stub(*lines: bytes, **more: Any) -> AsyncIterator[Stub]:
    """Listens at a port of this machine."""
    made = Stub(lines, **more)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", made.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield made
    finally:
        await runner.cleanup()


def event(text: str = "", **fields: Any) -> bytes:
    """A piece of an answer."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None, **fields}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def usage(num_prompt: int, num_answered: int) -> bytes:
    """The counts of tokens that end a stream."""
    counted = {"prompt_tokens": num_prompt, "completion_tokens": num_answered}
    return b"data: " + json.dumps({"choices": [], "usage": counted}).encode() + b"\n\n"
