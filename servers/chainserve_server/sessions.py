"""The sessions that run through this server, and the places on the chains that begin here: what each message does.

    client -> head: Admit, Open, Activations, Reorder, Close -> next server -> ... -> tail -> client: Opened, outputs
    in token mode: Open, Drafts -> head -> Open and Activations -> ... -> tail -> client and head: Sampled

A session ends everywhere when it ends anywhere: whoever sees the fault tells both neighbours, and each passes it
on. Nothing here waits: messages are posted, work is queued.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable

from chainserve.errors import FrameError
from chainserve.planning.profile import MAX_BATCH_TOKENS
from chainserve.protocol.messages import (
    Activations,
    Admit,
    Close,
    Drafts,
    Failed,
    FailureCode,
    Leaving,
    Message,
    Open,
    Opened,
    Reorder,
    Sampled,
    Stalled,
)
from chainserve.protocol.places import Answer, HeadChain, Places
from chainserve.types import PeerId, SessionId, Span
from chainserve_server.engine import Engine
from chainserve_server.grammars import Compile
from chainserve_server.opening import Opening, Refusal
from chainserve_server.steps import Post, ServerSession, Steps
from chainserve_server.token_mode import ExtraSeconds
from chainserve_server.work import Outgoing

logger = logging.getLogger(__name__)

IDLE_S = 300.0
"""A session without a step for so long is taken for abandoned."""


class Sessions:
    """The table of sessions, and the rules of what may happen to one."""

    def __init__(
        self,
        me: PeerId,
        *,
        model: str,
        hidden_size: int,
        engine: Engine,
        post: Post,
        on_change: Callable[[], None] = lambda: None,  # there are more or fewer sessions
        on_request: Callable[[], None] = lambda: None,  # one of them has its head here
        on_served: Callable[[int, int], None] = lambda _in, _out: None,  # it gave so many tokens, for so many
        on_tokens: Callable[[int], None] = lambda _num: None,  # so many of an answer have come through here
        max_step_tokens: int = MAX_BATCH_TOKENS,  # the engine runs one step whole, however long: memory for it is kept
        vocab_size: int = 2**24,
        extra_s: ExtraSeconds = lambda _num: 0.0,  # by how many seconds so many drafts make a step longer
        places: Places | None = None,
        idle_s: float = IDLE_S,
        clock: Callable[[], float] = time.monotonic,
        compile_grammar: Compile | None = None,  # None: there are no grammars here
    ) -> None:
        self._me = me
        self._engine = engine
        self._post = post
        self._on_change = on_change
        self._on_served = on_served
        self.span: Span | None = None
        """Blocks that new sessions may run."""
        self.places = places or Places(me)
        self._num_waiting = 0  # as was known at the last tick
        self._idle_s = idle_s
        self._clock = clock
        self._open: dict[SessionId, ServerSession] = {}
        self.closed_because: str | None = "is loading its blocks"  # None: open for sessions
        self.counts: Counter[str] = Counter()
        self._steps = Steps(
            me,
            self._open,
            hidden_size=hidden_size,
            vocab_size=vocab_size,
            max_step_tokens=max_step_tokens,
            engine=engine,
            post=post,
            fail=self.fail,
            stray=self._stray,
            on_kept=lambda session_id: self._opening.let_in(session_id),
            on_tokens=on_tokens,
            counts=self.counts,
            clock=clock,
        )
        self._opening = Opening(
            me,
            self._open,
            model=model,
            vocab_size=vocab_size,
            cache=engine.cache,
            places=self.places,
            steps=self._steps,
            post=post,
            answer=self._answer,
            stray=self._stray,
            not_serving=self._not_serving,
            on_change=on_change,
            on_request=on_request,
            extra_s=extra_s,
            compile_grammar=compile_grammar,
            counts=self.counts,
            clock=clock,
        )

    def __len__(self) -> int:
        return len(self._open)

    def handle(self, peer: PeerId, message: Message) -> None:
        """Take a message from `peer`."""
        match message:
            case Activations() | Opened() | Reorder() | Sampled() | Drafts() | Stalled():
                self._steps.handle(peer, message)
            case Admit():
                self._handle_admit(peer, message)
            case Open():
                self._opening.handle(peer, message)
            case Failed():
                self._handle_failed(peer, message)
            case Close():
                self._handle_close(peer, message)
            case Leaving():
                self._handle_leaving(peer, message)
            case _:
                self._stray(peer, message)

    def emit(self, receiver: PeerId, message: Outgoing) -> None:
        """Pass on what the engine has done."""
        self._steps.emit(receiver, message)

    def spend(self, session_id: SessionId, waited_s: float, computed_s: float) -> None:
        """Note what a session has taken of this server."""
        self._steps.spend(session_id, waited_s, computed_s)

    def fail(self, session_id: SessionId, code: FailureCode, detail: str, *, peer: PeerId | None = None) -> None:
        """End a session and tell both neighbours; `peer` is who is at fault, if not we."""
        session = self._open.get(session_id)
        if session is None:
            return
        logger.warning("session %s ended: %s, %s", session_id.hex()[:8], code, detail)
        self._forget(session_id)
        self.counts[code] += 1
        failed = Failed(session_id, peer or self._me, code, detail)
        for neighbour in {session.previous, session.next} - {peer}:
            self._post(neighbour, failed)

    def follow(self, epoch: int, chains: Iterable[HeadChain]) -> None:
        """Give places on these chains from now on: those of the plan that begin here."""
        self._answer(self.places.follow(epoch, chains, now_s=self._clock()))

    def tick(self) -> None:
        """What time brings: offers that nobody took up pass on, sessions that nobody goes on with end."""
        now_s = self._clock()
        if self.closed_because is not None:
            self._answer(self.places.close(self.closed_because))
        self._answer(self.places.tick(now_s))
        self._opening.tick()
        abandoned = [id_ for id_, session in self._open.items() if now_s - session.active_s > self._idle_s]
        self.end(abandoned, FailureCode.ABANDONED, f"no step for {self._idle_s:.0f} s")
        if self._num_waiting != self.places.num_waiting:
            self._num_waiting = self.places.num_waiting
            self._on_change()

    def leave(self, sessions: Iterable[SessionId]) -> None:
        """Ask the clients of these sessions to go on elsewhere from the next step on."""
        for session_id in sessions:
            self._post(self._open[session_id].previous, Leaving(session_id, self._me))

    def lost(self, peer: PeerId, reason: str) -> None:
        """End every session that ran over the link to `peer`, and free the places that it asked for."""
        self._opening.drop(peer)
        self._answer(self.places.lost(peer, now_s=self._clock()))
        for session_id, session in list(self._open.items()):
            if peer in session.neighbours:
                self.fail(session_id, FailureCode.PEER_LOST, f"link lost: {reason}", peer=peer)

    def refused(self, peer: PeerId, error: FrameError) -> None:
        """A frame of `peer` made no sense: end the sessions it was for, as far as they are the peer's own."""
        for session_id in map(SessionId, error.sessions):
            session = self._open.get(session_id)
            if session is not None and peer in (session.previous, session.next):
                self.fail(session_id, FailureCode.BAD_MESSAGE, str(error))

    def outside(self, span: Span | None) -> list[SessionId]:
        """Sessions that run blocks which are not in `span`."""
        return [id_ for id_, session in self._open.items() if span is None or not span.covers(session.span)]

    def end(self, sessions: Iterable[SessionId], code: FailureCode, detail: str) -> None:
        """End these sessions."""
        for session_id in sessions:
            self.fail(session_id, code, detail)

    def _handle_admit(self, peer: PeerId, message: Admit) -> None:
        if refusal := self._not_serving(message.hops[0].span):
            self._answer([(peer, Failed(message.session, self._me, *refusal))])
        else:
            self._answer(self.places.admit(peer, message, now_s=self._clock()))

    def _not_serving(self, span: Span) -> Refusal | None:
        """Why no session may run these blocks now, if so."""
        if self.closed_because:
            return FailureCode.NOT_SERVING, self.closed_because
        if self.span is None or not self.span.covers(span):
            return FailureCode.NOT_HELD, f"holds blocks {self.span or 'none'}, not {span}"
        return None

    def _handle_close(self, peer: PeerId, message: Close) -> None:
        session = self._open.get(message.session)
        if session is None:
            self._opening.drop(peer, message.session)
            self._answer(self.places.end(peer, message.session, now_s=self._clock()))
        elif session.previous != peer:
            self._stray(peer, message)
        else:
            self._forget(message.session)
            if not session.is_tail:
                self._post(session.next, message)

    def _handle_leaving(self, peer: PeerId, message: Leaving) -> None:
        session = self._open.get(message.session)
        if session is None or session.next != peer or session.is_tail:
            self._stray(peer, message)
        else:
            self._post(session.previous, message)

    def _handle_failed(self, peer: PeerId, message: Failed) -> None:
        session = self._open.get(message.session)
        if session is None or peer not in (session.previous, session.next):
            self._stray(peer, message)
            return
        if peer == session.next and not session.is_tail and message.code is FailureCode.PEER_LOST:
            self._answer(self.places.lost(message.peer, now_s=self._clock()))  # before places over it are free
        self._forget(message.session)
        self._post(session.next if peer == session.previous else session.previous, message)

    def _forget(self, session_id: SessionId) -> None:
        session = self._open.pop(session_id)
        self._engine.release(session_id)
        if session.is_head:
            self._answer(self.places.end(session.client, session_id, now_s=self._clock()))
        if session.num_out:
            self._on_served(session.num_in, session.num_out)
        self._on_change()
        self._opening.let_in(session_id)

    def _answer(self, answers: Iterable[Answer]) -> None:
        for client, message in answers:
            if isinstance(message, Failed):
                logger.info("refused session %s of %s: %s", message.session.hex()[:8], client, message.detail)
                self.counts[message.code] += 1
            self._post(client, message)

    def _stray(self, peer: PeerId, message: Message) -> None:
        """A message for no session of this peer: late, or not its business. Nothing is disturbed."""
        logger.debug("stray %s from %s", type(message).__name__, peer)
        self.counts["stray"] += 1
