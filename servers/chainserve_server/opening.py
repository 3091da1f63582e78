"""How a session opens here: what it may ask, what it waits for, and what is kept for it.

A client sends `Open` to the head of a chain, and each server passes it on. A head lets a session wait while another
one computes the same prefix, a tail while its grammar is compiled; other messages wait for neither.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

from chainserve.errors import CacheFullError, ChainserveError, GrammarError, StepError
from chainserve.models.cache import KVCache
from chainserve.models.grammars import Matcher
from chainserve.models.sampling import TokenSampler
from chainserve.protocol.messages import Failed, FailureCode, Message, Open, Opened
from chainserve.protocol.pages import PAGE_TOKENS
from chainserve.protocol.places import Answer, Places
from chainserve.protocol.sampling import Sampling
from chainserve.types import PeerId, SessionId, Span
from chainserve_server.grammars import Compile, Compiled
from chainserve_server.held_back import HeldBack, HeldBacks
from chainserve_server.kept_pages import CertainPages, num_common
from chainserve_server.steps import Post, ServerSession, Steps
from chainserve_server.token_mode import ExtraSeconds, HeadTokens

LEAST_PAGES = 4
"""Fewer pages of a common prefix are not worth waiting for."""
PREFIX_WAIT_S = 5.0
"""So long a session waits, at most, while another one computes the prefix of its prompt."""

Refusal = tuple[FailureCode, str]


class Opening:
    """Puts sessions into `table` that may open, and refuses all others."""

    def __init__(
        self,
        me: PeerId,
        table: dict[SessionId, ServerSession],
        *,
        model: str,
        vocab_size: int,
        cache: KVCache,
        places: Places,
        steps: Steps,
        post: Post,
        answer: Callable[[Iterable[Answer]], None],
        stray: Callable[[PeerId, Message], None],
        not_serving: Callable[[Span], Refusal | None],  # why no session may run these blocks now
        on_change: Callable[[], None],
        on_request: Callable[[], None],
        extra_s: ExtraSeconds,
        compile_grammar: Compile | None,
        counts: Counter[str],
        clock: Callable[[], float],
    ) -> None:
        self._me = me
        self._table = table
        self._model = model
        self._vocab_size = vocab_size
        self._cache = cache
        self._places = places
        self._steps = steps
        self._post = post
        self._answer = answer
        self._stray = stray
        self._not_serving = not_serving
        self._on_change = on_change
        self._on_request = on_request
        self._extra_s = extra_s
        self._compile_grammar = compile_grammar
        self._counts = counts
        self._clock = clock
        self._held_back = HeldBacks()

    @property
    def num_held_back(self) -> int:
        """Sessions that wait for pages or for their grammar."""
        return len(self._held_back)

    def handle(self, peer: PeerId, message: Open) -> None:
        """Open a session, refuse it, or let it wait for what another one computes."""
        if message.session in self._held_back:
            self._stray(peer, message)
        elif refusal := self._refusal(peer, message) or self._take_place(peer, message):
            self._refuse(peer, message, refusal)
        elif (first := self._who_computes(message)) is not None:
            self._held_back.add(HeldBack(peer, message, self._clock(), first))
        else:
            self._prepare_grammar(peer, message)

    def let_in(self, first: SessionId) -> None:
        """The pages of this session's prompt are kept, or will never be: those that waited for them go on."""
        for held in self._held_back.take_behind(first):
            if refusal := self._refusal(held.peer, held.message):
                self._refuse(held.peer, held.message, refusal)
            else:
                self._prepare_grammar(held.peer, held.message)

    def tick(self) -> None:
        """Let in who has waited for long enough."""
        for first in self._held_back.late(self._clock() - PREFIX_WAIT_S):
            self.let_in(first)

    def drop(self, peer: PeerId, session: SessionId | None = None) -> None:
        """Forget what of this peer's waits: this session, or all."""
        self._held_back.drop(peer, session)

    def _refuse(self, peer: PeerId, message: Open, refusal: Refusal) -> None:
        self._answer([(peer, Failed(message.session, self._me, *refusal))])
        if message.position == 0 and message.session not in self._table:
            self._answer(self._places.end(peer, message.session, now_s=self._clock()))

    def _refusal(self, peer: PeerId, message: Open) -> Refusal | None:
        """Why the session cannot open, whatever room there is."""
        hop = message.hops[message.position]
        before = message.hops[message.position - 1].peer if message.position else message.client
        if message.session in self._table or before != peer or hop.peer != self._me:
            return FailureCode.BAD_MESSAGE, "this session is not for this server, or open already"
        if (fault := self._fault_of(message)) is not None:
            return FailureCode.BAD_MESSAGE, fault
        if message.model != self._model:
            return FailureCode.NOT_HELD, f"holds another model ({self._model}, not {message.model})"
        return self._not_serving(hop.span)

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

    def _take_place(self, peer: PeerId, message: Open) -> Refusal | None:
        """Take up the session's place if its chain begins here; returns why not."""
        num_tokens = message.num_lanes * message.max_tokens
        if message.position == 0:
            reason = self._places.open(peer, message.session, message.hops, num_tokens, now_s=self._clock())
            if reason is not None:
                return FailureCode.NO_PLACE, reason
        return None

    def _who_computes(self, message: Open) -> SessionId | None:
        """A session of this head that computes the first pages of this prompt now: it pays to wait for them."""
        if message.position or not message.prefix:
            return None
        for session_id, session in self._table.items():
            num_pages = num_common(session.prefix, message.prefix)
            tokens = session.tokens
            if num_pages >= LEAST_PAGES and tokens is not None and tokens.is_computing(num_pages * PAGE_TOKENS):
                return session_id
        return None

    def _prepare_grammar(self, peer: PeerId, message: Open) -> None:
        """Open the session, from the tail once its grammar is there, if it has one."""
        grammar = message.sampling.grammar if message.sampling is not None and _is_tail(message) else None
        if grammar is None:
            self._open(peer, message)
        elif self._compile_grammar is None:
            self._refuse(peer, message, (FailureCode.NO_GRAMMARS, "this server follows no grammars"))
        else:
            self._held_back.add(HeldBack(peer, message, self._clock()))
            self._compile_grammar(grammar, lambda compiled: self._open_with(message, compiled))

    def _open_with(self, message: Open, compiled: Compiled) -> None:
        """Go on with opening a session whose grammar has been compiled, if it is still wanted."""
        if (held := self._held_back.take(message)) is None:
            return
        refusal = self._refusal(held.peer, message)
        if refusal is None and isinstance(compiled, ChainserveError):
            is_bad = isinstance(compiled, GrammarError)
            refusal = FailureCode.BAD_GRAMMAR if is_bad else FailureCode.NO_GRAMMARS, str(compiled)
        if refusal is not None:
            self._refuse(held.peer, message, refusal)
        elif isinstance(compiled, Matcher):
            self._open(held.peer, message, compiled)

    def _open(self, peer: PeerId, message: Open, matcher: Matcher | None = None) -> None:
        """Keep what the session needs, pass `Open` on, or answer from the tail, and begin."""
        if refusal := self._reserve(message):
            self._refuse(peer, message, refusal)
            return
        is_head, is_tail = message.position == 0, _is_tail(message)
        session = self._table[message.session] = ServerSession(
            previous=peer,
            next=message.client if is_tail else message.hops[message.position + 1].peer,
            client=message.client,
            span=message.hops[message.position].span,
            is_tail=is_tail,
            is_head=is_head,
            num_lanes=message.num_lanes,
            max_tokens=message.max_tokens,
            active_s=self._clock(),
            num_hops=len(message.hops),
            prefix=message.prefix,
        )
        if message.sampling is not None:
            self._begin_token_mode(session, message, message.sampling, matcher)
            num_cached = self._cache.length(message.session, 0)
            message = replace(message, num_cached=num_cached if is_head else min(num_cached, message.num_cached))
        self._counts["opened"] += 1
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

    def _reserve(self, message: Open) -> Refusal | None:
        """Reserve the session's cache; returns why not."""
        num_lanes, max_tokens = message.num_lanes, message.max_tokens
        span = message.hops[message.position].span
        try:
            self._cache.reserve(
                message.session, span, num_lanes=num_lanes, max_tokens=max_tokens, prefix=message.prefix
            )
        except CacheFullError as error:
            return FailureCode.CACHE_FULL, str(error)
        except StepError as error:
            return FailureCode.BAD_MESSAGE, str(error)
        return None

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


def begins_at_once(message: Open) -> bool:
    """Whether a head may compute before the chain stands: what it sends follows `Open` on every link.

    If it has cached any of the prompt it has to hear what the others have; a tail that prepares a grammar takes no
    steps before that is done.
    """
    return not message.num_cached and message.sampling is not None and message.sampling.grammar is None


def _is_tail(message: Open) -> bool:
    return message.position == len(message.hops) - 1
