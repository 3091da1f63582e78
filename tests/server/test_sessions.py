"""What each message does to a session, at the head, in the middle and at the tail."""

from dataclasses import replace
from typing import Any, cast

import pytest
from lone_server import (
    CLIENT,
    HIDDEN,
    HOPS,
    ID,
    SPANS,
    A,
    B,
    C,
    Server,
    activations,
    after,
    before,
    failure,
    opened,
    opening,
)

from chainserve.errors import FrameError
from chainserve.protocol.messages import (
    Activations,
    Close,
    Failed,
    FailureCode,
    Message,
    Opened,
    Reorder,
)
from chainserve.types import Hop, PeerId, SessionId, Span
from chainserve_server.work import Work


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
    [activations(hidden=HIDDEN + 1), activations(lane=2), activations(start=8), activations(num_tokens=9)],
    ids=["width", "lane", "beyond what is reserved", "longer than any batch"],
)
@pytest.mark.parametrize("me", [A, B, C])
def test_activations_that_do_not_fit_end_their_session_only(me: PeerId, wrong: Activations) -> None:
    server = opened(me)
    server.sessions.handle(before(me), wrong)
    assert server.queued == []
    assert server.sessions.counts[FailureCode.BAD_MESSAGE] == 1
    assert failure(server) is FailureCode.BAD_MESSAGE


def test_a_step_as_long_as_the_largest_batch_is_taken() -> None:
    server = opened(A)
    server.sessions.handle(CLIENT, activations(num_tokens=8))
    assert [work.step.num_tokens for work in server.queued] == [8]


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


@pytest.mark.parametrize(("me", "receiver"), [(B, C), (C, None)])
def test_a_reordering_is_queued_on_its_way_down_the_chain(me: PeerId, receiver: PeerId | None) -> None:
    server = opened(me)
    server.sessions.handle(before(me), Reorder(ID, (1, 1)))
    assert [(item.message, item.receiver) for item in server.queued] == [(Reorder(ID, (1, 1)), receiver)]
    assert server.sent == []


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
    server.sessions.end(server.sessions.outside(None), FailureCode.NOT_SERVING, "the server left the swarm")
    assert failure(server) is FailureCode.NOT_SERVING


@pytest.mark.parametrize(("span", "holds"), [(Span(2, 4), "2:4"), (None, "none")])
def test_sessions_come_only_over_blocks_that_stay(span: Span | None, holds: str) -> None:
    server = Server(B)
    server.sessions.span = span
    server.sessions.handle(A, opening(B))
    [(_, message)] = server.sent
    assert cast(Failed, message).code is FailureCode.NOT_HELD
    assert cast(Failed, message).detail == f"holds blocks {holds}, not 2:5"
    assert (len(server.sessions), server.cache.reserved) == (0, 0)


def test_a_server_that_takes_no_sessions_says_why_before_it_says_which_blocks_it_has() -> None:
    server = Server(B)
    server.sessions.span, server.sessions.closed_because = None, "moves to other blocks"
    server.sessions.handle(A, opening(B))
    [(_, message)] = server.sent
    assert cast(Failed, message).code is FailureCode.NOT_SERVING
    assert "moves" in cast(Failed, message).detail


def test_sessions_go_on_over_blocks_that_new_ones_may_not_have() -> None:
    server = opened(B)
    server.sessions.span = Span(4, 5)
    server.sessions.handle(A, activations())
    assert [work.span for work in server.queued] == [Span(2, 5)]


def test_sessions_are_outside_of_what_does_not_hold_all_of_their_blocks() -> None:
    server = opened(B)
    assert server.sessions.outside(Span(0, 6)) == server.sessions.outside(Span(2, 5)) == []
    for span in (Span(2, 4), Span(3, 6), Span(5, 6), None):
        assert server.sessions.outside(span) == [ID]
    assert Server(B).sessions.outside(None) == []


def test_only_the_sessions_named_are_ended() -> None:
    other, unknown = SessionId(b"fedcba9876543210"), SessionId(bytes(16))
    server = opened(B)
    server.sessions.handle(A, opening(B, other))
    server.take_sent()
    server.sessions.end([other, unknown], FailureCode.NOT_SERVING, "the server moved to other blocks")
    failed = Failed(other, B, FailureCode.NOT_SERVING, "the server moved to other blocks")
    assert sorted(server.sent) == [(A, failed), (C, failed)]
    assert server.sessions.outside(None) == [ID]
    assert server.cache.reserved == 3 * 20


def test_a_head_counts_requests_and_their_tokens() -> None:
    server = opened(A)
    assert server.num_requests == 1
    for step in (
        activations(0, 3, num_outputs=0),
        activations(0, 3, lane=1, num_outputs=0, sequence=1),
        activations(3, 2, sequence=2),
        activations(3, 2, lane=1, sequence=3),
        activations(5, 1, sequence=4),
        activations(5, 1, lane=1, sequence=5),
        activations(6, 1, sequence=6),
    ):
        server.sessions.handle(CLIENT, step)
    assert server.served == []
    server.sessions.handle(CLIENT, Close(ID))
    assert (server.num_requests, server.served) == (1, [(5, 3)])


def test_what_ended_before_its_first_token_was_a_request_that_was_not_served() -> None:
    server = opened(A)
    server.sessions.handle(CLIENT, activations(num_outputs=0))
    server.sessions.lost(B, "no answer")
    assert (server.num_requests, server.served) == (1, [])


def test_what_broke_off_counts_as_far_as_it_came() -> None:
    server = opened(A)
    server.sessions.handle(CLIENT, activations())
    server.sessions.handle(CLIENT, activations(3, 9, sequence=1))  # too long a step
    assert server.served == [(3, 1)]


def test_what_is_refused_is_no_request() -> None:
    server = Server(A)
    server.sessions.closed_because = "is leaving the swarm"
    server.sessions.handle(CLIENT, opening(A))
    assert (server.num_requests, server.num_changes) == (0, 0)


@pytest.mark.parametrize("me", [B, C])
def test_only_heads_count(me: PeerId) -> None:
    server = opened(me)
    server.sessions.handle(before(me), activations())
    server.sessions.handle(before(me), Close(ID))
    assert (server.num_requests, server.served) == (0, [])


@pytest.mark.parametrize(
    "message", [Close(ID), Failed(ID, CLIENT, FailureCode.INTERNAL, ""), activations(lane=2, sequence=1)]
)
def test_there_is_news_when_a_session_comes_and_when_it_is_over(message: Message) -> None:
    server = opened(A)
    assert server.num_changes == 1
    server.sessions.handle(CLIENT, activations())
    assert server.num_changes == 1
    server.sessions.handle(CLIENT, message)
    assert (server.num_changes, len(server.sessions)) == (2, 0)
    server.sessions.handle(CLIENT, message)
    assert server.num_changes == 2
