"""A client's search for a place: which heads it asks, what it waits for, what it takes. No I/O, no clock.

Join the fastest free chain (Sun et al. 2026, Alg. 3) without a centre: the fastest chain is asked first. If it is full,
all others are asked at once, and the fastest that has a place is taken as soon as all faster ones have answered. If
none has, the search has left a ticket at each. It keeps a few, where there is the least to wait; the first offer wins,
and the other tickets are withdrawn. As each head serves in order of arrival, this comes close to one queue.

Tickets at all heads would be one queue if messages took no time. But then all heads offer their free places to the same
request, the first in each of their queues, and again to the next one when it has withdrawn: however many chains there
are, a round trip starts about one request.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from chainserve.protocol.messages import Admit, Admitted, Close, Failed, FailureCode, Message, Queued
from chainserve.types import Hop, PeerId, SessionId

MAX_ASKED = 16
"""Chains that one request asks for a place; of more chains a sample."""
MAX_TICKETS = 4
"""Chains that it waits for if none of them has one."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A chain that would do, and the session to open there."""

    session: SessionId
    hops: tuple[Hop, ...]

    @property
    def head(self) -> PeerId:
        return self.hops[0].peer


class _Answer(Enum):
    AWAITED = auto()
    QUEUED = auto()
    OFFERED = auto()


Sending = tuple[PeerId, Message]


class PlaceSearch:
    """One request's search; the methods return what to send."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        *,
        epoch: int,
        num_tokens: int,
        rng: random.Random,
        max_asked: int = MAX_ASKED,
        max_tickets: int = MAX_TICKETS,
    ) -> None:
        """`candidates` come fastest first, as they are predicted for this request."""
        first, others = candidates[:1], list(candidates[1:])
        if len(others) >= max_asked:
            others = [others[index] for index in sorted(rng.sample(range(len(others)), max_asked - 1))]
        self._candidates = {candidate.session: candidate for candidate in [*first, *others]}  # fastest first
        self._epoch = epoch
        self._num_tokens = num_tokens
        self._max_tickets = max_tickets
        self._unasked = list(self._candidates.values())
        self._answers: dict[SessionId, _Answer] = {}  # of those that were asked and did not fail
        self._waits: dict[SessionId, Queued] = {}
        self.failures: dict[SessionId, Failed] = {}
        self.found: Candidate | None = None
        """Where the session may be opened."""
        self.has_begun = False
        """Whether the request had a place before, on a chain that it lost: it does not wait behind others again."""

    @property
    def candidates(self) -> list[Candidate]:
        """Those that are asked, unless a faster one has a place."""
        return list(self._candidates.values())

    @property
    def has_failed(self) -> bool:
        """Whether every head refused that was asked and that the request still waited for."""
        return self.found is None and not self._unasked and not self._answers

    @property
    def position(self) -> int | None:
        """How many wait before this request where the fewest do; None while it waits nowhere."""
        return min((queued.position for queued in self._waits.values()), default=None)

    @property
    def wait_s(self) -> float | None:
        """Seconds that are still to be waited, as heads said when they were asked; None while it waits nowhere."""
        return min((queued.wait_ms / 1000 for queued in self._waits.values()), default=None)

    @property
    def all_full(self) -> bool:
        """Whether every head has been asked and has answered, or is silent, and none has a place."""
        return not self._unasked and set(self._answers.values()) == {_Answer.QUEUED}

    def begin(self) -> list[Sending]:
        """Ask for the fastest chain."""
        return self._ask(1)

    def receive(self, message: Admitted | Queued | Failed) -> list[Sending]:
        """Take an answer."""
        session = message.session
        if session not in self._answers:
            return []  # withdrawn already
        if isinstance(message, Failed):
            self._fail(message)
        elif isinstance(message, Admitted):
            self._waits.pop(session, None)
            self._answers[session] = _Answer.OFFERED
        elif self._answers[session] is not _Answer.OFFERED:  # else it is late
            self._waits[session] = message
            self._answers[session] = _Answer.QUEUED
        return self._decide()

    def lost(self, head: PeerId, reason: str) -> list[Sending]:
        """A head is gone, or could not be reached."""
        over = [candidate for candidate in self._candidates.values() if candidate.head == head]
        for candidate in over:
            if candidate in self._unasked or candidate.session in self._answers:
                self._fail(Failed(candidate.session, head, FailureCode.PEER_LOST, reason))
        return self._decide() if over else []

    def give_up(self) -> list[Sending]:
        """Withdraw all tickets; nothing is found any more."""
        self._unasked = []
        return self._withdraw(list(self._answers))

    def ask_again(self) -> list[Sending]:
        """Some time has passed: ask where the request waits how long it still has to, and look past silent heads."""
        again = [self._asking(self._candidates[session]) for session in self._waits]
        for session, answer in self._answers.items():
            if answer is _Answer.AWAITED:
                self._answers[session] = _Answer.QUEUED
        return again + self._decide()

    def _fail(self, failed: Failed) -> None:
        self._unasked = [candidate for candidate in self._unasked if candidate.session != failed.session]
        self._answers.pop(failed.session, None)
        self._waits.pop(failed.session, None)
        self.failures[failed.session] = failed

    def _decide(self) -> list[Sending]:
        for session in self._candidates:  # fastest first
            answer = self._answers.get(session)
            if answer is _Answer.OFFERED:
                self.found = self._candidates[session]
                self._unasked = []
                others = [other for other in self._answers if other != session]
                del self._answers[session]
                return self._withdraw(others)
            if answer is _Answer.AWAITED:
                return []
        if self._unasked:
            return self._ask(len(self._unasked))
        by_wait = sorted(self._answers, key=self._wait_ms)  # of equals the fastest first
        return self._withdraw(by_wait[self._max_tickets :])

    def _wait_ms(self, session: SessionId) -> float:
        return self._waits[session].wait_ms if session in self._waits else math.inf  # a silent head

    def _ask(self, count: int) -> list[Sending]:
        asked, self._unasked = self._unasked[:count], self._unasked[count:]
        for candidate in asked:
            self._answers[candidate.session] = _Answer.AWAITED
        return [self._asking(candidate) for candidate in asked]

    def _asking(self, candidate: Candidate) -> Sending:
        session, hops = candidate.session, candidate.hops
        return candidate.head, Admit(session, hops, self._epoch, self._num_tokens, self.has_begun)

    def _withdraw(self, sessions: Sequence[SessionId]) -> list[Sending]:
        for session in sessions:
            del self._answers[session]
            self._waits.pop(session, None)
        return [(self._candidates[session].head, Close(session)) for session in sessions]
