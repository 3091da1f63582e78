"""What an engine has to do, and what of it to do next."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from chainserve.models.sampling import TokenSampler
from chainserve.protocol.messages import Activations, FailureCode, Reorder, Sampled, Step, WireTensor
from chainserve.types import PeerId, SessionId, Span


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
    cut_from: int = 0  # tokens of the prompt that this is the rest of; 0: it is whole

    @property
    def is_decoding(self) -> bool:
        """Whether it goes on with a session's answer, with drafts or without."""
        return self.step.start > 0 and self.step.num_outputs == self.step.num_tokens

    @property
    def is_prompt(self) -> bool:
        """Whether it may be cut into chunks."""
        return self.hidden is None and self.step.num_outputs <= 1 < self.step.num_tokens

    @property
    def prompt_tokens(self) -> int:
        """Of the prompt, before any chunk of it was cut off."""
        return self.cut_from or self.step.num_tokens

    def cut(self, num_tokens: int) -> tuple["Work", "Work"]:
        """The first tokens of a prompt, and the rest."""
        step, end = self.step, self.step.start + num_tokens
        first = replace(step, num_tokens=num_tokens, num_outputs=0, ids=step.ids[:num_tokens])
        rest = replace(step, start=end, num_tokens=step.num_tokens - num_tokens, ids=step.ids[num_tokens:])
        return replace(self, step=first), replace(self, step=rest, cut_from=self.prompt_tokens)


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
Failure = tuple[SessionId, FailureCode, str]
"""A session that cannot go on, and why."""


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
    num_drafts: int = 0  # of `num_prefill_tokens`, those of steps that check drafts, and no prompts


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an iteration gave: messages to pass on, and sessions that cannot go on."""

    messages: list[tuple[PeerId, Outgoing]]
    failures: list[Failure]
    forwards: list[Forward] = field(default_factory=list)


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
