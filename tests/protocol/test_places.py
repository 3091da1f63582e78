"""The places of one head: who is given one, who waits, who is refused."""

from collections.abc import Iterable, Sequence

import pytest

from chainserve.protocol.messages import Admit, Admitted, Failed, FailureCode, Message, Queued
from chainserve.protocol.places import LAPSED_S, LOST_S, HeadChain, PlaceLimits, Places
from chainserve.types import Hop, PeerId, SessionId, Span

ME, TAIL, OTHER_TAIL = PeerId("me"), PeerId("tail"), PeerId("other tail")
ANN, BOB, CEM = PeerId("ann"), PeerId("bob"), PeerId("cem")
ALONE = (Hop(ME, Span(0, 4)),)
PAIR = (Hop(ME, Span(0, 2)), Hop(TAIL, Span(2, 4)))
OTHER_PAIR = (Hop(ME, Span(0, 2)), Hop(OTHER_TAIL, Span(2, 4)))
Hops = tuple[Hop, ...]


def id_of(name: str) -> SessionId:
    return SessionId(name.encode().ljust(16))


def chain(
    hops: Hops = PAIR, *, tokens: int = 20, service_s: float = 10.0, patience: float = 0.0, patience_s: float = 0.0
) -> HeadChain:
    return HeadChain(hops=hops, capacity_tokens=tokens, service_s=service_s, patience=patience, patience_s=patience_s)


def places_on(*chains: HeadChain, limits: PlaceLimits | None = None) -> Places:
    places = Places(ME, limits)
    assert places.follow(1, chains, now_s=0.0) == []
    return places


def said(answers: Iterable[tuple[PeerId, Message]]) -> list[tuple[str, str, str]]:
    """Client, session and what it is told: in short."""
    short = []
    for client, message in answers:
        assert isinstance(message, Admitted | Queued | Failed)
        match message:
            case Admitted():
                what = "admitted"
            case Queued():
                what = f"queued {message.position}"
            case Failed():
                what = str(message.code)
        short.append((str(client), message.session.decode().strip(), what))
    return short


def ask(
    places: Places, client: PeerId, name: str, *, hops: Hops = PAIR, tokens: int = 10, now_s: float = 0.0
) -> list[tuple[str, str, str]]:
    answers = said(places.admit(client, Admit(id_of(name), hops, 1, tokens), now_s=now_s))
    places.check()
    return answers


def take(
    places: Places, client: PeerId, name: str, *, hops: Hops = PAIR, tokens: int = 10, now_s: float = 0.0
) -> str | None:
    reason = places.open(client, id_of(name), hops, tokens, now_s=now_s)
    places.check()
    return reason


def end(places: Places, client: PeerId, name: str, *, now_s: float = 0.0) -> list[tuple[str, str, str]]:
    answers = said(places.end(client, id_of(name), now_s=now_s))
    places.check()
    return answers


def full(*, limits: PlaceLimits | None = None, waiting: Sequence[str] = ()) -> Places:
    """A chain with two places, both taken by Ann; Bob waits with these sessions."""
    places = places_on(chain(), limits=limits)
    for name in ("a1", "a2"):
        assert ask(places, ANN, name) == [("ann", name, "admitted")]
        assert take(places, ANN, name) is None
    for position, name in enumerate(waiting):
        assert ask(places, BOB, name) == [("bob", name, f"queued {position}")]
    return places


def test_a_free_place_is_given_at_once_with_a_lease() -> None:
    places = places_on(chain(), limits=PlaceLimits(lease_s=3.0))
    assert places.admit(ANN, Admit(id_of("a"), PAIR, 1, 15), now_s=7.0) == [(ANN, Admitted(id_of("a"), 3000))]
    assert (places.num_held, places.num_waiting, places.used_tokens(PAIR), places.used_tokens(ALONE)) == (1, 0, 15, 0)


def test_what_one_more_request_would_wait_is_what_it_is_told_when_it_comes() -> None:
    places = full(waiting=["b1"])
    [use] = places.uses()
    assert (use.hops, use.num_held, use.used_share, use.num_waiting) == (PAIR, 2, 1.0, 1)
    [(_, told)] = places.admit(CEM, Admit(id_of("c"), PAIR, 1, 10), now_s=0.0)
    assert isinstance(told, Queued)
    assert use.wait_s == told.wait_ms / 1000 == 10.0


