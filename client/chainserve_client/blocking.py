"""The client for code that does not await: the same client on an event loop in a thread of its own."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from chainserve.swarm.plans import SwarmPlan
from chainserve.types import Chain
from chainserve_client.client import AsyncClient
from chainserve_client.generation import Generation, Piece, Stream
from chainserve_client.parameters import GenerationOptions

T = TypeVar("T")


class LoopThread:
    """An event loop that runs in a thread until closed."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chainserve", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run on the loop and wait; interrupting the wait cancels it there."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class BlockingStream(Iterator[Piece]):
    """Pieces as they come. `result` is there once they have all come."""

    def __init__(self, stream: Stream, thread: LoopThread) -> None:
        self._stream = stream
        self._thread = thread

    @property
    def result(self) -> Generation:
        return self._stream.result

    def __next__(self) -> Piece:
        try:
            return self._thread.run(self._stream.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """Stop generating and free the session's cache."""
        self._thread.run(self._stream.aclose())


class Client:
    """Generates over the servers of a swarm.

    with Client.connect(token) as client:
        print(client.generate("Once upon a time", max_new_tokens=64).text)
    """

    def __init__(self, client: AsyncClient, thread: LoopThread) -> None:
        self.asynchronous = client
        self.thread = thread

    @classmethod
    def connect(cls, token: str, *, model: str | None = None, draft_model: str | None = None) -> Self:
        """As `AsyncClient.connect`."""
        thread = LoopThread()
        try:
            return cls(thread.run(AsyncClient.connect(token, model=model, draft_model=draft_model)), thread)
        except BaseException:
            thread.close()
            raise

    def generate(
        self, prompt: str | Sequence[int], *, chain: Chain | None = None, **options: Unpack[GenerationOptions]
    ) -> Generation:
        """As `AsyncClient.generate`."""
        return self.thread.run(self.asynchronous.generate(prompt, chain=chain, **options))

    def stream(
        self, prompt: str | Sequence[int], *, chain: Chain | None = None, **options: Unpack[GenerationOptions]
    ) -> BlockingStream:
        """As `AsyncClient.stream`."""
        return BlockingStream(self.asynchronous.stream(prompt, chain=chain, **options), self.thread)

    def plan(self) -> SwarmPlan | None:
        """As `AsyncClient.plan`."""
        return self.thread.run(self.asynchronous.plan())

    def close(self) -> None:
        """End all sessions and leave the swarm."""
        self.thread.run(self.asynchronous.close())
        self.thread.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
