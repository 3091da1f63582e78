"""Drafts of this client's own for one request: how many, and whether they were right.

The head waits for them, so that what drafting takes is part of each step. They are made in a thread: where several
requests share a draft model, one after another.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from itertools import islice
from typing import Protocol

from chainserve.planning.speculation import ALIKE, SMOOTHING, Speculation
from chainserve.protocol.messages import Choice

logger = logging.getLogger(__name__)


class Draft(Protocol):
    """A draft model at work for one request."""

    def following(self, ids: Sequence[int]) -> Iterator[int]:
        """What may come after these tokens, one by one; it ends where the model can say no more."""

    def close(self) -> None:
        """Free what it has cached."""


class Drafting:
    """Has as many tokens drafted as make answers come fastest. Use one caller at a time."""

    def __init__(
        self, draft: Draft, thread: Executor, *, most: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """At most `most` tokens per step, drafted in `thread`."""
        self._draft = draft
        self._thread = thread
        self._most = most
        self._clock = clock
        self._speculation = Speculation(lambda num: num * self._draft_s)
        self._draft_s = 0.0  # seconds per draft; 0: not known yet
        self._proposed: tuple[int, ...] = ()
        self._num_sent = 0  # of these; one may have been kept back
        self._since_s: float | None = None  # when the last tokens came
        self._has_failed = False

    async def propose(self, ids: Sequence[int], choice: Choice) -> tuple[int, ...]:
        """What may come after `ids`, of which the tail has just chosen the last ones; maybe nothing."""
        now_s = self._clock()
        if self._since_s is not None:
            self._speculation.took(now_s - self._since_s, num_drafts=self._num_sent)
            self._verify(choice)
        self._since_s = now_s
        num = self._speculation.num_drafts(match=ALIKE, most=self._most) if self._draft_s else 0
        self._proposed = await self._run(ids, num) if num else ()
        self._num_sent = len(self._proposed)
        return self._proposed

    async def try_one(self, ids: Sequence[int]) -> None:
        """After nothing was proposed: draft all the same, to know whether it would have been right, and how long it
        takes, of which the first draft says nothing, as the whole prompt may come before it."""
        self._proposed = await self._run(ids, 1 if self._draft_s else 2)

    def close(self) -> None:
        """Free what the draft model has cached, once it has ended what is under way."""
        with suppress(RuntimeError):  # the thread has ended, and with it the model
            self._thread.submit(self._draft.close)

    def _verify(self, choice: Choice) -> None:
        pairs = list(zip(self._proposed, choice.ids, strict=False))
        num_right = next((at for at, (draft, token) in enumerate(pairs) if draft != token), len(pairs))
        self._speculation.verified(ALIKE, num_right, num_wrong=int(num_right < len(pairs)))

    async def _run(self, ids: Sequence[int], num: int) -> tuple[int, ...]:
        if self._has_failed:
            return ()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, self._run_now, ids, num)
        except RuntimeError as error:  # torch's own errors, out of memory among them
            logger.warning("no more drafts, as the draft model has failed: %s", error)
            self._has_failed = True
            return ()

    def _run_now(self, ids: Sequence[int], num: int) -> tuple[int, ...]:
        drafts: list[int] = []
        began_s = self._clock()
        for token in islice(self._draft.following(ids), num):
            drafts.append(token)
            ended_s = self._clock()
            if self._draft_s:
                self._draft_s += SMOOTHING * (ended_s - began_s - self._draft_s)
            elif len(drafts) > 1:
                self._draft_s = ended_s - began_s
            began_s = ended_s
        return tuple(drafts)