def test_nobody_waits_while_there_is_room_for_a_request_like_the_others() -> None:
    places = places_on(chain())
    assert places.uses()[0].wait_s == 0
    take(places, ANN, "a")
    assert places.uses()[0].wait_s == 0
    take(places, ANN, "b")
    assert places.uses()[0].wait_s == 5.0


def test_who_comes_first_is_served_first() -> None:
    places = full(waiting=["b1", "b2"])
    assert ask(places, CEM, "c") == [("cem", "c", "queued 2")]
    assert end(places, ANN, "a2") == [("bob", "b1", "admitted")]
    assert end(places, ANN, "a1") == [("bob", "b2", "admitted")]
    assert end(places, BOB, "b1") == [("cem", "c", "admitted")]


def test_whose_answer_had_begun_elsewhere_comes_before_those_that_have_not() -> None:
    places = full(waiting=["b1", "b2"])
    for position, name in enumerate(("c1", "c2")):
        admit = Admit(id_of(name), PAIR, 1, 10, has_begun=True)
        assert said(places.admit(CEM, admit, now_s=0.0)) == [("cem", name, f"queued {position}")]
        places.check()
    assert ask(places, BOB, "b3") == [("bob", "b3", "queued 4")]
    for ended, client, name in (("a1", "cem", "c1"), ("a2", "cem", "c2"), ("c1", "bob", "b1"), ("c2", "bob", "b2")):
        owner = ANN if ended.startswith("a") else CEM
        assert end(places, owner, ended) == [(client, name, "admitted")]


def test_a_short_request_does_not_overtake_a_long_one() -> None:
    places = places_on(chain(tokens=20))
    ask(places, ANN, "a", tokens=15)
    assert ask(places, BOB, "long", tokens=10) == [("bob", "long", "queued 0")]
    assert ask(places, CEM, "short", tokens=5) == [("cem", "short", "queued 1")]
    assert end(places, BOB, "long") == [("cem", "short", "admitted")]


def test_who_waits_is_told_for_how_long_by_how_long_others_hold_their_places() -> None:
    places = full()
    [(_, first)] = places.admit(BOB, Admit(id_of("b1"), PAIR, 1, 10), now_s=0.0)
    [(_, second)] = places.admit(BOB, Admit(id_of("b2"), PAIR, 1, 10), now_s=0.0)
    assert first == Queued(id_of("b1"), 0, 5000)  # half of the chain, which holds sessions for 10 s
    assert second == Queued(id_of("b2"), 1, 10_000)
    places.end(ANN, id_of("a1"), now_s=20.0)
    [(_, again)] = places.admit(BOB, Admit(id_of("b2"), PAIR, 1, 10), now_s=20.0)
    assert again == Queued(id_of("b2"), 0, 6000)  # 10 s + a fifth of the 10 s that this one took longer


def test_more_than_the_chain_can_hold_is_refused_with_the_most_there_is() -> None:
    [(client, refusal)] = places_on(chain(tokens=20)).admit(ANN, Admit(id_of("a"), PAIR, 1, 21), now_s=0.0)
    assert (client, refusal) == (ANN, Failed(id_of("a"), ME, FailureCode.TOO_LONG, "21 tokens, the chain holds 20"))


def test_a_chain_that_is_not_in_the_plan_is_refused_with_both_epochs() -> None:
    [(_, refusal)] = places_on(chain(PAIR)).admit(ANN, Admit(id_of("a"), ALONE, 7, 1), now_s=0.0)
    assert refusal == Failed(id_of("a"), ME, FailureCode.STALE_PLAN, "no chain of epoch 1, asked for as one of 7")


def test_asking_again_changes_nothing_and_is_answered_as_things_are_then() -> None:
    places = places_on(chain(tokens=10), limits=PlaceLimits(lease_s=3.0))
    ask(places, ANN, "a")
    assert places.admit(ANN, Admit(id_of("a"), PAIR, 1, 10), now_s=1.0) == [(ANN, Admitted(id_of("a"), 2000))]
    assert ask(places, BOB, "b") == ask(places, BOB, "b") == [("bob", "b", "queued 0")]
    assert (places.num_held, places.num_waiting) == (1, 1)
    take(places, ANN, "a")
    assert places.admit(ANN, Admit(id_of("a"), PAIR, 1, 10), now_s=2.0) == [(ANN, Admitted(id_of("a"), 0))]


