"""What runs in the sessions that are open: steps, reorderings, prompts and the tokens that the tail has chosen.

Each message is checked against its session, and becomes work for the engine; what the engine has done goes on.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from chainserve.models.sampling import TokenSampler
from chainserve.planning.profile import MAX_OUTPUTS
from chainserve.protocol.messages import (
    Activations,
    Choice,
    Drafts,
    FailureCode,
    Message,
    Opened,
    Reorder,
    Sampled,
    Spent,
    Stalled,
    Step,
    WireTensor,
)
from chainserve.protocol.session import rows_of
from chainserve.types import PeerId, SessionId, Span
from chainserve_server.engine import Engine, Fail
from chainserve_server.kept_pages import CertainPages
from chainserve_server.token_mode import KEPT_AFTER, HeadTokens
from chainserve_server.work import Keeping, Outgoing, Reordering, Work

Post = Callable[[PeerId, Message], None]


@dataclass(slots=True, eq=False)
class ServerSession:
    """One session as this server sees it."""

    previous: PeerId  # who sends to us: the client or the server before
    next: PeerId  # whom we send to: the server after, or the client
    client: PeerId
    span: Span
    is_tail: bool
    is_head: bool
    num_lanes: int
    max_tokens: int
    active_s: float  # when its last message came
    next_sequence: int = 0  # of its next step or reordering
    num_done: int = 0  # steps whose outputs have gone on
    num_begun: int = 0  # iterations of the engine when its last step came, or was asked for
    num_in: int = 0  # tokens of the first lane before its first output; counted at the head
    num_out: int = 0
    certain: int | None = None  # the last position of the first lane that is known to stay; None: in the prompt
    num_hops: int = 1
    tokens: HeadTokens | None = None  # at the head, in token mode
    sampler: TokenSampler | None = None  # at the tail, in token mode
    far: PeerId | None = None  # in token mode the head's tail and the tail's head
    prefix: tuple[bytes, ...] = ()  # hashes of the prompt's pages
    pages: CertainPages | None = None  # in token mode: what others may be spared to compute
    before: tuple[Spent, ...] = ()  # in token mode: what it has taken of the servers before this one
    waited_s: float = 0.0
    computed_s: float = 0.0

    @property
    def is_token_mode(self) -> bool:
        return self.pages is not None

    @property
    def spent(self) -> tuple[Spent, ...]:
        """What it has taken of each server up to this one."""
        return *self.before, Spent(int(1e6 * self.waited_s), int(1e6 * self.computed_s))

    @property
    def neighbours(self) -> set[PeerId]:
        """Whose loss ends the session."""
        return {self.previous, self.next} | ({self.far} if self.far else set())


class Steps:
    """Feeds the engine with what comes for the sessions in `table`, and passes on what it has done."""

    def __init__(
        self,
        me: PeerId,
        table: Mapping[SessionId, ServerSession],
        *,
        hidden_size: int,
        vocab_size: int,
        max_step_tokens: int,
        engine: Engine,
        post: Post,
        fail: Fail,
        stray: Callable[[PeerId, Message], None],
        on_kept: Callable[[SessionId], None],
        on_tokens: Callable[[int], None],
        counts: Counter[str],
        clock: Callable[[], float],
    ) -> None:
        self._me = me
        self._open = table
        self._hidden_size = hidden_size
        self._vocab_size = vocab_size
        self._max_step_tokens = max_step_tokens
        self._engine = engine
        self._post = post
        self._fail = fail
        self._stray = stray
        self._on_kept = on_kept
        self._on_tokens = on_tokens
        self._counts = counts
        self._clock = clock

    def handle(self, peer: PeerId, message: Activations | Opened | Reorder | Sampled | Drafts | Stalled) -> None:
        """Take a message from `peer`."""
        match message:
            case Activations():
                self._handle_activations(peer, message)
            case Opened():
                self._handle_opened(peer, message)
            case Reorder():
                self._handle_reorder(peer, message)
            case Sampled():
                self._handle_sampled(peer, message)
            case Drafts():
                self._handle_drafts(peer, message)
            case Stalled():
                self._handle_stalled(peer, message)

    def begin(self, session: ServerSession, num_cached: int) -> None:
        """Start with the prompt if this is the head of a session in token mode: so much of it is cached everywhere."""
        if session.tokens is not None and session.tokens.num_cached is None:
            self._feed(session, session.tokens.first_step(num_cached))

    def spend(self, session_id: SessionId, waited_s: float, computed_s: float) -> None:
        """Note what a session has taken of this server."""
        if session := self._open.get(session_id):
            session.waited_s += waited_s
            session.computed_s += computed_s

    def emit(self, receiver: PeerId, message: Outgoing) -> None:
        """Pass on what the engine has done."""
        match message:
            case Activations():
                message = replace(message, steps=tuple(map(self._done, message.steps)))
            case Sampled():
                for choice in message.choices:
                    if session := self._open.get(choice.session):
                        session.num_done = session.next_sequence
                if receiver == self._me:
                    self._handle_sampled(self._me, message)
                    return
                message = Sampled(tuple(self._with_spent(receiver, choice) for choice in message.choices))
        self._post(receiver, message)

    def _with_spent(self, receiver: PeerId, choice: Choice) -> Choice:
        """What the client is told of its session's times."""
        session = self._open.get(choice.session)
        return choice if session is None or receiver != session.client else replace(choice, spent=session.spent)

    def _done(self, step: Step) -> Step:
        """Take note that a step's outputs go on; in token mode its head numbers it, as that has cut the prompt."""
        session = self._open.get(step.session)
        if session is None:
            return step
        if session.tokens is not None:
            step = session.tokens.number(step)
        session.num_done = step.sequence + 1
        return replace(step, spent=session.spent) if session.is_token_mode else step

    def _handle_opened(self, peer: PeerId, message: Opened) -> None:
        session = self._open.get(message.session)
        if session is None or session.tokens is None or session.far != peer:
            self._stray(peer, message)
        else:
            self.begin(session, message.num_cached)

    def _handle_sampled(self, peer: PeerId, message: Sampled) -> None:
        for choice in message.choices:
            session = self._open.get(choice.session)
            if session is None or session.tokens is None or peer != (session.far or self._me):
                self._stray(peer, message)  # still under way when the session ended
            elif not session.tokens.expects(choice) or max(choice.ids) >= self._vocab_size:
                self._fail(choice.session, FailureCode.BAD_MESSAGE, f"tokens at {choice.start} that were not due")
            else:
                self._go_on(session, session.tokens, choice)

    def _handle_drafts(self, peer: PeerId, message: Drafts) -> None:
        session = self._open.get(message.session)
        if session is None or session.tokens is None or session.previous != peer:
            self._stray(peer, message)  # still under way when the session ended
        elif not session.tokens.takes(message) or max(message.ids, default=0) >= self._vocab_size:
            self._fail(message.session, FailureCode.BAD_MESSAGE, f"drafts at {message.start} that were not due")
        else:
            session.active_s = self._clock()
            self._feed(session, session.tokens.drafted(message))

    def _go_on(self, session: ServerSession, tokens: HeadTokens, choice: Choice) -> None:
        """Feed the chain with what its tail has chosen."""
        session.active_s = self._clock()
        session.num_out += len(choice.ids)
        self._feed(session, tokens.next_step(choice))
        if tokens.num_answers == KEPT_AFTER:
            self._on_kept(choice.session)

    def _feed(self, session: ServerSession, step: Step | None) -> None:
        """Run a step of tokens, if there is one, from the head on."""
        if step is not None:
            self._run(session, step, None)

    def _run(self, session: ServerSession, step: Step, hidden: WireTensor | None) -> None:
        """Queue a step, behind keeping the pages that are certain with it."""
        if step.lane == 0 and step.num_outputs:
            self._count_answer(session, step)
        session.num_begun = self._engine.num_begun
        if session.pages is not None and (pages := session.pages.take(step)):
            self._engine.add(Keeping(step.session, pages))
        work = Work(
            step,
            session.span,
            hidden,
            session.next,
            session.is_tail,
            sampler=session.sampler,
            head=session.far or self._me,
            num_hops=session.num_hops,
        )
        self._engine.add(work)

    def _count_answer(self, session: ServerSession, step: Step) -> None:
        """What of the answer has become certain: each step begins where the last token that is right stands."""
        if session.certain is None:
            session.certain = step.start + step.num_tokens - 1
        elif step.start > session.certain:
            self._on_tokens(step.start - session.certain)
            session.certain = step.start

    def _is_next(self, session: ServerSession, message: Step | Reorder) -> bool:
        """Whether this one is due: what comes twice or late changes nothing, a gap ends the session."""
        if message.sequence == session.next_sequence:
            session.next_sequence += 1
            session.active_s = self._clock()
            return True
        if message.sequence < session.next_sequence:
            self._counts["repeated"] += 1
        else:
            gap = f"step {message.sequence} came where {session.next_sequence} was due"
            self._fail(message.session, FailureCode.BAD_MESSAGE, gap)
        return False

    def _handle_activations(self, peer: PeerId, message: Activations) -> None:
        first = 0
        for step in message.steps:
            hidden = rows_of(message.tensor, first, step.num_tokens)
            first += step.num_tokens
            session = self._open.get(step.session)
            if session is None or session.previous != peer:
                self._stray(peer, message)  # still under way when the session ended
            elif not self._is_next(session, step):
                pass
            elif (fault := self._fault_of(session, step, width=message.tensor.shape[1])) is not None:
                self._fail(step.session, FailureCode.BAD_MESSAGE, fault)
            else:
                session.before = step.spent
                self._count_tokens(session, step)
                self._run(session, step, hidden)

    def _fault_of(self, session: ServerSession, step: Step, *, width: int) -> str | None:
        """What of a step cannot be; the engine relies on it that nothing is."""
        if width != self._hidden_size:
            return f"hidden states of width {width}, this model's have {self._hidden_size}"
        if step.num_tokens > self._max_step_tokens:
            return f"a step of {step.num_tokens} tokens, at most {self._max_step_tokens} are taken at once"
        if step.lane >= session.num_lanes or step.start + step.num_tokens > session.max_tokens:
            return f"nothing is reserved for lane {step.lane} up to token {step.start + step.num_tokens}"
        if session.is_token_mode != bool(step.ids) or session.tokens is not None:
            return "a step of the other mode than the session's"
        if session.is_token_mode and step.num_outputs > MAX_OUTPUTS:
            return f"{step.num_outputs} outputs of one step, at most {MAX_OUTPUTS} are taken"
        if max(step.ids, default=0) >= self._vocab_size:
            return f"token {max(step.ids)} of a vocabulary of {self._vocab_size}"
        return None

    def _count_tokens(self, session: ServerSession, step: Step) -> None:
        """What a session's first lane takes in and gives out, at its head: all before the first output is prompt."""
        if session.is_head and step.lane == 0:
            session.num_in += step.num_tokens if session.num_out == 0 else 0
            session.num_out += step.num_outputs > 0

    def _handle_reorder(self, peer: PeerId, message: Reorder) -> None:
        session = self._open.get(message.session)
        if session is None or session.previous != peer:
            self._stray(peer, message)
            return
        if not self._is_next(session, message):
            return
        if len(message.sources) != session.num_lanes or max(message.sources) >= session.num_lanes:
            lanes = f"reordering {message.sources} of {session.num_lanes} lanes"
            self._fail(message.session, FailureCode.BAD_MESSAGE, lanes)
            return
        self._engine.add(Reordering(message, None if session.is_tail else session.next))

    def _handle_stalled(self, peer: PeerId, message: Stalled) -> None:
        """Answer who asks for a late step, or pass on the question, or the answer of a server behind us."""
        session = self._open.get(message.session)
        if session is not None and session.next == peer and not session.is_tail:
            self._post(session.previous, message)
            return
        if session is None or session.previous != peer:
            self._stray(peer, message)
            return
        if session.tokens is not None:
            message = replace(message, sequence=session.tokens.last_sequence)
        is_done = session.num_done > message.sequence
        if is_done and not session.is_tail:
            self._post(session.next, message)
        elif not is_done and self._engine.num_begun > session.num_begun:
            session.num_begun = self._engine.num_begun
            self._post(session.previous, message)
        else:
            done = "done, but its outputs did not arrive" if is_done else "not done"
            self._fail(message.session, FailureCode.STALLED, f"step {message.sequence} is late and {done}")
