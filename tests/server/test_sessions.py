"""What each message does to a session, at the head, in the middle and at the tail."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chainserve.errors import FrameError
from chainserve.models.cache import KVCache
from chainserve.protocol.messages import (
    Activations,
    Close,
    Failed,
    FailureCode,
    Message,
    Open,
    Opened,
    Reorder,
    Step,
    WireTensor,
)
from chainserve.types import Hop, PeerId, SessionId, Span
from chainserve_server.engine import Work
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
        self.cache = KVCache(SPANS[me], budget_tokens=100)
        engine = SimpleNamespace(
            runner=SimpleNamespace(cache=self.cache), add=self.queued.append, release=self.cache.release
        )
        self.sessions = Sessions(
            me,
            model="m",
            span=SPANS[me],
            hidden_size=HIDDEN,
            engine=cast(Any, engine),
            post=lambda peer, message: self.sent.append((peer, message)),
        )
        self.sessions.closed_because = None

    def take_sent(self) -> list[tuple[PeerId, Message]]:
        sent, self.sent = self.sent, []
        return sent


def opening(me: PeerId) -> Open:
    position = list(SPANS).index(me)
    return Open(ID, model="m", hops=HOPS, position=position, client=CLIENT, num_lanes=2, max_tokens=10)


def before(me: PeerId) -> PeerId:
    return {A: CLIENT, B: A, C: B}[me]


def after(me: PeerId) -> PeerId:
    return {A: B, B: C, C: CLIENT}[me]


def opened(me: PeerId) -> Server:
    server = Server(me)
    server.sessions.handle(before(me), opening(me))
    server.take_sent()
    return server


def activations(start: int = 0, num_tokens: int = 3, *, lane: int = 0, hidden: int = HIDDEN) -> Activations:
    data = bytes(4 * hidden * num_tokens)
    return Activations((Step(ID, lane, start, num_tokens, 1),), WireTensor("float32", (num_tokens, hidden), data))


def failure(server: Server) -> FailureCode:
    """The reason both neighbours were told, after which nothing of the session is left."""
    sent = server.take_sent()
    assert {peer for peer, _ in sent} == {before(server.me), after(server.me)}
    assert len(server.sessions) == 0
    assert server.cache.free_tokens == 100
    [code] = {message.code for _, message in sent if isinstance(message, Failed)}
    return code


@pytest.mark.parametrize("me", [A, B])
def test_an_opening_is_passed_on_to_the_next_hop(me: PeerId) -> None:
    server = Server(me)
    server.sessions.handle(before(me), opening(me))
    assert server.sent == [(after(me), opening(after(me)))]
    assert server.cache.free_tokens == 80


def test_the_tail_tells_the_client_that_all_is_open() -> None:
    server = Server(C)
    server.sessions.handle(B, opening(C))
    assert server.sent == [(CLIENT, Opened(ID))]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"model": "other"}, FailureCode.NOT_HELD),
        ({"hops": (Hop(A, Span(0, 1)), Hop(B, Span(1, 5)), HOPS[2])}, FailureCode.NOT_HELD),
        ({"max_tokens": 51}, FailureCode.CACHE_FULL),
        ({"hops": (HOPS[0], Hop(C, Span(2, 5)), HOPS[2])}, FailureCode.BAD_MESSAGE),
    ],
)
def test_a_session_that_does_not_fit_is_refused_and_nothing_is_kept(change: dict[str, Any], code: FailureCode) -> None:
    server = Server(B)
    server.sessions.handle(A, replace(opening(B), **change))
    [(peer, message)] = server.sent
    assert (peer, cast(Failed, message).code, cast(Failed, message).peer) == (A, code, B)
    assert (len(server.sessions), server.cache.free_tokens) == (0, 100)


def test_an_opening_from_anyone_but_the_hop_before_is_refused() -> None:
    server = Server(B)
    server.sessions.handle(C, opening(B))
    assert [cast(Failed, message).code for _, message in server.sent] == [FailureCode.BAD_MESSAGE]


def test_a_second_opening_of_a_session_leaves_the_first_alone() -> None:
    server = opened(B)
    server.sessions.handle(A, opening(B))
    assert [cast(Failed, message).code for _, message in server.sent] == [FailureCode.BAD_MESSAGE]
    assert len(server.sessions) == 1


def test_a_server_that_is_not_serving_says_why() -> None:
    server = Server(A)
    server.sessions.closed_because = "is leaving the swarm"
    server.sessions.handle(CLIENT, opening(A))
    [(_, message)] = server.sent
    assert cast(Failed, message).code is FailureCode.NOT_SERVING
    assert "leaving" in cast(Failed, message).detail


@pytest.mark.parametrize("me", [A, B, C])
def test_activations_become_work_for_the_next_hop(me: PeerId) -> None:
    server = opened(me)
    server.sessions.handle(before(me), activations())
    [work] = server.queued
    assert isinstance(work, Work)
    assert (work.receiver, work.is_tail, work.span) == (after(me), me == C, SPANS[me])
    assert work.hidden.shape == (3, HIDDEN)


@pytest.mark.parametrize(
    "wrong",
    [activations(hidden=HIDDEN + 1), activations(lane=2), activations(start=8)],
    ids=["width", "lane", "beyond what is reserved"],
)
@pytest.mark.parametrize("me", [A, B, C])
def test_activations_that_do_not_fit_end_their_session_only(me: PeerId, wrong: Activations) -> None:
    server = opened(me)
    server.sessions.handle(before(me), wrong)
    assert server.queued == []
    assert failure(server) is FailureCode.BAD_MESSAGE


@pytest.mark.parametrize(
    "message", [activations(), Close(ID), Reorder(ID, (0, 0)), Failed(ID, A, FailureCode.INTERNAL, "")]
)
def test_a_stranger_to_the_session_changes_nothing(message: Message) -> None:
    server = opened(B)
    server.sessions.handle(PeerId("stranger"), message)
    assert (server.queued, server.sent, len(server.sessions)) == ([], [], 1)
    assert server.sessions.counts["stray"] == 1


def test_closing_frees_the_cache_and_goes_down_the_chain() -> None:
    server = opened(B)
    server.sessions.handle(A, Close(ID))
    assert server.sent == [(C, Close(ID))]
    assert server.cache.free_tokens == 100
    tail = opened(C)
    tail.sessions.handle(B, Close(ID))
    assert tail.sent == []


def test_a_reordering_is_queued_and_goes_down_the_chain() -> None:
    server = opened(B)
    server.sessions.handle(A, Reorder(ID, (1, 1)))
    assert server.queued == [Reorder(ID, (1, 1))]
    assert server.sent == [(C, Reorder(ID, (1, 1)))]


@pytest.mark.parametrize("sources", [(0,), (0, 1, 1), (0, 2)])
def test_a_reordering_of_lanes_that_are_not_there_ends_the_session(sources: tuple[int, ...]) -> None:
    server = opened(B)
    server.sessions.handle(A, Reorder(ID, sources))
    assert failure(server) is FailureCode.BAD_MESSAGE


@pytest.mark.parametrize("me", [A, B, C])
def test_a_failure_is_passed_on_the_other_way(me: PeerId) -> None:
    for sender, receiver in ((before(me), after(me)), (after(me), before(me))):
        server = opened(me)
        failed = Failed(ID, PeerId("elsewhere"), FailureCode.PEER_LOST, "gone")
        server.sessions.handle(sender, failed)
        assert server.sent == [(receiver, failed)]
        assert server.cache.free_tokens == 100


@pytest.mark.parametrize("me", [A, B, C])
def test_a_lost_link_ends_the_session_and_names_the_lost_peer(me: PeerId) -> None:
    for lost, told in ((before(me), after(me)), (after(me), before(me))):
        server = opened(me)
        server.sessions.lost(lost, "no answer")
        [(peer, message)] = server.sent
        assert peer == told
        assert (cast(Failed, message).peer, cast(Failed, message).code) == (lost, FailureCode.PEER_LOST)
        assert server.cache.free_tokens == 100


def test_links_that_a_session_does_not_use_may_be_lost() -> None:
    server = opened(A)
    server.sessions.lost(C, "no answer")
    assert (server.sent, len(server.sessions)) == ([], 1)


def test_a_frame_that_makes_no_sense_ends_the_session_it_was_for() -> None:
    server = opened(B)
    server.sessions.refused(A, FrameError("nonsense"))
    server.sessions.refused(PeerId("stranger"), FrameError("nonsense", sessions=(ID,)))
    assert len(server.sessions) == 1
    server.sessions.refused(A, FrameError("nonsense", sessions=(ID,)))
    assert failure(server) is FailureCode.BAD_MESSAGE


def test_leaving_ends_what_still_runs() -> None:
    server = opened(B)
    server.sessions.end_all(FailureCode.NOT_SERVING, "the server left the swarm")
    assert failure(server) is FailureCode.NOT_SERVING