@pytest.mark.parametrize(
    ("client", "hops", "tokens"), [(BOB, PAIR, 10), (ANN, OTHER_PAIR, 10), (ANN, PAIR, 9)], ids=str
)
def test_an_id_that_is_known_with_other_contents_is_refused_and_nothing_disturbed(
    client: PeerId, hops: Hops, tokens: int
) -> None:
    places = places_on(chain(PAIR), chain(OTHER_PAIR))
    ask(places, ANN, "a")
    assert ask(places, client, "a", hops=hops, tokens=tokens) == [(str(client), "a", "bad-message")]
    assert take(places, ANN, "a") is None


def test_beyond_its_places_a_client_waits_and_does_not_hold_up_others() -> None:
    places = places_on(chain(tokens=30), limits=PlaceLimits(max_places_of_client=1))
    ask(places, ANN, "a1")
    assert ask(places, ANN, "a2") == [("ann", "a2", "queued 0")]
    assert ask(places, BOB, "b1") == [("bob", "b1", "admitted")]
    assert end(places, ANN, "a1") == [("ann", "a2", "admitted")]


def test_a_client_that_ends_a_session_may_have_its_place_on_another_chain() -> None:
    places = places_on(chain(PAIR), chain(OTHER_PAIR), limits=PlaceLimits(max_places_of_client=1))
    ask(places, ANN, "a1")
    assert ask(places, ANN, "a2", hops=OTHER_PAIR) == [("ann", "a2", "queued 0")]
    assert end(places, ANN, "a1") == [("ann", "a2", "admitted")]


def test_others_come_to_their_turn_when_a_client_gets_its_last_place_elsewhere() -> None:
    limits = PlaceLimits(max_places_of_client=1)
    places = places_on(chain(OTHER_PAIR), chain(PAIR), limits=limits)
    ask(places, CEM, "c", hops=OTHER_PAIR, tokens=15)
    assert ask(places, ANN, "long", hops=OTHER_PAIR) == [("ann", "long", "queued 0")]
    assert ask(places, BOB, "b", hops=OTHER_PAIR, tokens=5) == [("bob", "b", "queued 1")]
    assert ask(places, ANN, "a") == [("ann", "a", "admitted"), ("bob", "b", "admitted")]


def test_the_queue_is_bounded() -> None:
    places = full(limits=PlaceLimits(max_waiting=2), waiting=["b1", "b2"])
    [(_, refusal)] = places.admit(CEM, Admit(id_of("c"), PAIR, 1, 10), now_s=0.0)
    reason = "the queue is full, 15 s would have to be waited"
    assert refusal == Failed(id_of("c"), ME, FailureCode.QUEUE_FULL, reason)
    places.check()
    assert places.num_waiting == 2


def test_the_tickets_of_a_client_are_bounded() -> None:
    places = full(limits=PlaceLimits(max_waiting_of_client=2), waiting=["b1", "b2"])
    assert ask(places, BOB, "b3") == [("bob", "b3", "queue-full")]
    assert ask(places, CEM, "c") == [("cem", "c", "queued 2")]


def test_an_offer_that_is_not_taken_up_passes_on_and_cannot_be_taken_up_late() -> None:
    places = places_on(chain(tokens=10), limits=PlaceLimits(lease_s=3.0))
    ask(places, ANN, "a")
    ask(places, BOB, "b")
    assert places.tick(2.9) == []
    assert said(places.tick(3.0)) == [("ann", "a", "no-place"), ("bob", "b", "admitted")]
    end(places, BOB, "b", now_s=3.1)
    late = "the place was not taken up in time"
    assert take(places, ANN, "a", now_s=3.2) == late  # its client has been told, and would never close the session
    assert ask(places, ANN, "a", now_s=3.2) == [("ann", "a", "no-place")]
    places.tick(3.0 + LAPSED_S)
    assert take(places, ANN, "a", now_s=3.0 + LAPSED_S) is None


def test_an_offer_that_is_taken_up_stays() -> None:
    places = places_on(chain(), limits=PlaceLimits(lease_s=3.0))
    ask(places, ANN, "a")
    assert take(places, ANN, "a", tokens=9, now_s=2.0) is None
    assert places.tick(100.0) == []
    assert places.used_tokens(PAIR) == 10


