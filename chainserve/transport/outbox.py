"""Messages on their way out: in order per peer, and no peer's slow link holds up another's."""

import asyncio
from collections.abc import Callable

from chainserve.errors import FrameError, LinkLostError
from chainserve.protocol.messages import Message
from chainserve.transport.links import Links
from chainserve.types import PeerId


class Outbox:
    """Posts without waiting; one task per peer makes the link if there is none, and sends."""

    def __init__(self, links: Links, *, on_lost: Callable[[PeerId, str], None]) -> None:
        self._links = links
        self._on_lost = on_lost
        self._queues: dict[PeerId, tuple[asyncio.Queue[Message], asyncio.Task[None]]] = {}

    def post(self, peer: PeerId, message: Message) -> None:
        """Send `message` behind what was posted to `peer` before."""
        if peer not in self._queues:
            queue: asyncio.Queue[Message] = asyncio.Queue()
            self._queues[peer] = queue, asyncio.create_task(self._send_all(peer, queue), name=f"outbox {peer}")
        self._queues[peer][0].put_nowait(message)

    def forget(self, peer: PeerId) -> None:
        """Drop what waits for a peer whose link is gone."""
        if peer in self._queues:
            self._queues.pop(peer)[1].cancel()

    async def flush(self) -> None:
        """Wait until all that was posted is sent."""
        await asyncio.gather(*(queue.join() for queue, _ in self._queues.values()))

    async def close(self) -> None:
        """Stop sending."""
        tasks = [task for _, task in self._queues.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _send_all(self, peer: PeerId, queue: asyncio.Queue[Message]) -> None:
        try:
            await self._links.connect(peer)
            while True:
                await self._links.send(peer, await queue.get())
                queue.task_done()
        except (LinkLostError, FrameError) as error:  # a frame too large for the link is lost too
            self._queues.pop(peer, None)
            self._on_lost(peer, error.reason if isinstance(error, LinkLostError) else str(error))
