"""Places asked of heads by messages that take time: the live `Places` and `PlaceSearch`, by a virtual clock.

    arrive -> search.begin -> ... -> found -> Open -> at the head: starts -> finishes -> Close -> at the head: free

A request starts when its `Open` reaches the head, and its client closes it when it is done, so that a place stays empty
for three delays between two sessions. Faults come from outside, as values; what they cost is refused, not tried again.
After every event the places of each head are compared with what was said to and by it.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush

from chainserve.planning.dispatch import fastest_first, patience
from chainserve.planning.values import PlannedChain
from chainserve.protocol.messages import Admit, Admitted, Close, Failed, Message, Open, Queued
from chainserve.protocol.places import LOST_S, Answer, HeadChain, PlaceLimits
from chainserve.protocol.search import MAX_ASKED, MAX_TICKETS, Candidate, PlaceSearch, Sending
from chainserve.simulator.engine import Engine, InvariantError, Outcome
from chainserve.simulator.heads import Head, request_of
from chainserve.simulator.times import ServiceTime
from chainserve.simulator.workloads import Requests
from chainserve.types import PeerId, SessionId

Delay = Callable[[PeerId, PeerId], float]
"""Seconds that the next message from one peer to another takes; no message overtakes another between these two."""

PLANNER = PeerId("planner")


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """How places are asked for and given."""

    max_asked: int = MAX_ASKED
    max_tickets: int = MAX_TICKETS
    limits: PlaceLimits = field(default_factory=PlaceLimits)
    arrival_rate: float = math.inf  # slow chains wait for a queue that is long enough at this rate; inf: they do not
    slot_tokens: int | None = None  # a chain holds its capacity times so many; None: each request takes a slot
    ask_again_s: float = math.inf
    tick_s: float = 1.0  # of the heads


@dataclass(frozen=True, slots=True)
class ClientLost:
    """A client dies, with all its requests."""

    client: PeerId


@dataclass(frozen=True, slots=True)
class ServerLost:
    """A server dies, for good."""

    server: PeerId


@dataclass(frozen=True, slots=True)
class PlanChanged:
    """There is a plan in which the chains have these capacities; those of capacity 0 are not in it."""

    capacities: tuple[int, ...]


Fault = ClientLost | ServerLost | PlanChanged


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong."""

    duplicated: float = 0.0  # share of the messages that come once more, late and out of order; `Open` does not
    silent_after: Mapping[int, int] = field(default_factory=dict)  # requests that are left alone after so many answers
    at: Sequence[tuple[float, Fault]] = ()  # seconds, fault


