"""Places on the chains that begin here, numbers of steps, and what time brings."""

from dataclasses import replace
from typing import Any, cast

import pytest
from lone_server import CLIENT, HOPS, ID, A, B, C, Server, activations, failure, opened, opening

from chainserve.protocol.messages import (
    Admit,
    Admitted,
    Close,
    Failed,
    FailureCode,
    Leaving,
    Message,
    Reorder,
    Stalled,
)
from chainserve.protocol.places import HeadChain
from chainserve.types import PeerId, SessionId, Span


def planned(server: Server, *, capacity: int = 40) -> None:
    """The chain over all three is in the plan, with its head at A."""
    server.sessions.follow(1, [HeadChain(hops=HOPS, capacity_tokens=capacity, service_s=10.0)])


def asking(session: SessionId = ID, *, num_tokens: int = 20) -> Admit:
    return Admit(session, HOPS, epoch=1, num_tokens=num_tokens)


def other(number: int) -> SessionId:
    return SessionId(number.to_bytes(16, "big"))


def test_a_place_is_asked_for_opened_and_given_back() -> None:
    server = Server(A)
    planned(server)
    server.sessions.handle(CLIENT, asking())
    assert server.take_sent() == [(CLIENT, Admitted(ID, 5000))]
    server.sessions.handle(CLIENT, opening(A))
    assert server.take_sent() == [(B, opening(B))]
    assert server.sessions.places.used_tokens(HOPS) == 20
    server.sessions.handle(CLIENT, Close(ID))
    assert server.sessions.places.used_tokens(HOPS) == 0


def test_a_place_passes_on_when_its_session_ends_and_its_cache_is_free_by_then() -> None:
    server = Server(A)
    planned(server, capacity=20)
    server.sessions.handle(CLIENT, opening(A))  # takes a free place without asking
    server.sessions.handle(CLIENT, asking(other(1)))
    server.take_sent()
    free: list[int] = []
    server.on_sent = lambda: free.append(server.cache.free_tokens)
    server.sessions.handle(B, Failed(ID, C, FailureCode.INTERNAL, "out of memory"))
    assert (CLIENT, Admitted(other(1), 5000)) in server.take_sent()
    assert set(free) == {100}


def test_a_session_without_a_place_is_refused_and_disturbs_nobody() -> None:
    server = Server(A)
    planned(server, capacity=20)
    server.sessions.handle(CLIENT, asking(other(1)))
    server.take_sent()
    server.sessions.handle(CLIENT, opening(A))
    [(peer, message)] = server.take_sent()
    assert (peer, cast(Failed, message).code) == (CLIENT, FailureCode.NO_PLACE)
    server.sessions.handle(PeerId("thief"), replace(opening(A, other(1)), client=PeerId("thief")))
    [(peer, message)] = server.take_sent()
    assert (peer, cast(Failed, message).code) == ("thief", FailureCode.NO_PLACE)
    assert server.sessions.places.used_tokens(HOPS) == 20
    server.sessions.handle(CLIENT, opening(A, other(1)))
    assert server.take_sent() == [(B, opening(B, other(1)))]


def test_a_second_opening_with_other_contents_is_refused_and_the_first_goes_on() -> None:
    server = Server(A)
    planned(server)
    server.sessions.handle(CLIENT, opening(A))
    server.take_sent()
    server.sessions.handle(CLIENT, replace(opening(A), max_tokens=5))
    [(_, message)] = server.take_sent()
    assert cast(Failed, message).code is FailureCode.BAD_MESSAGE
    assert (len(server.sessions), server.sessions.places.used_tokens(HOPS)) == (1, 20)


def test_a_place_is_free_again_if_its_session_cannot_be_opened() -> None:
    server = Server(A)
    planned(server, capacity=200)
    server.sessions.handle(CLIENT, asking(num_tokens=120))
    server.take_sent()
    server.sessions.handle(CLIENT, replace(opening(A), max_tokens=60))
    [(_, message)] = server.take_sent()
    assert cast(Failed, message).code is FailureCode.CACHE_FULL
    assert server.sessions.places.used_tokens(HOPS) == 0


@pytest.mark.parametrize("change", [{"closed_because": "is leaving the swarm"}, {"span": Span(0, 1)}, {"span": None}])
def test_who_cannot_serve_gives_no_places(change: dict[str, Any]) -> None:
    server = Server(A)
    planned(server)
    for name, value in change.items():
        setattr(server.sessions, name, value)
    server.sessions.handle(CLIENT, asking())
    [(_, message)] = server.take_sent()
    assert cast(Failed, message).code in (FailureCode.NOT_SERVING, FailureCode.NOT_HELD)


