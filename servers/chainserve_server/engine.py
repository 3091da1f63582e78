"""The batching loop: every iteration takes what is ready of all sessions and runs it in one packed forward.

One thread owns the model. The event loop reserves and releases cache at any time: that is a change of the books. A
session that is released while a forward runs keeps its memory until that has ended, before which no other can use any.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from chainserve.models.cache import KVCache
from chainserve.models.runner import Runner
from chainserve.models.wire import to_wire
from chainserve.protocol.messages import FailureCode
from chainserve.runtime.turns import Turns
from chainserve.types import PeerId, SessionId
from chainserve_server.compute import ComputeThread
from chainserve_server.iteration import Pack, run_batch
from chainserve_server.slowdown import Pace
from chainserve_server.work import (
    Batch,
    Forward,
    Item,
    Keeping,
    Outcome,
    Outgoing,
    Reordering,
    Work,
    choose_batch,
    cut_prompt,
    session_of,
)

logger = logging.getLogger(__name__)


Emit = Callable[[PeerId, Outgoing], None]
Fail = Callable[[SessionId, FailureCode, str], None]
Observe = Callable[[Forward], None]
ChunkTokens = Callable[[Work, int], int]
"""Tokens of a prompt's next chunk, while so many sessions are decoding."""

OnSpent = Callable[[SessionId, float, float], None]
"""Seconds that a session has waited for its turn, and that the iteration took which ran it."""

DECODING_S = 1.0
"""So long after its last step a session counts as decoding: its next one is under way."""

ON_THE_WAY_S = 0.001
"""Who had to wait for its turn waits so much longer for what the server before it has sent: so sessions at servers on
the same cores come together (docs/decisions/linear-layers.md)."""
MOST_VAIN, TRIED_AGAIN = 4, 16
"""After so many of these waits in a row that brought nothing, only every sixteenth turn waits: others who compute here
may have nothing to send."""


