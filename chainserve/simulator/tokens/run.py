"""The loop: messages arrive, iterations end, servers fail and join; the clock is a number.

The life of a session is that of the live system (docs/architecture.md): opened along its chain, prefilled in chunks
that follow each other down the chain, one trip per token, closed. The client embeds, applies the head and samples in no
time, and there is one; what it sends in answer to one message goes out in one message per head.
"""

import math
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any

from chainserve.simulator.engine import InvariantError
from chainserve.simulator.tokens.admission import Admission, MakePolicy, Route, Slots
from chainserve.simulator.tokens.links import LinkOf, Wires
from chainserve.simulator.tokens.membership import Change, Fail, Join, Replan, in_order
from chainserve.simulator.tokens.outcome import TokenOutcome
from chainserve.simulator.tokens.routed import MakeRouting, RoutedAdmission
from chainserve.simulator.tokens.servers import Server, Session, Work, chunks_of
from chainserve.simulator.tokens.values import Mode, Protocol, TokenServer
from chainserve.simulator.workloads import Requests
from chainserve.types import PeerId

CLIENT = PeerId("client")
"""The peer at the other end of every chain, as `link_of` is asked for it."""


def simulate(
    requests: Requests,
    servers: Sequence[TokenServer],
    *,
    link_of: LinkOf,
    replan: Replan,
    make_policy: MakePolicy,
    protocol: Protocol | None = None,
    changes: Sequence[Change] = (),
    slots: Slots | None = None,
    make_routing: MakeRouting | None = None,
) -> TokenOutcome:
    """Play all requests; their sizes play no part, as their tokens are their work.

    With `slots` the places of chains count in tokens. With `make_routing` there are no chains: sessions take routes
    that this rule makes for each, over servers that do not change (`routed`).

    `replan` is called at the start, at every join, and when a failure is noticed: `protocol.detection_s` later, or as
    soon as the server comes back. Sessions on a server that failed are lost then, and replayed: they wait for a chain
    in front of all that came after them, and the client prefills what it knows of them. Requests that no chain could
    hold, and those that still wait when nothing can happen any more, are refused.

    ValueError for two servers of one id, changes that make no sense (a server joins that is there, fails that is not),
    and plans over servers that are not there. InvariantError if a cache is over-committed, a request overtakes another
    of its queue, is lost, or gets more or fewer tokens than it asked for.
    """
    ordered = in_order(changes, peers=[server.peer for server in servers])
    if make_routing is not None and ordered:
        raise ValueError("routes are for servers that do not change")
    swarm = _Swarm(
        requests,
        servers,
        link_of=link_of,
        replan=replan,
        make_policy=make_policy,
        protocol=protocol or Protocol(),
        slots=slots,
        make_routing=make_routing,
    )
    return swarm.run(ordered)


