"""What clients that hold no model and are no part of the DHT get from a server over their link."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol

from chainserve.errors import SwarmError, TextModelError
from chainserve.models.source import ModelSource
from chainserve.models.text import text_of
from chainserve.protocol.messages import Topic
from chainserve.protocol.text import NoText, pack_text
from chainserve.runtime.background import in_background
from chainserve.swarm.sealed import SealedView
from chainserve.swarm.view import View
from chainserve.transport.exchange import Find

logger = logging.getLogger(__name__)

READ_S = 1.0
"""So long an answer waits for a fresh look at the swarm: a peer that is gone can hold that up for seconds."""
GAP_S = 0.1
"""Between looks at the swarm, however many clients ask."""


class SealedSwarm(Protocol):
    """A swarm whose records can be passed on."""

    sealed: SealedView

    def now(self) -> float: ...
    async def refresh(self) -> View: ...


class Handouts:
    """Answers for `Exchange`: the swarm's records, sealed as they are, and the text side of our model."""

    def __init__(self, swarm: SealedSwarm, source: ModelSource, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._swarm = swarm
        self._source = source
        self._clock = clock
        self._looking: asyncio.Task[None] | None = None
        self._next_look: asyncio.Task[None] | None = None
        self._looked_s = -GAP_S
        self._reading_text = asyncio.Lock()
        self._text = b""

    @property
    def answers(self) -> Mapping[Topic, Find]:
        return {Topic.VIEW: self.view, Topic.TEXT: self.text}

    async def view(self, _name: str) -> bytes:
        """All records, from a look at the swarm that began after this call if that does not take too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(READ_S):
                await self._look()
        return self._swarm.sealed.to_bytes(now=self._swarm.now())

    async def text(self, model_digest: str) -> bytes:
        """The `TextBundle` of our model, read from its files when it is first asked for; empty for another model."""
        if model_digest != self._source.digest:
            return b""
        async with self._reading_text:
            if not self._text:
                try:
                    self._text = await in_background(lambda: pack_text(text_of(self._source)))
                except TextModelError as error:
                    self._text = pack_text(NoText(str(error)))
                except (OSError, ValueError) as error:  # may pass, as when it has to be downloaded
                    logger.warning("the tokenizer of %s cannot be read: %s", self._source.name, error)
                    return pack_text(NoText(f"its files cannot be read: {error}"))
        return self._text

    async def _look(self) -> None:
        """Wait for the next look at the swarm, which all share who wait for it."""
        if self._next_look is None:
            self._next_look = asyncio.create_task(self._look_after(self._looking))
        await asyncio.shield(self._next_look)

    async def _look_after(self, current: asyncio.Task[None] | None) -> None:
        if current is not None:
            await asyncio.wait({current})
        await asyncio.sleep(max(0.0, self._looked_s + GAP_S - self._clock()))
        self._looking, self._next_look = self._next_look, None
        self._looked_s = self._clock()
        try:
            await self._swarm.refresh()
        except SwarmError as error:
            logger.warning("the swarm could not be read for a client: %s", error)
