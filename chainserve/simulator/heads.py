"""A head as clients meet it: its `Places`, the sessions open there, and an audit of all that it says."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from chainserve.protocol.messages import Admit, Admitted, Failed, FailureCode, Open, Queued
from chainserve.protocol.places import Answer, HeadChain, Hops, PlaceLimits, Places
from chainserve.simulator.engine import InvariantError
from chainserve.types import PeerId, SessionId


def request_of(session: SessionId) -> int:
    """Sessions of simulated requests begin with the request's number."""
    return int.from_bytes(session[:8], "big")


class Head:
    """One head; the methods return what it answers. InvariantError if it gives what it has not, or out of turn."""

    def __init__(self, name: PeerId, limits: PlaceLimits) -> None:
        self._name = name
        self._places = Places(name, limits)
        self._audit = Audit(limits)
        self._open: dict[SessionId, tuple[PeerId, Hops]] = {}

    @property
    def is_pending(self) -> bool:
        """Whether anybody waits, or has not taken up what was offered: time matters."""
        return self._places.num_waiting > 0 or self._places.num_held > len(self._open)

    @property
    def is_idle(self) -> bool:
        return not (self._places.num_waiting or self._places.num_held or self._open)

    def check(self) -> None:
        """InvariantError if its books are not what was said; AssertionError if they contradict themselves."""
        self._audit.compare(self._places)

    def follow(self, epoch: int, chains: Sequence[HeadChain], *, now_s: float) -> list[Answer]:
        self._audit.chains = {chain.hops: chain for chain in chains}
        return self._seen(self._places.follow(epoch, chains, now_s=now_s))

    def admit(self, client: PeerId, message: Admit, *, now_s: float) -> list[Answer]:
        self._audit.asked(client, message)
        return self._seen(self._places.admit(client, message, now_s=now_s))

    def open(self, client: PeerId, message: Open, *, now_s: float) -> list[Answer]:
        """Nothing is answered if the session is open now."""
        session = message.session
        reason = self._places.open(client, session, message.hops, message.max_tokens, now_s=now_s)
        if reason is None:
            self._audit.opened(client, message)
            self._open[session] = client, message.hops
            return []
        refusal = self._seen([(client, Failed(session, self._name, FailureCode.NO_PLACE, reason))])
        return refusal + self.close(client, session, now_s=now_s)

    def close(self, client: PeerId, session: SessionId, *, now_s: float) -> list[Answer]:
        """A session is over, or withdrawn."""
        if session in self._open and self._open[session][0] == client:
            del self._open[session]
        self._audit.ended(client, session)
        return self._seen(self._places.end(client, session, now_s=now_s))

    def lost(self, peer: PeerId, *, now_s: float) -> list[Answer]:
        """A client or server is gone, and the sessions with it."""
        self._audit.lost(peer)
        answers = self._seen(self._places.lost(peer, now_s=now_s))
        for session, (client, hops) in list(self._open.items()):
            if client == peer:
                answers += self.close(client, session, now_s=now_s)
            elif any(hop.peer == peer for hop in hops):
                answers += self.lost_hop(session, now_s=now_s)
        return answers

    def lost_hop(self, session: SessionId, *, now_s: float) -> list[Answer]:
        """A server of this session is gone."""
        client, _ = self._open[session]
        answers = self.close(client, session, now_s=now_s)
        return [(client, Failed(session, self._name, FailureCode.PEER_LOST, "a hop is lost")), *answers]

    def tick(self, *, now_s: float) -> list[Answer]:
        return self._seen(self._places.tick(now_s))

    def _seen(self, answers: Iterable[Answer]) -> list[Answer]:
        answers = list(answers)
        for _, message in answers:
            assert isinstance(message, Admitted | Queued | Failed)
            self._audit.answered(message)
        return answers


@dataclass(slots=True, eq=False)
class _Ticket:
    client: PeerId
    hops: Hops
    num_tokens: int
    is_open: bool = False


class Audit:
    """A head's tickets and places by what was said to it and by it: its books, kept once more apart from `Places`."""

    def __init__(self, limits: PlaceLimits) -> None:
        self._limits = limits
        self.chains: Mapping[Hops, HeadChain] = {}
        self._waiting: dict[SessionId, _Ticket] = {}  # in order of arrival
        self._held: dict[SessionId, _Ticket] = {}

    def asked(self, client: PeerId, message: Admit) -> None:
        if message.session not in self._held:
            self._waiting.setdefault(message.session, _Ticket(client, message.hops, message.num_tokens))

    def answered(self, message: Admitted | Queued | Failed) -> None:
        """InvariantError if more is given than there is, or out of turn."""
        session = message.session
        if isinstance(message, Failed):
            self._waiting.pop(session, None)
            self._held.pop(session, None)
        elif isinstance(message, Admitted) and session not in self._held:
            given = self._waiting[session]
            for ticket in self._waiting.values():
                if ticket is given:
                    break
                if ticket.hops == given.hops and self._is_below_limit(ticket.client):
                    raise InvariantError(request_of(session), "overtakes another's ticket")
            self._hold(session, self._waiting.pop(session))
        elif isinstance(message, Queued) and session not in self._waiting:
            raise InvariantError(request_of(session), "is queued, though it never asked or has a place")

    def opened(self, client: PeerId, message: Open) -> None:
        session = message.session
        if session not in self._held:  # without having asked
            self._hold(session, _Ticket(client, message.hops, message.max_tokens))
        self._held[session].is_open = True

    def ended(self, client: PeerId, session: SessionId) -> None:
        for tickets in (self._waiting, self._held):
            if session in tickets and tickets[session].client == client:
                del tickets[session]

    def lost(self, client: PeerId) -> None:
        self._waiting = {session: ticket for session, ticket in self._waiting.items() if ticket.client != client}
        self._held = {s: ticket for s, ticket in self._held.items() if ticket.client != client or ticket.is_open}

    def compare(self, places: Places) -> None:
        """InvariantError if the head's own books say anything else, or somebody waits though it is his turn."""
        places.check()
        if (places.num_held, places.num_waiting) != (len(self._held), len(self._waiting)):
            raise InvariantError(0, f"or another: {places.num_held} are held, not {len(self._held)}, or as to waiting")
        for hops, chain in self.chains.items():
            used_tokens = self._used_tokens(hops)
            if places.used_tokens(hops) != used_tokens:
                raise InvariantError(0, f"or another: {places.used_tokens(hops)} tokens are used, not {used_tokens}")
            for session, ticket in self._waiting.items():
                if ticket.hops == hops and self._is_below_limit(ticket.client):
                    if used_tokens + ticket.num_tokens <= chain.capacity_tokens and chain.patience <= 0:
                        raise InvariantError(request_of(session), "waits, though there is room for it")
                    break

    def _hold(self, session: SessionId, ticket: _Ticket) -> None:
        capacity_tokens = self.chains[ticket.hops].capacity_tokens if ticket.hops in self.chains else 0
        if self._used_tokens(ticket.hops) + ticket.num_tokens > capacity_tokens:
            raise InvariantError(request_of(session), "is given a place that there is not")
        if not self._is_below_limit(ticket.client):
            raise InvariantError(request_of(session), "is given a place, though its client has too many")
        self._held[session] = ticket

    def _is_below_limit(self, client: PeerId) -> bool:
        return sum(held.client == client for held in self._held.values()) < self._limits.max_places_of_client

    def _used_tokens(self, hops: Hops) -> int:
        return sum(ticket.num_tokens for ticket in self._held.values() if ticket.hops == hops)
