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
from chainserve.models.sampling import TokenSampler
from chainserve.models.wire import from_wire, to_wire
from chainserve.planning.profile import MAX_OUTPUTS
from chainserve.protocol.messages import Activations, Choice, FailureCode, Reorder, Sampled, Step, WireTensor
from chainserve.types import PeerId, SessionId, Span

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """A step that waits for its turn.

    `hidden` has shape (step.num_tokens, hidden size); None at the head in token mode, which embeds the step's tokens.
    All outputs go on to `receiver`, or, from the tail, only those that were asked for. With a `sampler` the tail
    chooses tokens and tells the `receiver` and the `head` of the chain.
    """

    step: Step
    span: Span
    hidden: WireTensor | None
    receiver: PeerId
    is_tail: bool
    sampler: TokenSampler | None = None
    head: PeerId | None = None
    num_hops: int = 1  # of the chain

    @property
    def is_prompt(self) -> bool:
        """Whether it may be cut into chunks."""
        return self.hidden is None and self.step.num_outputs <= 1

    def cut(self, num_tokens: int) -> tuple["Work", "Work"]:
        """The first tokens of a prompt, and the rest."""
        step, end = self.step, self.step.start + num_tokens
        first = replace(step, num_tokens=num_tokens, num_outputs=0, ids=step.ids[:num_tokens])
        rest = replace(step, start=end, num_tokens=step.num_tokens - num_tokens, ids=step.ids[num_tokens:])
        return replace(self, step=first), replace(self, step=rest)


@dataclass(frozen=True, slots=True, eq=False)
class Reordering:
    """A reordering that waits for its turn, and then goes on to `receiver`, behind the outputs of steps before it."""

    message: Reorder
    receiver: PeerId | None  # None: from the tail it goes nowhere


@dataclass(frozen=True, slots=True, eq=False)
class Keeping:
    """Pages of a session's first lane that are certain, to be kept for others behind the steps before."""

    session: SessionId
    pages: tuple[bytes, ...]  # hashes of all pages from the first on


Item = Work | Reordering | Keeping
Outgoing = Activations | Sampled | Reorder


@dataclass(frozen=True, slots=True)
class Batch:
    """What one iteration runs: first the reorderings and what is kept, then the steps in one packed forward."""

    firsts: list[Reordering | Keeping]
    works: list[Work]

    def __bool__(self) -> bool:
        return bool(self.firsts or self.works)


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

    messages: list[tuple[PeerId, Outgoing]]
    failures: list[tuple[SessionId, FailureCode, str]]
    forwards: list[Forward] = field(default_factory=list)


Emit = Callable[[PeerId, Outgoing], None]
Fail = Callable[[SessionId, FailureCode, str], None]
Observe = Callable[[Forward], None]
ChunkTokens = Callable[[Work, int], int]
"""Tokens of a prompt's next chunk, while so many sessions are decoding."""

DECODING_S = 1.0
"""So long after its last step a session counts as decoding: its next one is under way."""


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
    ) -> None:
        self.cache = cache
        self.runner = runner
        self._max_batch_tokens = max_batch_tokens
        self._emit = emit
        self._fail = fail
        self._observe = observe
        self._chunk_tokens = chunk_tokens or (lambda _work, _num_decoding: max_batch_tokens)
        self._decoded_at: dict[SessionId, float] = {}  # when sessions took their last short step
        self._queues: dict[SessionId, deque[Item]] = {}
        self._changes: list[tuple[Callable[[], None], asyncio.Future[None]]] = []
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")

    def add(self, item: Item) -> None:
        """Queue a step or a reordering behind what the session has queued already."""
        self._queues.setdefault(session_of(item), deque()).append(item)
        self._wake.set()

    def release(self, session: SessionId) -> None:
        """Forget the session's work and free its cache: the books at once, the memory before the next iteration."""
        self._queues.pop(session, None)
        self._decoded_at.pop(session, None)
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

    @property
    def num_decoding(self) -> int:
        """Sessions that decode here now: their steps are here, or on their way around the chain."""
        since = time.monotonic() - DECODING_S
        return sum(at > since for at in self._decoded_at.values())

    def _take_batch(self) -> "Batch":
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
            if work.step.start and work.step.num_outputs == work.step.num_tokens:
                self._decoded_at[work.step.session] = time.monotonic()
        self._queues = {session: queue for session, queue in self._queues.items() if queue}
        return Batch(firsts, works)


def session_of(item: Item) -> SessionId:
    """Whose it is."""
    match item:
        case Work(step):
            return step.session
        case Reordering(message):
            return message.session
        case Keeping(session):
            return session