def test_withdrawing_frees_a_ticket_an_offer_and_a_place() -> None:
    places = full(waiting=["b1", "b2", "b3"])
    assert end(places, BOB, "b1") == []
    assert end(places, ANN, "a1") == [("bob", "b2", "admitted")]
    assert end(places, BOB, "b2") == [("bob", "b3", "admitted")]
    assert end(places, BOB, "b3") == end(places, ANN, "a2") == []
    assert (places.num_held, places.num_waiting, places.used_tokens(PAIR)) == (0, 0, 0)


def test_nobody_withdraws_what_is_not_his() -> None:
    places = full(waiting=["b1"])
    assert end(places, BOB, "a1") == end(places, ANN, "b1") == end(places, CEM, "unknown") == []
    assert (places.num_held, places.num_waiting) == (2, 1)


@pytest.mark.parametrize(
    ("client", "hops", "tokens"), [(BOB, PAIR, 10), (ANN, OTHER_PAIR, 10), (ANN, PAIR, 11)], ids=str
)
def test_an_offer_is_taken_up_only_as_it_was_made(client: PeerId, hops: Hops, tokens: int) -> None:
    places = places_on(chain(PAIR), chain(OTHER_PAIR))
    ask(places, ANN, "a")
    assert take(places, client, "a", hops=hops, tokens=tokens) == "the place is not for this session"
    assert take(places, ANN, "a") is None


def test_a_place_is_taken_up_once_and_not_before_it_is_offered() -> None:
    places = full(waiting=["b1"])
    assert take(places, ANN, "a1") == "the place is taken"
    assert take(places, BOB, "b1") == "the place is waiting"


def test_a_free_place_may_be_taken_without_having_asked() -> None:
    places = places_on(chain(tokens=20))
    assert take(places, ANN, "a", tokens=15) is None
    assert places.used_tokens(PAIR) == 15
    assert take(places, BOB, "b", tokens=6) == "no place is free"
    assert take(places, BOB, "b", tokens=5) is None


def test_who_has_not_asked_does_not_overtake_who_waits() -> None:
    places = places_on(chain(tokens=20))
    ask(places, ANN, "a", tokens=15)
    ask(places, BOB, "b", tokens=10)
    assert take(places, CEM, "c", tokens=5) == "no place is free"


def test_a_client_with_all_its_places_gets_no_more_without_asking() -> None:
    places = places_on(chain(), limits=PlaceLimits(max_places_of_client=1))
    assert take(places, ANN, "a1") is None
    assert take(places, ANN, "a2") == "no place is free"


def test_chains_outside_the_plan_have_no_places_to_take() -> None:
    places = places_on(chain())
    assert take(places, ANN, "a", hops=ALONE, tokens=1000) is None
    assert places.num_held == 0


def test_of_a_lost_client_only_what_is_open_stays_until_its_sessions_end() -> None:
    places = places_on(chain(tokens=20))
    take(places, ANN, "open")
    ask(places, ANN, "offered")
    ask(places, ANN, "waiting")
    ask(places, BOB, "b")
    assert said(places.lost(ANN, now_s=1.0)) == [("bob", "b", "admitted")]
    assert end(places, ANN, "open") == []
    assert (places.num_held, places.num_waiting, places.used_tokens(PAIR)) == (1, 0, 10)


def test_a_lost_server_sends_away_who_waits_for_it_and_nobody_is_admitted_for_a_while() -> None:
    places = places_on(chain(PAIR, tokens=10), chain(OTHER_PAIR, tokens=10))
    for hops, names in ((PAIR, ("a1", "a2")), (OTHER_PAIR, ("a3", "a4"))):
        for name in names:
            ask(places, ANN, name, hops=hops)
    [(client, refusal)] = places.lost(TAIL, now_s=1.0)
    assert (client, refusal) == (ANN, Failed(id_of("a2"), TAIL, FailureCode.PEER_LOST, "lost a moment ago"))
    places.check()
    [(_, refusal)] = places.admit(BOB, Admit(id_of("b"), PAIR, 1, 10), now_s=0.9 + LOST_S)
    assert refusal == Failed(id_of("b"), TAIL, FailureCode.PEER_LOST, "lost a moment ago")
    assert ask(places, BOB, "b", hops=PAIR, now_s=1.0 + LOST_S) == [("bob", "b", "queued 0")]


