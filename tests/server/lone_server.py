"""One server's table of sessions, at the head, in the middle or at the tail of a chain of three, and all it says."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from chainserve.models.cache import KVCache
from chainserve.protocol.messages import (
    Activations,
    Failed,
    FailureCode,
    Message,
    Open,
    Step,
    WireTensor,
)
from chainserve.types import Hop, PeerId, SessionId, Span
from chainserve_server.sessions import Sessions

CLIENT, A, B, C = (PeerId(name) for name in ("client", "A", "B", "C"))
SPANS = {A: Span(0, 2), B: Span(2, 5), C: Span(5, 6)}
HOPS = tuple(Hop(peer, span) for peer, span in SPANS.items())
ID = SessionId(b"0123456789abcdef")
HIDDEN = 4


class Server:
    """`Sessions` with everything around it recorded."""

    def __init__(self, me: PeerId) -> None:
        self.me = me
        self.sent: list[tuple[PeerId, Message]] = []
        self.queued: list[Any] = []
        self.num_changes = self.num_requests = 0
        self.now_s = 1000.0
        self.on_sent: Callable[[], None] = lambda: None
        self.served: list[tuple[int, int]] = []
        self.cache = KVCache(SPANS[me], budget_tokens=100)
        self.engine = SimpleNamespace(cache=self.cache, add=self.queued.append, release=self.cache.release, num_begun=0)
        self.sessions = Sessions(
            me,
            model="m",
            hidden_size=HIDDEN,
            engine=cast(Any, self.engine),
            post=self._post,
            on_change=self._changed,
            on_request=self._asked,
            on_served=lambda num_in, num_out: self.served.append((num_in, num_out)),
            max_step_tokens=8,
            clock=lambda: self.now_s,
        )
        self.sessions.closed_because = None
        self.sessions.span = SPANS[me]

    def _post(self, peer: PeerId, message: Message) -> None:
        self.sent.append((peer, message))
        self.on_sent()

    def _changed(self) -> None:
        self.num_changes += 1

    def _asked(self) -> None:
        self.num_requests += 1

    def take_sent(self) -> list[tuple[PeerId, Message]]:
        sent, self.sent = self.sent, []
        return sent


def opening(me: PeerId, session: SessionId = ID) -> Open:
    position = list(SPANS).index(me)
    return Open(session, model="m", hops=HOPS, position=position, client=CLIENT, num_lanes=2, max_tokens=10)


def before(me: PeerId) -> PeerId:
    return {A: CLIENT, B: A, C: B}[me]


def after(me: PeerId) -> PeerId:
    return {A: B, B: C, C: CLIENT}[me]


def opened(me: PeerId) -> Server:
    server = Server(me)
    server.sessions.handle(before(me), opening(me))
    server.take_sent()
    return server


def activations(
    start: int = 0, num_tokens: int = 3, *, lane: int = 0, hidden: int = HIDDEN, num_outputs: int = 1, sequence: int = 0
) -> Activations:
    data = bytes(4 * hidden * num_tokens)
    step = Step(ID, lane, start, num_tokens, num_outputs, sequence)
    return Activations((step,), WireTensor("float32", (num_tokens, hidden), data))


def failure(server: Server) -> FailureCode:
    """The reason both neighbours were told, after which nothing of the session is left."""
    sent = server.take_sent()
    assert {peer for peer, _ in sent} == {before(server.me), after(server.me)}
    assert len(server.sessions) == 0
    assert server.cache.free_tokens == 100
    [code] = {message.code for _, message in sent if isinstance(message, Failed)}
    return code
