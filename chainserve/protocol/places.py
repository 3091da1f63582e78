"""The places on the chains that begin at one head: who holds them, who waits, who is next. No I/O, no clock.

    admit -> waiting -> offered (as soon as there is room) -> taken (opened) -> free again, and offered to the next

Room is counted in tokens of cache. Whoever waits for a chain is served in order of arrival, those first whose answers
had begun elsewhere; an offer that is not taken up within its lease passes on. The methods return what to send to which
client.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto

from chainserve.protocol.messages import Admit, Admitted, Failed, FailureCode, Message, Queued
from chainserve.types import Hop, PeerId, SessionId

Hops = tuple[Hop, ...]
Answer = tuple[PeerId, Message]

SMOOTHING = 0.2
"""Weight of the last session in the mean time that sessions hold their places."""

LOST_S = 1.0
"""So long nobody is admitted to chains over a server that was lost: whoever asks looks elsewhere first."""

LAPSED_S = 60.0
"""So long a session that did not take up its offer is known as refused: its client's `Open` may be under way still."""

NOT_TAKEN = "the place was not taken up in time"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceLimits:
    """How much of the queues there may be."""

    lease_s: float = 5.0  # for an offer to be taken up
    max_waiting: int = 1024  # at this head, for all its chains
    max_waiting_of_client: int = 256  # which may be a gateway for many users
    max_places_of_client: int = 256  # what it asks for beyond that waits, and does not hold up others


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadChain:
    """A chain of the plan as its head sees it."""

    hops: Hops
    capacity_tokens: int
    service_s: float  # predicted, of a mean request
    patience: float = 0.0  # requests that have to wait before one of them takes this chain instead of a faster one
    patience_s: float = 0.0  # after which it takes it in any case


class Stage(Enum):
    """Where a session stands with its place."""

    WAITING = auto()
    OFFERED = auto()
    TAKEN = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """How a chain is used now."""

    hops: Hops
    num_held: int  # places offered or taken
    used_share: float  # of its tokens
    num_waiting: int
    wait_s: float  # of one more request
    held_s: float | None  # for which the last sessions held their places; None: none has ended


@dataclass(slots=True, eq=False)
class _Place:
    session: SessionId
    client: PeerId
    chain: "_Chain"
    num_tokens: int
    asked_s: float
    has_begun: bool = False
    stage: Stage = Stage.WAITING
    since_s: float = 0.0  # offered or taken


@dataclass(slots=True, eq=False)
class _Chain:
    facts: HeadChain
    held_s: float  # for which sessions hold their places
    num_ended: int = 0
    used_tokens: int = 0
    waiting: dict[SessionId, _Place] = field(default_factory=dict)  # in the order of service

    def queue(self, place: _Place) -> None:
        """Let it wait, behind those that arrived before it; those that had begun come first."""
        self.waiting[place.session] = place
        if place.has_begun:
            self.waiting = {each.session: each for each in _in_order(self.waiting.values())}


