"""The ledger of cache: what is free, and that nothing is taken twice."""

import pytest

from chainserve.simulator.engine import InvariantError
from chainserve.simulator.ledger import ServerLedger
from chainserve.types import Chain, Hop, PeerId, Span

A, B = PeerId("a"), PeerId("b")


def route(*hops: tuple[PeerId, int, int]) -> Chain:
    return Chain(tuple(Hop(peer, Span(start, end)) for peer, start, end in hops))


def test_slots_are_held_per_block_and_given_back() -> None:
    ledger = ServerLedger({A: 4, B: 7})
    both = route((A, 0, 2), (B, 2, 5))
    ledger.hold(both, 0)
    assert (ledger.free_slots(A), ledger.free_slots(B), ledger.num_held) == (2, 4, 1)
    assert ledger.free(0) == both
    assert (ledger.free_slots(A), ledger.free_slots(B), ledger.num_held) == (4, 7, 0)


def test_says_whether_a_route_fits() -> None:
    ledger = ServerLedger({A: 2, B: 3})
    assert ledger.fits(route((A, 0, 2), (B, 2, 5)))
    assert not ledger.fits(route((A, 0, 2), (B, 2, 6)))


def test_a_server_passed_twice_counts_twice() -> None:
    ledger = ServerLedger({A: 3, B: 3})
    there_and_back = route((A, 0, 2), (B, 2, 3), (A, 3, 5))
    assert not ledger.fits(there_and_back)
    with pytest.raises(InvariantError, match="request 4 takes 4 block-slots on a, 3 are free"):
        ledger.hold(there_and_back, 4)


def test_over_commitment_is_an_error() -> None:
    ledger = ServerLedger({A: 3})
    ledger.hold(route((A, 0, 2)), 0)
    with pytest.raises(InvariantError, match="request 1 takes 2 block-slots on a, 1 are free") as caught:
        ledger.hold(route((A, 0, 2)), 1)
    assert caught.value.request == 1


def test_a_request_holds_once_and_frees_once() -> None:
    ledger = ServerLedger({A: 9})
    ledger.hold(route((A, 0, 2)), 0)
    with pytest.raises(InvariantError, match="request 0 holds cache already"):
        ledger.hold(route((A, 0, 2)), 0)
    ledger.free(0)
    with pytest.raises(InvariantError, match="request 0 holds no cache"):
        ledger.free(0)