def test_who_waits_is_sent_away_when_the_server_leaves() -> None:
    server = Server(A)
    planned(server, capacity=20)
    server.sessions.handle(CLIENT, opening(A))
    server.sessions.handle(CLIENT, asking(other(1)))
    server.take_sent()
    server.sessions.closed_because = "is leaving the swarm"
    server.sessions.tick()
    [(_, message)] = server.take_sent()
    assert (message.session, cast(Failed, message).code) == (other(1), FailureCode.NOT_SERVING)  # type: ignore[union-attr]


def test_a_server_that_was_lost_further_down_is_known_to_the_head() -> None:
    server = Server(A)
    planned(server, capacity=20)
    server.sessions.handle(CLIENT, opening(A))
    server.sessions.handle(CLIENT, asking(other(1)))
    server.take_sent()
    server.sessions.handle(B, Failed(ID, C, FailureCode.PEER_LOST, "link lost"))
    failures = [message for _, message in server.take_sent() if isinstance(message, Failed)]
    assert {(message.session, message.peer, message.code) for message in failures} == {
        (ID, C, FailureCode.PEER_LOST),
        (other(1), C, FailureCode.PEER_LOST),
    }


@pytest.mark.parametrize("message", [activations(), Reorder(ID, (0, 1))], ids=["step", "reordering"])
def test_what_comes_twice_changes_nothing_and_a_gap_ends_the_session(message: Message) -> None:
    server = opened(B)
    server.sessions.handle(A, message)
    server.sessions.handle(A, message)
    assert (len(server.queued), server.sessions.counts["repeated"]) == (1, 1)
    if isinstance(message, Reorder):
        server.sessions.handle(A, Reorder(ID, (0, 1), sequence=2))
    else:
        server.sessions.handle(A, activations(3, sequence=2))
    assert failure(server) is FailureCode.BAD_MESSAGE
    assert len(server.queued) == 1


def test_a_session_that_nobody_goes_on_with_ends() -> None:
    server = opened(A)
    server.now_s += 299
    server.sessions.handle(CLIENT, activations())
    server.now_s += 299
    server.sessions.tick()
    assert len(server.sessions) == 1
    server.now_s += 2
    server.sessions.tick()
    assert failure(server) is FailureCode.ABANDONED


def test_who_holds_up_a_step_says_so() -> None:
    middle = opened(B)
    middle.sessions.handle(A, activations())
    middle.sessions.handle(A, Stalled(ID, 0))
    assert failure(middle) is FailureCode.STALLED
    middle = opened(B)
    middle.sessions.handle(A, activations())
    middle.sessions.emit(C, activations())
    middle.take_sent()
    middle.sessions.handle(A, Stalled(ID, 0))
    assert middle.take_sent() == [(C, Stalled(ID, 0))]  # it is done here: whoever is next may have it
    tail = opened(C)
    tail.sessions.handle(B, activations())
    tail.sessions.emit(CLIENT, activations())
    tail.take_sent()
    tail.sessions.handle(B, Stalled(ID, 0))
    assert failure(tail) is FailureCode.STALLED  # done, and lost on the way


def test_a_step_that_waits_for_others_is_not_held_up() -> None:
    middle = opened(B)
    middle.sessions.handle(A, activations())
    middle.engine.num_begun += 1
    middle.sessions.handle(A, Stalled(ID, 0))
    assert middle.take_sent() == [(A, Stalled(ID, 0))]
    middle.sessions.handle(A, Stalled(ID, 0))  # nothing was run since
    assert failure(middle) is FailureCode.STALLED


def test_that_a_step_waits_for_others_travels_up_to_the_client() -> None:
    middle = opened(B)
    middle.sessions.handle(C, Stalled(ID, 0))
    assert middle.take_sent() == [(A, Stalled(ID, 0))]
    tail = opened(C)
    tail.sessions.handle(CLIENT, Stalled(ID, 0))
    assert (tail.take_sent(), len(tail.sessions)) == ([], 1)


def test_that_a_server_leaves_travels_up_to_the_client() -> None:
    tail, middle = opened(C), opened(B)
    tail.sessions.leave(tail.sessions.outside(None))
    [(peer, message)] = tail.take_sent()
    assert (peer, message) == (B, Leaving(ID, C))
    middle.sessions.handle(C, message)
    assert middle.take_sent() == [(A, message)]
    middle.sessions.handle(A, message)  # not from there
    assert middle.take_sent() == []


def test_news_of_the_queue_is_told_at_the_next_tick() -> None:
    server = Server(A)
    planned(server, capacity=20)
    server.sessions.handle(CLIENT, asking())
    server.sessions.tick()
    assert server.num_changes == 0
    server.sessions.handle(CLIENT, asking(other(1)))
    server.sessions.tick()
    assert server.num_changes == 1
