"""A client's search for a place: whom it asks, what it waits for, what it withdraws."""

import random
from collections.abc import Sequence

from chainserve.protocol.messages import Admit, Admitted, Close, Failed, FailureCode, Queued
from chainserve.protocol.search import Candidate, PlaceSearch, Sending
from chainserve.types import Hop, PeerId, SessionId, Span


def id_of(name: str) -> SessionId:
    return SessionId(name.encode().ljust(16))


def hops_of(name: str) -> tuple[Hop, ...]:
    """The head is called by the first letter."""
    return Hop(PeerId(name[0]), Span(0, 2)), Hop(PeerId(f"tail of {name}"), Span(2, 4))


def search_for(*names: str, max_asked: int = 16, max_tickets: int = 4, seed: int = 0) -> PlaceSearch:
    candidates = [Candidate(id_of(name), hops_of(name)) for name in names]
    rng = random.Random(seed)
    return PlaceSearch(candidates, epoch=3, num_tokens=10, rng=rng, max_asked=max_asked, max_tickets=max_tickets)


def asked(sendings: Sequence[Sending]) -> list[str]:
    """Those that are asked, if nothing else is sent."""
    for head, message in sendings:
        assert isinstance(message, Admit)
        assert message == Admit(message.session, hops_of(name_of(message.session)), 3, 10)
        assert head == message.hops[0].peer
    return [name_of(message.session) for _, message in sendings if isinstance(message, Admit)]


def withdrawn(sendings: Sequence[Sending]) -> list[str]:
    """Those that are withdrawn, if nothing else is sent."""
    for head, message in sendings:
        assert isinstance(message, Close)
        assert head == name_of(message.session)[0]
    return [name_of(message.session) for _, message in sendings if isinstance(message, Close)]


def name_of(session: SessionId) -> str:
    return session.decode().strip()


def admitted(name: str) -> Admitted:
    return Admitted(id_of(name), 5000)


def queued(name: str, position: int = 0, wait_ms: int = 1000) -> Queued:
    return Queued(id_of(name), position, wait_ms)


def refused(name: str, code: FailureCode = FailureCode.TOO_LONG) -> Failed:
    return Failed(id_of(name), PeerId(name[0]), code, "no")


def found(search: PlaceSearch) -> str | None:
    return None if search.found is None else name_of(search.found.session)


def waiting_at(*names: str) -> PlaceSearch:
    search = search_for(*names)
    search.begin()
    for name in names:
        search.receive(queued(name))
    return search


def test_the_fastest_is_asked_first_and_taken_if_it_has_a_place() -> None:
    search = search_for("fast", "middle", "slow")
    assert asked(search.begin()) == ["fast"]
    assert search.receive(admitted("fast")) == []
    assert found(search) == "fast"
    assert not search.has_failed


def test_all_others_are_asked_once_the_fastest_is_full_or_refuses() -> None:
    for answer in (queued("fast"), refused("fast")):
        search = search_for("fast", "middle", "slow")
        search.begin()
        assert asked(search.receive(answer)) == ["middle", "slow"]


def test_a_place_is_taken_as_soon_as_all_faster_ones_have_answered() -> None:
    search = search_for("fast", "good", "middle", "slow")
    search.begin()
    search.receive(queued("fast"))
    assert search.receive(admitted("middle")) == []
    assert found(search) is None
    assert withdrawn(search.receive(queued("good"))) == ["fast", "good", "slow"]
    assert found(search) == "middle"


def test_the_fastest_of_several_offers_is_taken() -> None:
    search = search_for("fast", "middle", "slow")
    search.begin()
    search.receive(refused("fast"))
    assert search.receive(admitted("slow")) == []
    assert withdrawn(search.receive(admitted("middle"))) == ["slow"]
    assert found(search) == "middle"


def test_the_first_offer_wins_where_it_waits_and_all_other_tickets_are_withdrawn() -> None:
    search = waiting_at("fast", "middle", "slow")
    assert withdrawn(search.receive(admitted("slow"))) == ["fast", "middle"]
    assert found(search) == "slow"


def test_answers_that_come_late_change_nothing() -> None:
    search = waiting_at("fast", "middle", "slow")
    search.receive(admitted("slow"))
    late: list[Admitted | Queued | Failed] = [
        admitted("fast"),
        queued("middle"),
        refused("slow"),
        admitted("slow"),
        admitted("never asked"),
    ]
    assert [search.receive(answer) for answer in late] == [[]] * 5
    assert search.lost(PeerId("s"), "gone") == search.ask_again() == search.give_up() == []
    assert found(search) == "slow"
    assert search.failures == {}


def test_an_answer_from_before_the_offer_does_not_undo_it() -> None:
    search = search_for("fast", "middle", "slow")
    search.begin()
    search.receive(queued("fast"))
    search.receive(admitted("slow"))
    search.receive(queued("slow"))
    search.receive(queued("middle"))
    assert found(search) == "slow"


def test_an_offer_that_lapses_before_it_is_taken_is_none() -> None:
    search = search_for("fast", "middle", "slow")
    search.begin()
    search.receive(queued("fast"))
    search.receive(admitted("slow"))
    search.receive(refused("slow", FailureCode.NO_PLACE))
    assert search.receive(queued("middle")) == []
    assert found(search) is None
    assert not search.has_failed