def cut_prompt(queue: deque[Item], chunk_tokens: Callable[[Work], int]) -> None:
    """Cut the next chunk off a prompt that is first in its queue."""
    work = queue[0] if queue else None
    if isinstance(work, Work) and work.is_prompt and work.step.num_tokens > (size := chunk_tokens(work)):
        queue.popleft()
        queue.extendleft(reversed(work.cut(size)))


def leading_work(queue: Iterable[Item]) -> list[Work]:
    """The session's steps that can run now: up to what is no step, or a second step of the same lane."""
    ready: dict[int, Work] = {}
    for item in queue:
        if not isinstance(item, Work) or item.step.lane in ready:
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
    for first in batch.firsts:
        if isinstance(first, Keeping):
            runner.cache.keep(first.session, first.pages)
            continue
        try:
            runner.cache.reorder(first.message.session, first.message.sources)
        except StepError as error:
            outcome.failures.append((SessionId(error.session), FailureCode.BAD_MESSAGE, str(error)))
        else:
            if first.receiver is not None:
                outcome.messages.append((first.receiver, first.message))
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


def run_works(runner: Runner, works: list[Work], span: Span) -> list[tuple[PeerId, Outgoing]]:
    """One packed forward, and its outputs as one message per receiver; `works` come sorted by receiver."""
    rows = [rows_of_work(runner, work) for work in works]
    hidden = rows[0] if len(rows) == 1 else torch.cat(rows)
    outputs = runner.forward(hidden, [work.step for work in works], span)
    parts = outputs.split([work.step.num_tokens for work in works])
    pairs = list(zip(works, parts, strict=True))
    messages: list[tuple[PeerId, Outgoing]] = sample(runner, [pair for pair in pairs if pair[0].sampler is not None])
    untold = [pair for pair in pairs if pair[0].sampler is None]
    for receiver, same_receiver in groupby(untold, key=lambda pair: pair[0].receiver):
        leaving = [outgoing(work, part) for work, part in same_receiver if not work.is_tail or work.step.num_outputs]
        if leaving:
            steps, tensors = zip(*leaving, strict=True)
            packed = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
            messages.append((receiver, Activations(steps, to_wire(packed))))
    return messages


def rows_of_work(runner: Runner, work: Work) -> torch.Tensor:
    """What goes into the first block: (step.num_tokens, hidden size)."""
    if work.hidden is None:
        return runner.ends.embed(torch.tensor(work.step.ids, device=runner.device))
    return from_wire(work.hidden, dtype=runner.dtype, device=runner.device)


def sample(runner: Runner, pairs: list[tuple[Work, torch.Tensor]]) -> list[tuple[PeerId, Outgoing]]:
    """Choose the next tokens of sessions in token mode: one message per head, and then one per client."""
    choices: dict[PeerId, list[Choice]] = {}
    told: dict[PeerId, list[Choice]] = {}
    asked = [(work, rows[-work.step.num_outputs :]) for work, rows in pairs if work.step.num_outputs]
    for work, _ in pairs:
        assert work.sampler is not None
        work.sampler.take(work.step.start, work.step.ids)
    while asked:
        group: list[tuple[Work, torch.Tensor]] = []
        num_rows = 0
        while asked and (not group or num_rows + len(asked[0][1]) <= MAX_OUTPUTS):
            group.append(asked.pop(0))
            num_rows += len(group[-1][1])
        logits = runner.ends.logits(torch.cat([rows for _, rows in group]))
        likeliest = logits.argmax(dim=-1).tolist()
        first = 0
        for work, rows in group:
            assert work.sampler is not None
            assert work.head is not None
            step, end = work.step, first + len(rows)
            choice = work.sampler.choose(
                logits[first:end],
                start=step.start + step.num_tokens - len(rows),
                drafts=step.ids[len(step.ids) - len(rows) + 1 :],
                likeliest=likeliest[first:end],
            )
            first = end
            choices.setdefault(work.head, []).append(choice)
            told.setdefault(work.receiver, []).append(choice)
    return [(peer, Sampled(tuple(made))) for by_peer in (choices, told) for peer, made in by_peer.items()]


def outgoing(work: Work, rows: torch.Tensor) -> tuple[Step, torch.Tensor]:
    """What of a step's outputs leaves this server: all of them, or from the tail the last ones asked for."""
    step = work.step
    if not work.is_tail or step.num_outputs == step.num_tokens:
        return step, rows
    start = step.start + step.num_tokens - step.num_outputs
    return replace(step, start=start, num_tokens=step.num_outputs), rows[-step.num_outputs :]
