"""Passes news on to everybody who listens; who is slow misses what is old, and gets the newest of each kind."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

MAX_LISTENERS = 64


class Listener:
    """What one listener has not been sent yet."""

    def __init__(self) -> None:
        self._news: dict[str, bytes] = {}
        self._is_over = False
        self._has_news = asyncio.Event()

    def tell(self, key: str, data: bytes) -> None:
        """The newest of its key takes the place of what has not been sent."""
        self._news[key] = data
        self._has_news.set()

    def end(self) -> None:
        """There will be no more news."""
        self._is_over = True
        self._has_news.set()

    async def news(self, *, idle_s: float) -> AsyncIterator[bytes]:
        """What is told, until the end; a comment when there is nothing for `idle_s`."""
        while not self._is_over:
            try:
                async with asyncio.timeout(idle_s):
                    await self._has_news.wait()
            except TimeoutError:
                yield b": still here\n\n"
                continue
            self._has_news.clear()
            news, self._news = self._news, {}
            for data in news.values():
                yield data


class Hub:
    """All who listen now."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()

    def __len__(self) -> int:
        return len(self._listeners)

    @contextmanager
    def listening(self) -> Iterator[Listener]:
        """Be told everything meanwhile."""
        listener = Listener()
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    def end(self) -> None:
        """Let all go: the program ends."""
        for listener in self._listeners:
            listener.end()

    def tell(self, key: str, data: bytes) -> None:
        """Tell all of them."""
        for listener in self._listeners:
            listener.tell(key, data)


def encoded(kind: str, content: Any) -> bytes:
    """A server-sent event of this kind."""
    body = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return f"event: {kind}\ndata: {body}\n\n".encode()
