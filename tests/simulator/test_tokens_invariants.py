"""A simulator that is broken on purpose: each of its checks notices."""

import pytest
from token_swarms import A, B, C, planned, play, server

from chainserve.simulator.engine import InvariantError
from chainserve.simulator.tokens.admission import Route
from chainserve.simulator.tokens.membership import Fail
from chainserve.simulator.tokens.servers import Server, Work
from chainserve.simulator.tokens.values import Protocol
from chainserve.simulator.workloads import make_requests

TWO = make_requests([0.0, 0.1], input_tokens=10, output_tokens=5)
AT_ONCE = Protocol(detection_s=0)


def do_nothing(*args: object) -> None:
    pass


def test_a_session_whose_work_vanishes_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "add", do_nothing)
    with pytest.raises(InvariantError, match="request 0 and 1 others never finished"):
        play(TWO, [server(A)], [planned((A, 0, 1))])


def test_cache_that_is_not_given_back_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "release", do_nothing)
    with pytest.raises(InvariantError, match="leaves 30 tokens of cache on a behind"):
        play(TWO, [server(A)], [planned((A, 0, 1))])


def test_cache_that_is_promised_twice_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Route, "fits", lambda self, session: True)
    with pytest.raises(InvariantError, match="request 1 takes 15 tokens on a, 5 are free"):
        play(TWO, [server(A, cache_tokens=20)], [planned((A, 0, 1))])


@pytest.mark.parametrize("num_chains", [1, 2])
def test_a_token_of_a_chain_that_was_lost_is_noticed(monkeypatch: pytest.MonkeyPatch, num_chains: int) -> None:
    monkeypatch.setattr(Work, "drop", do_nothing)
    chains = [planned((A, 0, 1), (B, 1, 2)), planned((C, 0, 2), service_s=9.0)][:num_chains]
    with pytest.raises(InvariantError, match="request 0 gets a token of b, which is not its tail"):
        play(TWO, [server(A), server(B), server(C)], chains, changes=[Fail(0.7, A)], protocol=AT_ONCE)


def test_a_token_that_comes_twice_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    add = Server.add

    def add_twice(self: Server, work: Work) -> None:
        add(self, Work(work.server, {leg: sessions * 2 for leg, sessions in work.decodes.items()}, work.chunks))

    monkeypatch.setattr(Server, "add", add_twice)
    with pytest.raises(InvariantError, match="request 0 made 7 tokens of 5"):
        play(TWO, [server(A)], [planned((A, 0, 1))])