class AdmissionScheduler:
    """Requests look for places by messages; `engine.Scheduler`.

    InvariantError when a chain's places are given twice, a ticket overtakes another, a request is forgotten or, at the
    end, a place is not free again.
    """

    def __init__(
        self,
        chains: Sequence[PlannedChain],
        service_s: ServiceTime,
        *,
        delay_s: Delay,
        rng: random.Random,
        admission: Admission | None = None,
        faults: Faults | None = None,
        clients: Sequence[PeerId] | None = None,  # whose the requests are, in turn; None: each has its own
        is_checked: bool = True,
    ) -> None:
        self._chains = chains
        self._service_s = service_s
        self._delay_s = delay_s
        self._rng = rng
        self._admission = admission or Admission()
        self._faults = faults or Faults()
        self._clients = clients
        self._is_checked = is_checked
        rates, capacities = [chain.rate for chain in chains], [chain.capacity for chain in chains]
        self._order = fastest_first(rates, capacities)
        self._queues = [0.0] * len(chains)
        if self._admission.arrival_rate < math.inf:
            self._queues = patience(rates, capacities, arrival_rate=self._admission.arrival_rate)
        self._hops = [chain.chain.hops for chain in chains]
        self._chain_of = {hops: chain for chain, hops in enumerate(self._hops)}
        self._heads = {hops[0].peer: Head(hops[0].peer, self._admission.limits) for hops in self._hops}
        self._ticking: set[PeerId] = set()  # heads
        self._unchecked: set[PeerId] = set()  # heads that did something
        self._lost: set[PeerId] = set()
        self._capacities = tuple(capacities)
        self._epoch = 0
        self._pending: list[tuple[float, int, Callable[[], None]]] = []
        self._num_events = 0
        self._last_s: dict[tuple[PeerId, PeerId], float] = {}  # when the last message between two arrives
        self._searches: dict[int, PlaceSearch] = {}
        self._opening: dict[int, Candidate] = {}
        self._running: dict[int, Candidate] = {}
        self._num_to_hear = dict(self._faults.silent_after)
        self.num_messages = 0
        """Between clients and heads, so far."""

    def bind(self, engine: Engine) -> None:
        self._engine = engine
        self._num_tokens = (engine.requests.input_tokens + engine.requests.output_tokens).tolist()
        self._follow_at_heads()
        ends_s = [float(engine.requests.arrival_s[-1]), *(at_s for at_s, _ in self._faults.at)]
        longest_s = [
            max(self._service_s(request, chain) for chain in range(len(self._chains)))
            for request in range(len(engine.requests))
        ]
        slack_s = 100 + self._admission.limits.lease_s + LOST_S + max(chain.service_s for chain in self._chains)
        # One after the other, on the slowest chain, with time to spare for each: whoever waits longer is forgotten.
        self._latest_s = max(ends_s) + math.fsum(longest_s) + len(longest_s) * slack_s
        for at_s, fault in self._faults.at:
            self._at(at_s, partial(self._strike, fault))

    def arrive(self, request: int) -> None:
        candidates = [
            Candidate(SessionId(request.to_bytes(8, "big") + chain.to_bytes(8, "big")), self._hops[chain])
            for chain in self._order
            if self._capacities[chain]
        ]
        search = self._searches[request] = PlaceSearch(
            candidates,
            epoch=self._epoch,
            num_tokens=1 if self._admission.slot_tokens is None else self._num_tokens[request],
            rng=self._rng,
            max_asked=self._admission.max_asked,
            max_tickets=self._admission.max_tickets,
        )
        if self._client(request) in self._lost:
            self._end(request)
            return
        self._search_on(request, search.begin())
        self._ask_again_later(request)

    def finish(self, request: int) -> None:
        place = self._running.pop(request)
        self._tell_heads(request, [(place.head, Close(place.session))])

    def wake(self, key: int) -> None:
        at_s, event, action = heappop(self._pending)
        assert event == key
        if at_s > self._latest_s:
            raise InvariantError(next(iter(self._requests()), 0), "or another waits, and nothing happens any more")
        action()
        while self._unchecked:
            if (head := self._heads.get(self._unchecked.pop())) is not None:
                head.check()

    def settle(self) -> None:
        """Play what is still to come after the last request; InvariantError unless all places are free then."""
        while self._pending:
            self._engine.now_s = self._pending[0][0]
            self.wake(self._pending[0][1])
        for name, head in self._heads.items():
            if not head.is_idle:
                raise InvariantError(0, f"or another has left a place or a ticket at {name}")

    def _at(self, at_s: float, action: Callable[[], None]) -> None:
        heappush(self._pending, (at_s, self._num_events, action))
        self._engine.wake_at(self._num_events, at_s)
        self._num_events += 1

    def _send(self, source: PeerId, target: PeerId, action: Callable[[], None], *, may_repeat: bool = False) -> None:
        """Act at `target` as soon as a message from `source` is there."""
        self.num_messages += 1
        at_s = max(self._engine.now_s + self._delay_s(source, target), self._last_s.get((source, target), 0.0))
        self._last_s[source, target] = at_s
        self._at(at_s, action)
        if may_repeat and self._faults.duplicated and self._rng.random() < self._faults.duplicated:
            self._at(at_s + self._delay_s(source, target), action)

    # Clients

    def _client(self, request: int) -> PeerId:
        return self._clients[request % len(self._clients)] if self._clients else PeerId(str(request))

    def _tell_heads(self, request: int, sendings: Sequence[Sending]) -> None:
        client = self._client(request)
        for head, message in sendings:
            action = partial(self._at_head, head, client, message)
            self._send(client, head, action, may_repeat=not isinstance(message, Open))

    def _search_on(self, request: int, sendings: Sequence[Sending]) -> None:
        """Send what the search wants sent, and open if it has found a place."""
        self._tell_heads(request, sendings)
        search = self._searches[request]
        if search.has_failed:
            self._end(request)
        elif (place := search.found) is not None:
            del self._searches[request]
            self._opening[request] = place
            num_tokens = 1 if self._admission.slot_tokens is None else self._num_tokens[request]
            message = Open(place.session, "", place.hops, 0, self._client(request), 1, num_tokens)
            self._tell_heads(request, [(place.head, message)])

    def _ask_again_later(self, request: int) -> None:
        if self._admission.ask_again_s < math.inf and request in self._searches:
            self._at(self._engine.now_s + self._admission.ask_again_s, partial(self._ask_again, request))

    def _ask_again(self, request: int) -> None:
        if request in self._searches:
            self._search_on(request, self._searches[request].ask_again())
            self._ask_again_later(request)

    def _at_client(self, message: Admitted | Queued | Failed) -> None:
        request = request_of(message.session)
        if request in self._searches:
            if request in self._num_to_hear and not self._num_to_hear[request]:
                self._end(request)
                return
            if request in self._num_to_hear:
                self._num_to_hear[request] -= 1
            self._search_on(request, self._searches[request].receive(message))
        elif isinstance(message, Failed):
            place = self._opening.get(request) or self._running.get(request)
            if place is not None and place.session == message.session:
                self._end(request)

    def _hear_of_loss(self, request: int, head: PeerId) -> None:
        """The link of a request's client to this head is gone."""
        if request in self._searches:
            self._search_on(request, self._searches[request].lost(head, "gone"))
        elif request in self._opening and self._opening[request].head == head:
            self._end(request)

    def _end(self, request: int) -> None:
        """The client is gone, or refused, or its session was ended: it does nothing any more."""
        self._searches.pop(request, None)
        self._opening.pop(request, None)
        if self._running.pop(request, None) is not None:
            self._engine.interrupt(request)
        self._engine.refuse(request)

    # Heads

    def _at_head(self, name: PeerId, client: PeerId, message: Message) -> None:
        head = self._heads.get(name)
        if head is None:
            assert isinstance(message, Admit | Open | Close)
            self._send(name, client, partial(self._hear_of_loss, request_of(message.session), name))
            return
        now_s = self._engine.now_s
        match message:
            case Admit():
                self._answer(name, head.admit(client, message, now_s=now_s))
            case Close():
                self._answer(name, head.close(client, message.session, now_s=now_s))
            case Open():
                answers = head.open(client, message, now_s=now_s)
                request = request_of(message.session)
                if not answers and self._lost.isdisjoint(hop.peer for hop in message.hops):
                    self._start(request, self._chain_of[message.hops])
                elif not answers:
                    answers = head.lost_hop(message.session, now_s=now_s)
                self._answer(name, answers)

    def _start(self, request: int, chain: int) -> None:
        if request in self._opening:  # else its client died meanwhile, which the head is yet to hear
            self._running[request] = self._opening.pop(request)
            self._engine.start(request, self._service_s(request, chain), chain=chain)

    def _answer(self, name: PeerId, answers: Sequence[Answer]) -> None:
        if self._is_checked:
            self._unchecked.add(name)
        for client, message in answers:
            assert isinstance(message, Admitted | Queued | Failed)
            self._send(name, client, partial(self._at_client, message), may_repeat=True)
        if name not in self._ticking and self._heads[name].is_pending:
            self._ticking.add(name)
            self._at(self._engine.now_s + self._admission.tick_s, partial(self._tick, name))

    def _tick(self, name: PeerId) -> None:
        self._ticking.discard(name)
        if name in self._heads:
            self._answer(name, self._heads[name].tick(now_s=self._engine.now_s))

    # Faults

    def _strike(self, fault: Fault) -> None:
        match fault:
            case ClientLost(client):
                self._lost.add(client)
                for request in self._requests():
                    if self._client(request) == client:
                        self._end(request)
                for name in self._heads:
                    self._send(client, name, partial(self._lost_at_head, name, client))
            case ServerLost(server):
                self._lost.add(server)
                if self._heads.pop(server, None) is not None:
                    for request in self._requests():
                        if request in self._running and self._running[request].head == server:
                            self._end(request)
                        else:
                            self._send(server, self._client(request), partial(self._hear_of_loss, request, server))
                for name in self._heads:
                    self._send(server, name, partial(self._lost_at_head, name, server))
            case PlanChanged(capacities):
                self._epoch += 1
                self._capacities = capacities
                self._follow_at_heads()

    def _requests(self) -> list[int]:
        """All that have arrived and not ended."""
        return [*self._searches, *self._opening, *self._running]

    def _lost_at_head(self, name: PeerId, peer: PeerId) -> None:
        if (head := self._heads.get(name)) is not None:
            self._answer(name, head.lost(peer, now_s=self._engine.now_s))

    def _follow_at_heads(self) -> None:
        """Send the plan to the heads."""
        slot_tokens = self._admission.slot_tokens or 1
        fastest_s = min(chain.service_s for chain in self._chains)
        for name in self._heads:
            chains = [
                HeadChain(
                    hops=self._hops[chain],
                    capacity_tokens=self._capacities[chain] * slot_tokens,
                    service_s=planned.service_s,
                    patience=self._queues[chain],
                    patience_s=planned.service_s - fastest_s,
                )
                for chain, planned in enumerate(self._chains)
                if self._hops[chain][0].peer == name and self._capacities[chain]
            ]
            follow = partial(self._follow, name, self._epoch, chains)
            if self._epoch == 0:
                follow()
            else:
                self._send(PLANNER, name, follow)

    def _follow(self, name: PeerId, epoch: int, chains: Sequence[HeadChain]) -> None:
        if (head := self._heads.get(name)) is not None:
            self._answer(name, head.follow(epoch, chains, now_s=self._engine.now_s))


def run_admission(requests: Requests, scheduler: AdmissionScheduler) -> Outcome:
    """Run all requests and then all that is still under way: when each asked, started and ended, on which chain."""
    outcome = Engine(requests).run(scheduler)
    scheduler.settle()
    return outcome
