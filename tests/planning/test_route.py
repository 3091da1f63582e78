"""The chain with the fewest hops, against brute force."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainserve.errors import NoChainError
from chainserve.planning.route import Holding, fewest_hops
from chainserve.types import PeerId, Span

A, B, C = PeerId("A"), PeerId("B"), PeerId("C")


def test_names_the_blocks_nobody_holds() -> None:
    with pytest.raises(NoChainError, match=r"blocks 1:3, 5:6 of 6") as caught:
        fewest_hops([Holding(A, Span(0, 1), 0), Holding(B, Span(3, 5), 0)], num_blocks=6)
    assert caught.value.missing == (1, 2, 5)


def test_an_empty_swarm_holds_no_block() -> None:
    with pytest.raises(NoChainError, match="blocks 0:3 of 3"):
        fewest_hops([], num_blocks=3)


def test_overlapping_spans_are_run_once() -> None:
    chain = fewest_hops([Holding(A, Span(0, 4), 0), Holding(B, Span(2, 6), 0)], num_blocks=6)
    assert [(hop.peer, str(hop.span)) for hop in chain.hops] == [(A, "0:4"), (B, "4:6")]


def test_one_server_with_all_blocks_beats_two_with_parts() -> None:
    holdings = [Holding(A, Span(0, 3), 9), Holding(B, Span(3, 6), 9), Holding(C, Span(0, 6), 0)]
    assert fewest_hops(holdings, num_blocks=6).head == C


def test_of_equals_the_one_with_more_free_cache_is_taken() -> None:
    holdings = [Holding(A, Span(0, 6), 10), Holding(B, Span(0, 6), 20), Holding(C, Span(0, 6), 20)]
    assert fewest_hops(holdings, num_blocks=6).head == B


spans = st.tuples(st.integers(0, 5), st.integers(1, 6)).filter(lambda ends: ends[0] < ends[1])


@given(st.lists(spans, min_size=1, max_size=5))
def test_no_choice_of_servers_covers_the_model_with_fewer(ends: list[tuple[int, int]]) -> None:
    holdings = [Holding(PeerId(str(i)), Span(*pair), 0) for i, pair in enumerate(ends)]

    def covers(order: tuple[Holding, ...]) -> bool:
        position = 0
        for holding in order:
            if position not in holding.span:
                return False
            position = holding.span.end
        return position == 6

    sizes = [n for n in range(1, len(holdings) + 1) for order in permutations(holdings, n) if covers(order)]
    if not sizes:
        with pytest.raises(NoChainError):
            fewest_hops(holdings, num_blocks=6)
    else:
        assert len(fewest_hops(holdings, num_blocks=6).hops) == min(sizes)


@given(st.permutations([Holding(A, Span(0, 4), 1), Holding(B, Span(2, 6), 1), Holding(C, Span(0, 4), 1)]))
def test_the_order_of_the_input_does_not_matter(holdings: list[Holding]) -> None:
    assert [hop.peer for hop in fewest_hops(holdings, num_blocks=6).hops] == [A, B]