class Places:
    """All places of one head."""

    def __init__(self, me: PeerId, limits: PlaceLimits | None = None) -> None:
        self._me = me
        self._limits = limits or PlaceLimits()
        self._chains: dict[Hops, _Chain] = {}
        self._places: dict[SessionId, _Place] = {}
        self._num_held: Counter[PeerId] = Counter()  # places offered or taken, by client
        self._num_waiting: Counter[PeerId] = Counter()
        self._lost_until_s: dict[PeerId, float] = {}
        self._lapsed_s: dict[SessionId, float] = {}  # offers that were not taken up, and since when
        self.epoch = 0

    @property
    def num_waiting(self) -> int:
        return self._num_waiting.total()

    @property
    def num_held(self) -> int:
        """Places offered or taken."""
        return self._num_held.total()

    def used_tokens(self, hops: Hops) -> int:
        """Tokens of a chain's places that are offered or taken; 0 for chains that are not in the plan."""
        return self._chains[hops].used_tokens if hops in self._chains else 0

    def uses(self) -> list[Use]:
        """How the chains of the plan are used, in the plan's order."""
        held = Counter(id(place.chain) for place in self._places.values() if place.stage is not Stage.WAITING)
        return [
            Use(
                hops=hops,
                num_held=held[id(chain)],
                used_share=min(1.0, chain.used_tokens / chain.facts.capacity_tokens),
                num_waiting=len(chain.waiting),
                wait_s=_next_wait_s(chain, held[id(chain)]),
                held_s=chain.held_s if chain.num_ended else None,
            )
            for hops, chain in self._chains.items()
        ]

    def follow(self, epoch: int, chains: Iterable[HeadChain], *, now_s: float) -> list[Answer]:
        """Go by the chains of this epoch; chains that stay keep their places and their queue.

        A chain that comes back before the last session on it has ended has so much less room.
        """
        self.epoch = epoch
        before = {place.chain.facts.hops: place.chain for place in self._places.values()} | self._chains
        self._chains = {}
        answers = []
        for facts in chains:
            chain = before.pop(facts.hops, None) or _Chain(facts, held_s=facts.service_s)
            chain.facts = facts
            self._chains[facts.hops] = chain
            for place in [place for place in chain.waiting.values() if place.num_tokens > facts.capacity_tokens]:
                answers.append(self._reject(place, self._me, FailureCode.TOO_LONG, _too_long(place.num_tokens, facts)))
        answers += self._send_away(before.values(), self._me, FailureCode.STALE_PLAN, f"no chain of epoch {epoch}")
        return answers + self._serve(now_s)

    def admit(self, client: PeerId, message: Admit, *, now_s: float) -> list[Answer]:
        """Give a place, or put the session into the queue, or refuse."""

        def refuse(code: FailureCode, detail: str, *, peer: PeerId = self._me) -> list[Answer]:
            return [(client, Failed(message.session, peer, code, detail))]

        if (known := self._places.get(message.session)) is not None:
            if (known.client, known.chain.facts.hops, known.num_tokens) != (client, message.hops, message.num_tokens):
                return refuse(FailureCode.BAD_MESSAGE, "another place is known by this id")
            return [self._answer(known, now_s)]
        if message.session in self._lapsed_s:
            return refuse(FailureCode.NO_PLACE, NOT_TAKEN)
        chain = self._chains.get(message.hops)
        if chain is None:
            return refuse(
                FailureCode.STALE_PLAN, f"no chain of epoch {self.epoch}, asked for as one of {message.epoch}"
            )
        if message.num_tokens > chain.facts.capacity_tokens:
            return refuse(FailureCode.TOO_LONG, _too_long(message.num_tokens, chain.facts))
        if (lost := self._lost_on(chain, now_s)) is not None:
            return refuse(FailureCode.PEER_LOST, "lost a moment ago", peer=lost)
        place = _Place(message.session, client, chain, message.num_tokens, asked_s=now_s, has_begun=message.has_begun)
        self._places[place.session] = place
        chain.queue(place)
        self._num_waiting[client] += 1
        answers = self._serve(now_s)
        if place.stage is Stage.OFFERED:
            return answers
        limits = self._limits
        if self.num_waiting > limits.max_waiting or self._num_waiting[client] > limits.max_waiting_of_client:
            wait_s = self._wait_s(place)
            reason = f"the queue is full, {wait_s:.0f} s would have to be waited"
            return [*answers, self._reject(place, self._me, FailureCode.QUEUE_FULL, reason)]
        return [*answers, self._answer(place, now_s)]

    def open(self, client: PeerId, session: SessionId, hops: Hops, num_tokens: int, *, now_s: float) -> str | None:
        """Take up the place that was offered, or a free one without having asked; returns why not.

        Chains that are not in the plan have no places to take.
        """
        place = self._places.get(session)
        if place is not None:
            if place.client != client or place.chain.facts.hops != hops or num_tokens > place.num_tokens:
                return "the place is not for this session"
            if place.stage is not Stage.OFFERED:
                return f"the place is {place.stage.name.lower()}"
        elif session in self._lapsed_s:  # its client has been told that it is refused, and would never close it
            return NOT_TAKEN
        elif (chain := self._chains.get(hops)) is not None:
            has_room = chain.used_tokens + num_tokens <= chain.facts.capacity_tokens
            if chain.waiting or not has_room or self._num_held[client] >= self._limits.max_places_of_client:
                return "no place is free"
            place = self._places[session] = _Place(session, client, chain, num_tokens, asked_s=now_s)
            self._hold(place)
        else:
            return None
        place.stage, place.since_s = Stage.TAKEN, now_s
        return None

    def end(self, client: PeerId, session: SessionId, *, now_s: float) -> list[Answer]:
        """The session is over, or wants its place no more: it is offered to the next. Others' stay theirs."""
        place = self._places.get(session)
        if place is None or place.client != client:
            return []
        if place.stage is Stage.TAKEN:
            place.chain.held_s += SMOOTHING * (now_s - place.since_s - place.chain.held_s)
            place.chain.num_ended += 1
        self._drop(place)
        return self._serve(now_s)

    def lost(self, peer: PeerId, *, now_s: float) -> list[Answer]:
        """A peer is gone. What it asked for as a client is free, but for sessions, which end by themselves; who waits
        for a chain over it as a server is told."""
        gone = [p for p in self._places.values() if p.client == peer and p.stage is not Stage.TAKEN]
        for place in gone:
            self._drop(place)
        over = [chain for chain in self._chains.values() if any(hop.peer == peer for hop in chain.facts.hops)]
        if over:
            self._lost_until_s[peer] = now_s + LOST_S
        answers = self._send_away(over, peer, FailureCode.PEER_LOST, "lost a moment ago")
        return answers + self._serve(now_s)

    def close(self, reason: str) -> list[Answer]:
        """Send away all who wait or have not taken up what they were offered."""
        pending = [place for place in self._places.values() if place.stage is not Stage.TAKEN]
        return [self._reject(place, self._me, FailureCode.NOT_SERVING, reason) for place in pending]

    def tick(self, now_s: float) -> list[Answer]:
        """Pass on offers whose lease is over, and give chains that are slow to those whose patience is over."""
        late = [
            place
            for place in self._places.values()
            if place.stage is Stage.OFFERED and now_s >= place.since_s + self._limits.lease_s
        ]
        self._lapsed_s = {session: at_s for session, at_s in self._lapsed_s.items() if now_s < at_s + LAPSED_S}
        self._lapsed_s |= {place.session: now_s for place in late}
        answers = [self._reject(place, self._me, FailureCode.NO_PLACE, NOT_TAKEN) for place in late]
        return answers + self._serve(now_s)

    def check(self) -> None:
        """AssertionError unless places add up, and those of chains that are not in the plan are held."""
        for chain in {*self._chains.values(), *(place.chain for place in self._places.values())}:
            own = [place for place in self._places.values() if place.chain is chain]
            used_tokens = sum(place.num_tokens for place in own if place.stage is not Stage.WAITING)
            assert used_tokens == chain.used_tokens, "places do not add up"
            waiting = [place for place in own if place.stage is Stage.WAITING]
            assert _in_order(waiting) == list(chain.waiting.values()), "the queue is not in order"
            assert not waiting or chain is self._chains.get(chain.facts.hops), "waits for a chain that is no more"
        for counts, stages in (self._num_waiting, {Stage.WAITING}), (self._num_held, {Stage.OFFERED, Stage.TAKEN}):
            assert counts == Counter(p.client for p in self._places.values() if p.stage in stages), "clients' counts"

    def _next(self, chain: _Chain, now_s: float) -> _Place | None:
        """Who is to be offered a place now: the first whose client does not hold too many, if there is room for it."""
        for place in chain.waiting.values():
            if self._num_held[place.client] >= self._limits.max_places_of_client:
                continue
            is_patient = len(chain.waiting) < chain.facts.patience and now_s < place.asked_s + chain.facts.patience_s
            has_room = chain.used_tokens + place.num_tokens <= chain.facts.capacity_tokens
            return place if has_room and not is_patient else None
        return None

    def _serve(self, now_s: float) -> list[Answer]:
        """Offer what room there is. Each offer may bring its client to its limit, and so others to their turn."""
        answers = []
        while place := next(filter(None, (self._next(chain, now_s) for chain in self._chains.values())), None):
            self._leave_queue(place)
            self._hold(place)
            place.stage, place.since_s = Stage.OFFERED, now_s
            answers.append(self._answer(place, now_s))
        return answers

    def _hold(self, place: _Place) -> None:
        place.chain.used_tokens += place.num_tokens
        self._num_held[place.client] += 1

    def _drop(self, place: _Place) -> None:
        del self._places[place.session]
        if place.stage is Stage.WAITING:
            self._leave_queue(place)
        else:
            place.chain.used_tokens -= place.num_tokens
            _count_down(self._num_held, place.client)

    def _leave_queue(self, place: _Place) -> None:
        del place.chain.waiting[place.session]
        _count_down(self._num_waiting, place.client)

    def _reject(self, place: _Place, peer: PeerId, code: FailureCode, detail: str) -> Answer:
        self._drop(place)
        return place.client, Failed(place.session, peer, code, detail)

    def _send_away(self, chains: Iterable[_Chain], peer: PeerId, code: FailureCode, detail: str) -> list[Answer]:
        waiting = [place for chain in chains for place in chain.waiting.values()]
        return [self._reject(place, peer, code, detail) for place in waiting]

    def _lost_on(self, chain: _Chain, now_s: float) -> PeerId | None:
        """A server of the chain that was lost a moment ago."""
        return next((hop.peer for hop in chain.facts.hops if self._lost_until_s.get(hop.peer, 0) > now_s), None)

    def _answer(self, place: _Place, now_s: float) -> Answer:
        """How things stand with a place."""
        if place.stage is Stage.WAITING:
            position = list(place.chain.waiting).index(place.session)
            return place.client, Queued(place.session, position, round(self._wait_s(place) * 1000))
        left_s = place.since_s + self._limits.lease_s - now_s if place.stage is Stage.OFFERED else 0.0
        return place.client, Admitted(place.session, max(0, round(left_s * 1000)))

    def _wait_s(self, place: _Place) -> float:
        """Until a place is free for this one, if sessions hold theirs as long as the last ones did."""
        num_tokens = place.num_tokens
        for other in place.chain.waiting.values():
            if other is place:
                break
            num_tokens += other.num_tokens
        return place.chain.held_s * num_tokens / place.chain.facts.capacity_tokens


def _in_order(waiting: Iterable[_Place]) -> list[_Place]:
    """Places in order of arrival in order of service."""
    return sorted(waiting, key=lambda place: not place.has_begun)


def _next_wait_s(chain: _Chain, num_held: int) -> float:
    """What one more request, as large as those that are there on average, would wait; as `_wait_s` counts."""
    waiting_tokens = sum(place.num_tokens for place in chain.waiting.values())
    mean_tokens = (chain.used_tokens + waiting_tokens) / max(1, num_held + len(chain.waiting))
    if not chain.waiting and chain.used_tokens + mean_tokens <= chain.facts.capacity_tokens:
        return 0.0
    return chain.held_s * (waiting_tokens + mean_tokens) / chain.facts.capacity_tokens


def _count_down(counts: Counter[PeerId], client: PeerId) -> None:
    counts[client] -= 1
    if not counts[client]:
        del counts[client]  # of clients that are gone nothing stays


def _too_long(num_tokens: int, facts: HeadChain) -> str:
    return f"{num_tokens} tokens, the chain holds {facts.capacity_tokens}"
