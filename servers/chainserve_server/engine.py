"""The batching loop: every iteration takes what is ready of all sessions and runs it in one packed forward.

One thread owns the model. The event loop reserves and releases cache at any time: that is a change of the books. A
session that is released while a forward runs keeps its memory until that has ended, before which no other can use any.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch

from chainserve.errors import StepError
from chainserve.models.cache import KVCache
from chainserve.models.runner import Runner
from chainserve.models.wire import from_wire, to_wire
from chainserve.protocol.messages import Activations, FailureCode, Reorder, Step, WireTensor
from chainserve.types import PeerId, SessionId, Span

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """A step that waits for its turn.

    `hidden` has shape (step.num_tokens, hidden size). All outputs go on to `receiver`, or, from the tail, only
    those the client asked for.
    """

    step: Step
    span: Span
    hidden: WireTensor
    receiver: PeerId
    is_tail: bool


@dataclass(frozen=True, slots=True, eq=False)
class Reordering:
    """A reordering that waits for its turn, and then goes on to `receiver`, behind the outputs of steps before it."""

    message: Reorder
    receiver: PeerId | None  # None: from the tail it goes nowhere


Item = Work | Reordering


@dataclass(frozen=True, slots=True)
class Batch:
    """What one iteration runs: first the reorderings, then the steps in one packed forward."""

    reorders: list[Reordering]
    works: list[Work]

    def __bool__(self) -> bool:
        return bool(self.reorders or self.works)


@dataclass(frozen=True, slots=True)
class Forward:
    """One packed forward: what it ran, as a profile counts it, and how long it took."""

    span: Span
    num_decode: int  # steps of one token
    num_prefill_tokens: int
    seconds: float
    num_outputs: int = 0  # of these tokens, those that were turned into logits


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an iteration gave: messages to pass on, and sessions that cannot go on."""

    messages: list[tuple[PeerId, Activations | Reorder]]
    failures: list[tuple[SessionId, FailureCode, str]]
    forwards: list[Forward] = field(default_factory=list)


Emit = Callable[[PeerId, Activations | Reorder], None]
Fail = Callable[[SessionId, FailureCode, str], None]
Observe = Callable[[Forward], None]


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
    ) -> None:
        self.cache = cache
        self.runner = runner
        self._max_batch_tokens = max_batch_tokens
        self._emit = emit
        self._fail = fail
        self._observe = observe
        self._queues: dict[SessionId, deque[Item]] = {}
        self._changes: list[tuple[Callable[[], None], asyncio.Future[None]]] = []
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")

    def add(self, item: Item) -> None:
        """Queue a step or a reordering behind what the session has queued already."""
        session = item.message.session if isinstance(item, Reordering) else item.step.session
        self._queues.setdefault(session, deque()).append(item)
        self._wake.set()

    def release(self, session: SessionId) -> None:
        """Forget the session's work and free its cache: the books at once, the memory before the next iteration."""
        self._queues.pop(session, None)
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
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._wake.clear()
                self._change()
                batch = self._take_batch()
                if not batch:
                    await self._wake.wait()
                    continue
                try:
                    outcome = await loop.run_in_executor(self._thread, self._run_batch, batch)
                except RuntimeError as error:  # torch's own errors, out of memory among them
                    logger.exception("an iteration failed")
                    reason = f"{type(error).__name__}: {error}"[:200]
                    sessions = {work.step.session for work in batch.works}
                    outcome = Outcome([], [(session, FailureCode.INTERNAL, reason) for session in sessions])
                for receiver, message in outcome.messages:
                    self._emit(receiver, message)
                for failure in outcome.failures:
                    self._fail(*failure)
                for forward in outcome.forwards:
                    self._observe(forward)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

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
        return run_batch(self.runner, batch)

    def _take_batch(self) -> "Batch":
        """Remove from the queues what the next iteration runs."""
        reorders: list[Reordering] = []
        for queue in self._queues.values():
            while queue and isinstance(queue[0], Reordering):
                reorders.append(queue[0])
                queue.popleft()
        works = choose_batch(self._queues, max_tokens=self._max_batch_tokens)
        for work in works:
            self._queues[work.step.session].remove(work)
        self._queues = {session: queue for session, queue in self._queues.items() if queue}
        return Batch(reorders, works)