def test_it_has_failed_when_all_refuse_and_says_why() -> None:
    search = search_for("fast", "slow")
    search.begin()
    search.receive(refused("fast", FailureCode.QUEUE_FULL))
    assert not search.has_failed
    assert search.receive(refused("slow")) == []
    assert search.has_failed
    codes = [failure.code for failure in search.failures.values()]
    assert codes == [FailureCode.QUEUE_FULL, FailureCode.TOO_LONG]


def test_without_candidates_it_has_failed() -> None:
    search = search_for()
    assert search.begin() == []
    assert search.has_failed


def test_a_lost_head_is_neither_waited_for_nor_asked() -> None:
    search = search_for("a1", "b1", "a2", "c1")
    search.begin()
    assert asked(search.lost(PeerId("a"), "gone")) == ["b1", "c1"]
    search.receive(queued("c1"))
    search.receive(refused("b1"))
    assert search.lost(PeerId("c"), "gone too") == []
    assert search.has_failed
    assert [name_of(session) for session in search.failures] == ["a1", "a2", "b1", "c1"]
    assert search.failures[id_of("c1")] == Failed(id_of("c1"), PeerId("c"), FailureCode.PEER_LOST, "gone too")


def test_what_a_lost_head_has_offered_is_not_taken() -> None:
    search = search_for("a1", "b1", "a2")
    search.begin()
    search.receive(queued("a1"))
    search.receive(admitted("a2"))
    assert search.lost(PeerId("a"), "gone") == []
    assert found(search) is None
    search.receive(admitted("b1"))
    assert found(search) == "b1"


def test_a_head_that_is_none_of_the_candidates_may_be_lost() -> None:
    search = search_for("fast", "slow")
    search.begin()
    assert search.lost(PeerId("x"), "gone") == []
    assert not search.failures


def test_giving_up_withdraws_all_that_was_asked() -> None:
    search = search_for("fast", "middle", "slow")
    search.begin()
    assert withdrawn(search.give_up()) == ["fast"]
    assert search.receive(queued("fast")) == search.ask_again() == []
    assert search.has_failed
    search = waiting_at("fast", "slow")
    assert withdrawn(search.give_up()) == ["fast", "slow"]
    assert search.has_failed


def test_of_many_chains_the_fastest_and_a_sample_of_the_others_are_asked() -> None:
    names = [f"{letter}1" for letter in "abcdefghij"]
    samples = set()
    for seed in range(20):
        search = search_for(*names, max_asked=4, seed=seed)
        [first, *others] = [name_of(candidate.session) for candidate in search.candidates]
        assert (first, len(others)) == ("a1", 3)
        assert others == sorted(others)  # fastest first still
        samples.add(tuple(others))
        search.begin()
        assert asked(search.receive(queued("a1"))) == others
    assert len(samples) > 10
    assert len(search_for(*names, max_asked=10).candidates) == 10
    assert len(search_for(*names, max_asked=1).candidates) == 1


def test_it_keeps_tickets_where_there_is_the_least_to_wait_of_equals_with_the_fastest() -> None:
    search = search_for("a", "b", "c", "d", "e", max_tickets=2)
    search.begin()
    search.receive(queued("a", wait_ms=7000))
    for name, wait_ms in (("b", 2000), ("e", 1000), ("c", 2000)):
        assert search.receive(queued(name, wait_ms=wait_ms)) == []
    assert withdrawn(search.receive(queued("d", wait_ms=2000))) == ["c", "d", "a"]
    assert search.receive(admitted("c")) == []
    assert withdrawn(search.receive(admitted("e"))) == ["b"]
    assert found(search) == "e"


def test_it_keeps_no_ticket_with_a_silent_head_where_others_answered() -> None:
    search = search_for("a", "b", "c", max_tickets=2)
    search.begin()
    search.receive(queued("a", wait_ms=7000))
    search.receive(queued("c", wait_ms=7000))
    assert withdrawn([search.ask_again()[-1]]) == ["b"]
    assert asked(search.ask_again()) == ["a", "c"]


def test_a_silent_head_is_looked_past_after_some_time() -> None:
    search = search_for("fast", "middle", "slow")
    search.begin()
    assert asked(search.ask_again()) == ["middle", "slow"]
    search.receive(admitted("slow"))
    assert withdrawn(search.ask_again()) == ["fast", "middle"]
    assert found(search) == "slow"


def test_a_silent_head_that_answers_after_all_is_heard() -> None:
    search = search_for("fast", "slow")
    search.begin()
    search.ask_again()
    assert withdrawn(search.receive(admitted("fast"))) == ["slow"]
    assert found(search) == "fast"


def test_where_it_waits_it_asks_again_for_how_long() -> None:
    search = search_for("fast", "middle", "slow")
    assert (search.position, search.wait_s) == (None, None)
    search.begin()
    search.receive(queued("fast", position=4, wait_ms=9000))
    search.receive(queued("middle", position=7, wait_ms=3000))
    assert (search.position, search.wait_s) == (4, 3.0)
    assert asked(search.ask_again()) == ["fast", "middle"]
    search.receive(queued("fast", position=1, wait_ms=2000))
    assert (search.position, search.wait_s) == (1, 2.0)
    search.receive(refused("fast"))
    assert (search.position, search.wait_s) == (7, 3.0)


def test_where_it_has_an_offer_it_waits_no_more() -> None:
    search = search_for("fast", "middle", "slow")
    search.begin()
    search.receive(queued("fast", position=4))
    search.receive(queued("slow", position=0))
    search.receive(admitted("slow"))
    assert search.position == 4