class _Swarm:
    """Everything that is there, and what happens next."""

    def __init__(
        self,
        requests: Requests,
        servers: Sequence[TokenServer],
        *,
        link_of: LinkOf,
        replan: Replan,
        make_policy: MakePolicy,
        protocol: Protocol,
        slots: Slots | None,
        make_routing: MakeRouting | None,
    ) -> None:
        self._requests = requests
        self._sessions = [
            Session(request, num_input=num_input, num_output=num_output)
            for request, (num_input, num_output) in enumerate(
                zip(requests.input_tokens.tolist(), requests.output_tokens.tolist(), strict=True)
            )
        ]
        self._protocol = protocol
        self._in_tokens = protocol.mode is Mode.TOKEN
        self._replan = replan
        self._wires = Wires(link_of)
        self._now_s = 0.0
        self._events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._num_events = 0
        self._num_left = len(requests)
        self._admission: Admission | RoutedAdmission
        if make_routing is None:
            self._admission = Admission(make_policy, start=self._open, refuse=self._refuse, slots=slots)
        else:
            self._admission = RoutedAdmission(
                make_routing, start=self._open, refuse=self._refuse, later=self._later, trip_s=self._trip_s
            )
        self._live: dict[PeerId, Server] = {}  # those not known to have failed
        self._all: list[Server] = []
        for server in servers:
            self._add_server(server)

    def run(self, changes: Sequence[Change]) -> TokenOutcome:
        """Play all events."""
        for change in changes:
            self._at(change.at_s, self._fail if isinstance(change, Fail) else self._join, change)
        self._adopt_plan()
        arrivals = [*self._requests.arrival_s.tolist(), math.inf]
        num_arrived, events = 0, self._events
        while self._num_left:
            next_s = arrivals[num_arrived]
            if events and events[0][0] <= next_s:
                self._now_s, _, handle, subject = heappop(events)
                handle(subject)
            elif num_arrived < len(self._sessions):
                self._now_s = next_s
                self._admission.add(self._sessions[num_arrived])
                num_arrived += 1
            elif self._admission.num_waiting:
                self._admission.refuse_all()
            else:
                lost = next(session for session in self._sessions if not session.is_done)
                raise InvariantError(lost.request, f"and {self._num_left - 1} others never finished")
        self._check_idle()
        return TokenOutcome.of(self._requests, self._sessions, self._all, end_s=self._now_s)

    def _at(self, at_s: float, handle: Callable[[Any], None], subject: object) -> None:
        """Have `handle(subject)` called at `at_s`; of equal times the one asked for first comes first."""
        self._num_events += 1
        heappush(self._events, (at_s, self._num_events, handle, subject))

    def _later(self, delay_s: float, handle: Callable[[float, Any], None], subject: object) -> None:
        """Have `handle(now, subject)` called so much later."""
        self._at(self._now_s + delay_s, lambda subject: handle(self._now_s, subject), subject)

    def _trip_s(self, peers: Sequence[PeerId]) -> float:
        """Of a small message from the client over these peers back to it."""
        return self._wires.trip_s([CLIENT, *peers, CLIENT])

    def _send(
        self, sender: PeerId, receiver: PeerId, *, num_bytes: float, handle: Callable[[Work], None], work: Work
    ) -> None:
        num_bytes += self._protocol.message_bytes
        self._at(self._wires.send(sender, receiver, now_s=self._now_s, num_bytes=num_bytes), handle, work)

    def _open(self, session: Session, route: Route) -> None:
        """Ask every hop, from the head on; the tail answers the client, which sends its prompt then.

        Of tokens the head has the prompt with the first message, and begins at once.
        """
        if not session.num_replays:
            session.start_s = self._now_s
        session.chain = route.index
        session.tail = route.legs[-1]
        session.num_produced = session.num_received
        chunks = list(chunks_of(session, route.head, chunk_tokens=self._protocol.chunk_tokens))
        session.placed_s = begin_s = self._now_s + self._protocol.asks_for_place * self._trip_s(
            [route.head.server.peer]
        )
        if not self._in_tokens:
            begin_s += self._trip_s([leg.server.peer for leg in route.legs])
        self._at(begin_s, self._prefill, Work(route.head.server, chunks=chunks))

    def _prefill(self, prompt: Work) -> None:
        """Send a prompt, or what of it and the answer is known before a replay, in one message per chunk."""
        for chunk in prompt.chunks:
            self._send_from_client(Work(prompt.server, chunks=[chunk]))

    def _send_from_client(self, work: Work) -> None:
        token_bytes = self._protocol.token_bytes if self._in_tokens else self._protocol.hidden_bytes
        num_bytes = work.num_tokens * token_bytes
        self._send(CLIENT, work.server.peer, num_bytes=num_bytes, handle=self._deliver, work=work)

    def _answer(self, outputs: Work) -> None:
        """Take a new token for each session, and send it to the head unless the tail has done so."""
        now_s = self._now_s
        to_heads: dict[Server, Work] = {}
        num_finished = 0
        for leg, sessions in outputs.decodes.items():
            going = []
            for session in sessions:
                if session.tail is not leg:
                    raise InvariantError(session.request, f"gets a token of {leg.server.peer}, which is not its tail")
                session.num_received += 1
                if session.num_received == 1:
                    session.first_token_s = now_s
                if session.num_received < session.num_output:
                    going.append(session)
                else:
                    self._finish(session)
                    num_finished += 1
            if going and not self._in_tokens:
                to_heads.setdefault(leg.head.server, Work(leg.head.server)).decodes[leg.head] = going
        for work in to_heads.values():
            self._send_from_client(work)
        if num_finished:
            self._num_left -= num_finished
            self._admission.dispatch()  # only now: what the others send is on its way before new prompts

    def _finish(self, session: Session) -> None:
        if session.num_produced != session.num_output:
            raise InvariantError(session.request, f"made {session.num_produced} tokens of {session.num_output}")
        session.is_done = True
        session.tail = None
        session.finish_s = self._now_s
        self._admission.end(session)

    def _refuse(self, session: Session) -> None:
        self._num_left -= 1
        session.is_done = True
        session.start_s = session.placed_s = session.first_token_s = math.nan
        session.chain = -1

    def _deliver(self, work: Work) -> None:
        server = work.server
        if server.is_up:
            server.add(work)
            if not server.is_busy:
                self._iterate(server)

    def _iterate(self, server: Server) -> None:
        if begun := server.begin(self._now_s):
            work, done_s = begun
            self._at(done_s, self._end_iteration, work)

    def _end_iteration(self, done: Work) -> None:
        """Pass the outputs on, in one message per receiver, and go on with what has come meanwhile."""
        server = done.server
        if not server.is_up:
            return
        server.end(self._now_s)
        outgoing: dict[Server, Work] = {}
        outputs = Work(server)
        for leg, sessions in done.decodes.items():
            if (onward := leg.next) is None:
                outputs.decodes[leg] = sessions
            else:
                outgoing.setdefault(onward.server, Work(onward.server)).decodes[onward] = sessions
        for chunk in done.chunks:
            if (onward := chunk.leg.next) is not None:
                work = outgoing.setdefault(onward.server, Work(onward.server))
                work.chunks.append(chunk._replace(leg=onward))
            elif chunk.is_last:
                outputs.decodes.setdefault(chunk.leg, []).append(chunk.session)
        hidden_bytes = self._protocol.hidden_bytes
        for receiver, work in outgoing.items():
            num_bytes = work.num_tokens * hidden_bytes
            self._send(server.peer, receiver.peer, num_bytes=num_bytes, handle=self._deliver, work=work)
        if outputs.decodes:
            self._send_outputs(server, outputs)
        self._iterate(server)

    def _send_outputs(self, tail: Server, outputs: Work) -> None:
        """To the client hidden states, or token ids; these to the heads too, for sessions that go on."""
        token_bytes = self._protocol.token_bytes if self._in_tokens else self._protocol.hidden_bytes
        to_heads: dict[Server, Work] = {}
        for leg, sessions in outputs.decodes.items():
            for session in sessions:
                session.num_produced += 1
            if self._in_tokens and (going := [one for one in sessions if one.num_produced < one.num_output]):
                to_heads.setdefault(leg.head.server, Work(leg.head.server)).decodes[leg.head] = going
        num_bytes = outputs.num_tokens * token_bytes
        self._send(tail.peer, CLIENT, num_bytes=num_bytes, handle=self._answer, work=outputs)
        for server, work in to_heads.items():
            if server is tail:
                server.add(work)
            else:
                num_bytes = work.num_tokens * token_bytes
                self._send(tail.peer, server.peer, num_bytes=num_bytes, handle=self._deliver, work=work)

    def _add_server(self, server: TokenServer) -> None:
        self._live[server.peer] = state = Server(
            server,
            now_s=self._now_s,
            applies_head=self._in_tokens,
            cuts_prompts=self._protocol.chunk_tokens is None,
        )
        self._all.append(state)

    def _fail(self, change: Fail) -> None:
        server = self._live[change.peer]
        server.fail(self._now_s)
        self._at(self._now_s + self._protocol.detection_s, self._notice, server)

    def _join(self, change: Join) -> None:
        before = self._live.get(change.server.peer)
        lost = self._lose(before) if before else []
        self._add_server(change.server)
        self._adopt_plan(lost)

    def _notice(self, failed: Server) -> None:
        """End the sessions of a server that failed, unless it has come back and they are ended."""
        if self._live.get(failed.peer) is failed:
            lost = self._lose(failed)
            del self._live[failed.peer]
            self._adopt_plan(lost)

    def _lose(self, failed: Server) -> list[Session]:
        """End the sessions of a server that failed, wherever anything of them is."""
        running = self._admission.running
        lost = [session for session, route in running.items() if any(leg.server is failed for leg in route.legs)]
        gone = set(lost)
        for session in lost:
            self._admission.end(session)
            session.tail = None
            session.num_replays += 1
        for server in self._live.values():
            server.drop(gone)
        for _, _, _, subject in self._events:
            if isinstance(subject, Work):
                subject.drop(gone)
        return lost

    def _adopt_plan(self, lost: Sequence[Session] = ()) -> None:
        chains = self._replan(frozenset(self._live))
        self._admission.adopt(chains, self._live, lost=lost)

    def _check_idle(self) -> None:
        """InvariantError unless all cache is free again."""
        for server in self._live.values():
            if server.num_free != server.cache_tokens:
                held = server.cache_tokens - server.num_free
                raise InvariantError(len(self._sessions) - 1, f"leaves {held} tokens of cache on {server.peer} behind")