def leading_work(queue: Iterable[Item]) -> list[Work]:
    """The session's steps that can run now: up to a reordering, or a second step of the same lane."""
    ready: dict[int, Work] = {}
    for item in queue:
        if isinstance(item, Reordering) or item.step.lane in ready:
            break
        ready[item.step.lane] = item
    return list(ready.values())


def choose_batch(queues: Mapping[SessionId, Iterable[Item]], *, max_tokens: int) -> list[Work]:
    """Choose what to run next: short steps first, so that decoding never waits behind long prompts.

    At most `max_tokens` tokens, or one step if that alone is longer. Steps over the same blocks come together, those of
    one session in its order: none overtakes a longer one.
    """
    ready: list[tuple[int, Work]] = []
    for queue in queues.values():
        longest = 0
        for work in leading_work(queue):
            longest = max(longest, work.step.num_tokens)
            ready.append((longest, work))
    batch: list[Work] = []
    num_tokens = 0
    for _, work in sorted(ready, key=lambda pair: pair[0]):
        num_tokens += work.step.num_tokens
        if batch and num_tokens > max_tokens:
            break
        batch.append(work)
    return sorted(batch, key=lambda work: (work.span, work.receiver))


def run_batch(runner: Runner, batch: Batch) -> Outcome:
    """Run `batch` in one forward per span; one message per receiver. Called in the compute thread."""
    outcome = Outcome([], [])
    for reorder in batch.reorders:
        try:
            runner.cache.reorder(reorder.message.session, reorder.message.sources)
        except StepError as error:
            outcome.failures.append((SessionId(error.session), FailureCode.BAD_MESSAGE, str(error)))
        else:
            if reorder.receiver is not None:
                outcome.messages.append((reorder.receiver, reorder.message))
    for span, same_span in groupby(batch.works, key=lambda work: work.span):
        works = list(same_span)
        while works:
            began = time.perf_counter()
            try:
                outcome.messages.extend(run_works(runner, works, span))
            except StepError as error:  # raised before anything ran: go on without that session
                outcome.failures.append((SessionId(error.session), FailureCode.BAD_MESSAGE, str(error)))
                works = [work for work in works if work.step.session != error.session]
            else:
                outcome.forwards.append(forward_of(works, span, seconds=time.perf_counter() - began))
                break
    return outcome


def forward_of(works: list[Work], span: Span, *, seconds: float) -> Forward:
    """What to say of a forward that ran `works`."""
    num_tokens = [work.step.num_tokens for work in works]
    num_decode = num_tokens.count(1)
    return Forward(span, num_decode, sum(num_tokens) - num_decode, seconds)


def run_works(runner: Runner, works: list[Work], span: Span) -> list[tuple[PeerId, Activations]]:
    """One packed forward, and its outputs as one message per receiver; `works` come sorted by receiver."""
    rows = [from_wire(work.hidden, dtype=runner.dtype, device=runner.device) for work in works]
    hidden = rows[0] if len(rows) == 1 else torch.cat(rows)
    outputs = runner.forward(hidden, [work.step for work in works], span)
    parts = outputs.split([work.step.num_tokens for work in works])
    messages = []
    for receiver, pairs in groupby(zip(works, parts, strict=True), key=lambda pair: pair[0].receiver):
        leaving = [outgoing(work, part) for work, part in pairs if not work.is_tail or work.step.num_outputs]
        if leaving:
            steps, tensors = zip(*leaving, strict=True)
            packed = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
            messages.append((receiver, Activations(steps, to_wire(packed))))
    return messages


def outgoing(work: Work, rows: torch.Tensor) -> tuple[Step, torch.Tensor]:
    """What of a step's outputs leaves this server: all of them, or from the tail the last ones asked for."""
    step = work.step
    if not work.is_tail or step.num_outputs == step.num_tokens:
        return step, rows
    start = step.start + step.num_tokens - step.num_outputs
    return replace(step, start=start, num_tokens=step.num_outputs), rows[-step.num_outputs :]