class Engine:
    """Runs the work of all sessions, in order within a session, batched across sessions."""

    def __init__(
        self,
        cache: KVCache,
        *,
        runner: Runner | None = None,  # None: there are no blocks to run yet
        max_batch_tokens: int,
        emit: Emit,
        fail: Fail,
        observe: Observe = lambda _forward: None,
        chunk_tokens: ChunkTokens | None = None,  # None: prompts run as large as a batch may be
        pack: Pack = to_wire,  # activations for the next server, in the compute thread
        on_spent: OnSpent = lambda _session, _waited_s, _computed_s: None,
        pace: Pace | None = None,  # for benchmarks: what forwards take at least
        turns: Turns | None = None,  # None: nobody else computes here
        prepare: Callable[[], None] | None = None,  # what the compute thread does first
    ) -> None:
        self.cache = cache
        self.runner = runner
        self.num_begun = 0
        """Iterations so far, the one under way included."""
        self._max_batch_tokens = max_batch_tokens
        self._emit = emit
        self._fail = fail
        self._observe = observe
        self._chunk_tokens = chunk_tokens or (lambda _work, _num_decoding: max_batch_tokens)
        self._pack = pack
        self._on_spent = on_spent
        self._pace = pace
        self._turns = turns
        self._prepare = prepare
        self._num_vain = 0  # turns that were waited for since something came after one
        self._since: dict[SessionId, float] = {}  # when sessions began to wait for their turn
        self._decoded_at: dict[SessionId, float] = {}  # when sessions took their last short step
        self._queues: dict[SessionId, deque[Item]] = {}
        self._changes: list[tuple[Callable[[], None], asyncio.Future[None]]] = []
        self._wake = asyncio.Event()

    def add(self, item: Item) -> None:
        """Queue a step or a reordering behind what the session has queued already."""
        session = session_of(item)
        self._queues.setdefault(session, deque()).append(item)
        self._since.setdefault(session, time.monotonic())
        self._wake.set()

    def release(self, session: SessionId) -> None:
        """Forget the session's work and free its cache: the books at once, the memory before the next iteration."""
        self._queues.pop(session, None)
        self._decoded_at.pop(session, None)
        self._since.pop(session, None)
        self.cache.release(session)

    async def between_iterations(self, change: Callable[[], None]) -> None:
        """Run `change` while no forward is under way and what was released is free: for another runner or cache.

        What it raises is raised here. If the caller gives up before its turn has come, it does not run.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changes.append((change, done))
        self._wake.set()
        await done

    async def run(self) -> None:
        """Iterate until cancelled."""
        thread = ComputeThread()
        try:
            if self._prepare is not None:
                await thread.run(self._prepare)
            while True:
                self._wake.clear()
                self._change()
                if not self._queues:
                    await self._wake.wait()
                    continue
                if self._turns is not None and not self._turns.take():
                    await self._wait_for(self._turns, thread)
                batch = self._take_batch()  # with what came meanwhile
                began_s = time.monotonic()
                self.num_begun += 1
                try:
                    outcome = await thread.run(partial(self._run_batch, batch))
                except RuntimeError as error:  # torch's own errors, out of memory among them
                    logger.exception("an iteration failed")
                    reason = f"{type(error).__name__}: {error}"[:200]
                    sessions = {work.step.session for work in batch.works}
                    outcome = Outcome([], [(session, FailureCode.INTERNAL, reason) for session in sessions])
                self._account(batch, began_s, time.monotonic())
                for receiver, message in outcome.messages:
                    self._emit(receiver, message)
                for failure in outcome.failures:
                    self._fail(*failure)
                # What was emitted is sent, and then counted, while the next iteration runs.
                asyncio.get_running_loop().call_soon(self._observe_all, outcome.forwards)
        finally:
            thread.stop(last=self._give_back_turn)

    def _observe_all(self, forwards: list[Forward]) -> None:
        for forward in forwards:
            self._observe(forward)

    def _account(self, batch: Batch, began_s: float, ended_s: float) -> None:
        """Tell what this iteration took of each session that it ran; what these have queued waits from now on."""
        for session in {work.step.session for work in batch.works}:
            since_s = min(began_s, self._since.pop(session, began_s))
            self._on_spent(session, began_s - since_s, ended_s - began_s)
            if session in self._queues:
                self._since[session] = ended_s

    def _change(self) -> None:
        """Do what had to wait for the forward to end. In a frame of its own, which keeps nothing of it alive."""
        changes, self._changes = self._changes, []
        for change, done in changes:
            if done.done():  # whoever asked for it has given up
                continue
            try:
                change()
            except Exception as error:  # noqa: BLE001 (whatever it is, it is for who asked, and no session's fault)
                done.set_exception(error)
            else:
                done.set_result(None)

    def _run_batch(self, batch: Batch) -> Outcome:
        """Called in the compute thread, which must not keep a runner: when that is exchanged, its memory is needed."""
        assert self.runner is not None, "sessions are open, but no blocks are there"
        try:
            return run_batch(self.runner, batch, pack=self._pack, pace=self._pace)
        finally:
            self._give_back_turn()

    async def _wait_for(self, turns: Turns, thread: ComputeThread) -> None:
        """Wait for this server's turn, and a moment for what is on its way from the one before."""
        await thread.run(turns.wait)
        self._num_vain += 1
        if self._num_vain > MOST_VAIN and self._num_vain % TRIED_AGAIN:
            return
        self._wake.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(ON_THE_WAY_S):
                await self._wake.wait()
                self._num_vain = 0

    def _give_back_turn(self) -> None:
        if self._turns is not None:
            self._turns.give_back()

    @property
    def num_decoding(self) -> int:
        """Sessions that decode here now: their steps are here, or on their way around the chain."""
        since = time.monotonic() - DECODING_S
        return sum(at > since for at in self._decoded_at.values())

    def _take_batch(self) -> Batch:
        """Remove from the queues what the next iteration runs."""
        firsts: list[Reordering | Keeping] = []
        for queue in self._queues.values():
            while queue and not isinstance(queue[0], Work):
                firsts.append(queue[0])
                queue.popleft()
        num_decoding = self.num_decoding
        for queue in self._queues.values():
            cut_prompt(queue, lambda work: self._chunk_tokens(work, num_decoding))
        works = choose_batch(self._queues, max_tokens=self._max_batch_tokens)
        for work in works:
            self._queues[work.step.session].remove(work)
            if work.is_decoding:
                self._decoded_at[work.step.session] = time.monotonic()
        self._queues = {session: queue for session, queue in self._queues.items() if queue}
        return Batch(firsts, works)
