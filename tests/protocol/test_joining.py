"""A search that joins the chain of least cost and stays there."""

import random

from test_search import admitted, asked, found, hops_of, id_of, name_of, queued, refused, withdrawn

from chainserve.protocol.joining import Cost, JoinSearch
from chainserve.protocol.search import Candidate

SERVICE_S = {"a": 1.0, "b": 2.0, "c": 5.0}


def search_by(cost: Cost) -> JoinSearch:
    candidates = [Candidate(id_of(name), hops_of(name)) for name in SERVICE_S]
    return JoinSearch(candidates, epoch=3, num_tokens=10, rng=random.Random(0), cost=cost)


def search() -> JoinSearch:
    return search_by(lambda session, wait_s, num_before: wait_s + SERVICE_S[name_of(session)])


def test_all_heads_are_asked_at_once() -> None:
    assert asked(search().begin()) == ["a", "b", "c"]


def test_a_free_chain_is_joined_if_waiting_for_a_faster_one_costs_more() -> None:
    one = search()
    one.begin()
    assert one.receive(queued("a", wait_ms=2000)) == []
    assert one.receive(admitted("b")) == []
    assert withdrawn(one.receive(admitted("c"))) == ["a", "c"]
    assert found(one) == "b"


def test_a_full_chain_is_waited_for_though_others_are_free() -> None:
    one = search()
    one.begin()
    one.receive(queued("a", wait_ms=500))
    one.receive(admitted("b"))
    assert withdrawn(one.receive(admitted("c"))) == ["b", "c"]
    assert found(one) is None
    assert one.receive(admitted("a")) == []
    assert found(one) == "a"


def test_who_waits_counts_from_the_answers() -> None:
    one = search_by(lambda session, wait_s, num_before: num_before)
    one.begin()
    one.receive(queued("a", position=2))
    one.receive(queued("b", position=0))
    assert withdrawn(one.receive(queued("c", position=1))) == ["a", "c"]


def test_heads_that_refuse_are_passed_over_and_the_search_fails_without_any() -> None:
    one = search()
    one.begin()
    one.receive(refused("a"))
    one.receive(refused("b"))
    one.receive(queued("c"))
    assert not one.has_failed
    one.receive(refused("c"))
    assert one.has_failed
    assert set(one.failures) == {id_of(name) for name in SERVICE_S}


def test_a_silent_head_is_not_waited_for_forever() -> None:
    one = search()
    one.begin()
    one.receive(admitted("b"))
    one.receive(admitted("c"))
    assert found(one) is None
    assert withdrawn(one.ask_again()) == ["a", "c"]
    assert found(one) == "b"
