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
from dataclasses import replace

from chainserve.errors import CacheFullError, FrameError, GrammarError, StepError
from chainserve.models.grammars import Matcher
from chainserve.models.sampling import TokenSampler
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
from chainserve.protocol.pages import PAGE_TOKENS
from chainserve.protocol.places import Answer, HeadChain, Places
from chainserve.protocol.sampling import Sampling
from chainserve.types import PeerId, SessionId, Span
from chainserve_server.engine import Engine
from chainserve_server.grammars import Compile, Compiled
from chainserve_server.held_back import HeldBack, HeldBacks
from chainserve_server.kept_pages import CertainPages, num_common
from chainserve_server.steps import Post, ServerSession, Steps
from chainserve_server.token_mode import ExtraSeconds, HeadTokens
from chainserve_server.work import Outgoing

logger = logging.getLogger(__name__)

LEAST_PAGES = 4
"""Fewer pages of a common prefix are not worth waiting for."""
PREFIX_WAIT_S = 5.0
"""So long a session waits, at most, while another one computes the prefix of its prompt."""

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
        self._compile_grammar = compile_grammar
        self._model = model
        self._engine = engine
        self._post = post
        self._vocab_size = vocab_size
        self._extra_s = extra_s
        self._on_change = on_change
        self._on_request = on_request
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
        self._held_back = HeldBacks()
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
            on_kept=self._let_in,
            on_tokens=on_tokens,
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
                self._handle_open(peer, message)
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
        for first in self._held_back.late(now_s - PREFIX_WAIT_S):
            self._let_in(first)
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
        self._held_back.drop(peer)
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
        span = message.hops[0].span
        if self.closed_because:
            refusal = FailureCode.NOT_SERVING, self.closed_because
        elif self.span is None or not self.span.covers(span):
            refusal = FailureCode.NOT_HELD, f"holds blocks {self.span or 'none'}, not {span}"
        else:
            self._answer(self.places.admit(peer, message, now_s=self._clock()))
            return
        self._answer([(peer, Failed(message.session, self._me, *refusal))])

    def _handle_open(
        self, peer: PeerId, message: Open, *, has_waited: bool = False, compiled: Compiled | None = None
    ) -> None:
        hop = message.hops[message.position]
        before = message.hops[message.position - 1].peer if message.position else message.client
        refusal: tuple[FailureCode, str] | None = None
        is_head, is_tail = message.position == 0, message.position == len(message.hops) - 1
        if message.session in self._held_back:
            self._stray(peer, message)
            return
        if message.session in self._open or before != peer or hop.peer != self._me:
            refusal = FailureCode.BAD_MESSAGE, "this session is not for this server, or open already"
        elif (fault := self._fault_of(message)) is not None:
            refusal = FailureCode.BAD_MESSAGE, fault
        elif message.model != self._model:
            refusal = FailureCode.NOT_HELD, f"holds another model ({self._model}, not {message.model})"
        elif self.closed_because:
            refusal = FailureCode.NOT_SERVING, self.closed_because
        elif self.span is None or not self.span.covers(hop.span):
            refusal = FailureCode.NOT_HELD, f"holds blocks {self.span or 'none'}, not {hop.span}"
        else:
            refusal = self._take_place(peer, message) if not has_waited else None
            if refusal is None and not has_waited and (first := self._who_computes(message)) is not None:
                self._held_back.add(HeldBack(peer, message, self._clock(), first))
                return
            if refusal is None and is_tail and message.sampling and message.sampling.grammar is not None:
                if compiled is None and self._compile_grammar is not None:
                    self._held_back.add(HeldBack(peer, message, self._clock()))
                    self._compile_grammar(message.sampling.grammar, lambda made: self._open_with(message, made))
                    return
                refusal = _no_matcher(compiled)
            refusal = refusal or self._reserve(message)
        if refusal:
            self._answer([(peer, Failed(message.session, self._me, *refusal))])
            if is_head and message.session not in self._open:
                self._answer(self.places.end(peer, message.session, now_s=self._clock()))
            return
        session = self._open[message.session] = ServerSession(
            previous=peer,
            next=message.client if is_tail else message.hops[message.position + 1].peer,
            client=message.client,
            span=hop.span,
            is_tail=is_tail,
            is_head=is_head,
            num_lanes=message.num_lanes,
            max_tokens=message.max_tokens,
            active_s=self._clock(),
            num_hops=len(message.hops),
            prefix=message.prefix,
        )
        if message.sampling is not None:
            matcher = compiled if isinstance(compiled, Matcher) else None
            self._begin_token_mode(session, message, message.sampling, matcher)
            num_cached = self._engine.cache.length(message.session, 0)
            message = replace(message, num_cached=num_cached if is_head else min(num_cached, message.num_cached))
        self.counts["opened"] += 1
        self._on_change()
        if is_head:
            self._on_request()
        if is_tail:
            opened = Opened(message.session, message.num_cached)
            self._post(message.client, opened)
            if session.far is not None:
                self._post(session.far, opened)
        else:
            onward = replace(message, position=message.position + 1, ids=())
            self._post(message.hops[onward.position].peer, onward)
        if is_tail or begins_at_once(message):
            self._steps.begin(session, message.num_cached)

    def _open_with(self, message: Open, compiled: Compiled) -> None:
        """Go on with opening a session whose grammar has been compiled, if it is still wanted."""
        if (held := self._held_back.take(message)) is not None:
            self._handle_open(held.peer, message, has_waited=True, compiled=compiled)

    def _begin_token_mode(
        self, session: ServerSession, message: Open, sampling: Sampling, matcher: Matcher | None
    ) -> None:
        """What the ends of a chain need to embed, to sample and to go on."""
        session.pages = CertainPages(message.model, message.prefix)
        if session.is_tail:
            session.sampler = TokenSampler(message.session, sampling, max_tokens=message.max_tokens, matcher=matcher)
            session.far = message.hops[0].peer
        if session.is_head:
            session.num_in = len(message.ids)
            session.tokens = HeadTokens(
                message.session,
                message.ids,
                max_tokens=message.max_tokens,
                max_drafts=sampling.max_drafts,
                drafts_by_client=sampling.drafts_by_client,
                extra_s=self._extra_s,
                clock=self._clock,
            )
            session.far = message.hops[-1].peer
        if session.far == self._me:
            session.far = None

    def _fault_of(self, message: Open) -> str | None:
        """What of token mode is asked for that cannot be; the engine relies on it that nothing is."""
        sampling, ids = message.sampling, message.ids
        if sampling is None:
            return "a prompt without token mode" if message.prefix or ids else None
        if bool(ids) != (message.position == 0):
            return "token mode without a prompt" if not ids else "a prompt that only the head should see"
        if len(ids) > message.max_tokens or max(ids, default=0) >= self._vocab_size:
            room = f"there is room for {message.max_tokens} of a vocabulary of {self._vocab_size}"
            return f"a prompt of {len(ids)} tokens up to {max(ids)}: {room}"
        if message.num_lanes != 1:
            return f"token mode has one lane, not {message.num_lanes}"
        if (token := max((token for token, _ in sampling.logit_bias), default=0)) >= self._vocab_size:
            return f"a bias for token {token} of a vocabulary of {self._vocab_size}"
        if sampling.needs_history and message.prefix:
            return "penalties count every token: none of the prompt can be left out as cached"
        if sampling.grammar is not None and len(message.prefix) * PAGE_TOKENS > sampling.num_prompt_tokens:
            return "the tail has to see every token of an answer in a grammar: none can be left out as cached"
        return None

    def _take_place(self, peer: PeerId, message: Open) -> tuple[FailureCode, str] | None:
        """Take up the session's place if its chain begins here; returns why not."""
        num_tokens = message.num_lanes * message.max_tokens
        if message.position == 0:
            reason = self.places.open(peer, message.session, message.hops, num_tokens, now_s=self._clock())
            if reason is not None:
                return FailureCode.NO_PLACE, reason
        return None

    def _who_computes(self, message: Open) -> SessionId | None:
        """A session of this head that computes the first pages of this prompt now: it pays to wait for them."""
        if message.position or not message.prefix:
            return None
        for session_id, session in self._open.items():
            num_pages = num_common(session.prefix, message.prefix)
            tokens = session.tokens
            if num_pages >= LEAST_PAGES and tokens is not None and tokens.is_computing(num_pages * PAGE_TOKENS):
                return session_id
        return None

    def _let_in(self, first: SessionId) -> None:
        """The pages of this session's prompt are kept, or will never be: those that waited for them open now."""
        for held in self._held_back.take_behind(first):
            self._handle_open(held.peer, held.message, has_waited=True)

    def _reserve(self, message: Open) -> tuple[FailureCode, str] | None:
        """Reserve the session's cache; returns why not."""
        num_lanes, max_tokens = message.num_lanes, message.max_tokens
        span = message.hops[message.position].span
        try:
            self._engine.cache.reserve(
                message.session, span, num_lanes=num_lanes, max_tokens=max_tokens, prefix=message.prefix
            )
        except CacheFullError as error:
            return FailureCode.CACHE_FULL, str(error)
        except StepError as error:
            return FailureCode.BAD_MESSAGE, str(error)
        return None

    def _handle_close(self, peer: PeerId, message: Close) -> None:
        session = self._open.get(message.session)
        if session is None:
            self._held_back.drop(peer, message.session)
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
        self._let_in(session_id)

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


def begins_at_once(message: Open) -> bool:
    """Whether a head may compute before the chain stands: what it sends follows `Open` on every link.

    If it has cached any of the prompt it has to hear what the others have; a tail that prepares a grammar takes no
    steps before that is done.
    """
    return not message.num_cached and message.sampling is not None and message.sampling.grammar is None


def _no_matcher(compiled: Compiled | None) -> tuple[FailureCode, str] | None:
    """Why a session cannot be held to its grammar, if it cannot."""
    match compiled:
        case Matcher():
            return None
        case GrammarError():
            return FailureCode.BAD_GRAMMAR, str(compiled)
        case None:
            return FailureCode.NO_GRAMMARS, "this server follows no grammars"
        case _:
            return FailureCode.NO_GRAMMARS, str(compiled)