def test_chains_that_stay_keep_their_places_and_their_queue() -> None:
    places = full(waiting=["b1"])
    assert places.follow(2, [chain(PAIR, service_s=5.0), chain(ALONE)], now_s=1.0) == []
    places.check()
    assert (places.epoch, places.used_tokens(PAIR)) == (2, 20)
    assert ask(places, BOB, "b1") == [("bob", "b1", "queued 0")]
    assert end(places, ANN, "a1") == [("bob", "b1", "admitted")]


def test_a_chain_that_grows_serves_at_once_and_one_that_shrinks_gives_no_more_than_it_has() -> None:
    places = full(waiting=["b1", "b2"])
    assert said(places.follow(2, [chain(tokens=30)], now_s=1.0)) == [("bob", "b1", "admitted")]
    assert places.follow(3, [chain(tokens=10)], now_s=1.0) == []
    assert end(places, ANN, "a1") == end(places, ANN, "a2") == []
    assert end(places, BOB, "b1") == [("bob", "b2", "admitted")]


def test_who_waits_for_more_than_a_chain_has_left_is_sent_away_and_holds_up_nobody() -> None:
    places = places_on(chain(tokens=20))
    ask(places, ANN, "a", tokens=5)
    ask(places, BOB, "long", tokens=20)
    ask(places, CEM, "short", tokens=5)
    answers = places.follow(2, [chain(tokens=10)], now_s=1.0)
    assert said(answers) == [("bob", "long", "too-long"), ("cem", "short", "admitted")]
    places.check()


def test_a_chain_that_goes_sends_its_queue_away_and_lets_its_sessions_end() -> None:
    places = full(waiting=["b1"])
    [(client, refusal)] = places.follow(2, [], now_s=1.0)
    assert (client, refusal) == (BOB, Failed(id_of("b1"), ME, FailureCode.STALE_PLAN, "no chain of epoch 2"))
    places.check()
    assert places.num_held == 2
    assert end(places, ANN, "a1") == end(places, ANN, "a2") == []
    assert places.num_held == 0


def test_a_chain_that_comes_back_has_not_forgotten_its_sessions() -> None:
    places = full()
    places.follow(2, [], now_s=1.0)
    places.follow(3, [chain()], now_s=2.0)
    assert places.used_tokens(PAIR) == 20
    assert ask(places, BOB, "b") == [("bob", "b", "queued 0")]
    assert end(places, ANN, "a1") == [("bob", "b", "admitted")]


def test_an_offer_on_a_chain_that_is_gone_may_still_be_taken_up() -> None:
    places = places_on(chain())
    ask(places, ANN, "a")
    places.follow(2, [], now_s=1.0)
    assert take(places, ANN, "a") is None
    assert end(places, ANN, "a") == []


def test_closing_sends_away_all_but_those_with_open_sessions() -> None:
    places = full(waiting=["b1"])
    end(places, ANN, "a1")
    ask(places, CEM, "c")
    answers = places.close("is leaving")
    assert said(answers) == [("bob", "b1", "not-serving"), ("cem", "c", "not-serving")]
    places.check()
    assert (places.num_held, places.num_waiting) == (1, 0)


def test_a_slow_chain_waits_for_a_queue_that_is_long_enough() -> None:
    places = places_on(chain(patience=1.5, patience_s=60.0))
    assert ask(places, ANN, "a") == [("ann", "a", "queued 0")]
    assert ask(places, BOB, "b") == [("ann", "a", "admitted"), ("bob", "b", "queued 0")]


def test_a_slow_chain_is_patient_only_for_so_long() -> None:
    places = places_on(chain(patience=1.5, patience_s=6.0))
    ask(places, ANN, "a", now_s=1.0)
    assert places.tick(6.9) == []
    assert said(places.tick(7.0)) == [("ann", "a", "admitted")]


def test_of_clients_that_are_gone_nothing_is_kept() -> None:
    places = places_on(chain(tokens=1))
    for n in range(10):
        client = PeerId(f"client {n}")
        ask(places, client, str(n), tokens=1)
        end(places, client, str(n))
    assert [places._places, places._num_held, places._num_waiting] == [{}, {}, {}]


def test_a_fault_in_the_books_is_found() -> None:
    places = full(waiting=["b1"])
    places._chains[PAIR].used_tokens -= 1
    with pytest.raises(AssertionError, match="do not add up"):
        places.check()
