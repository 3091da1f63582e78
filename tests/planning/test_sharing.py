"""What sessions take beside others on their servers."""

import pytest
from examples import placed
from hypothesis import given
from hypothesis import strategies as st

from chainserve.planning.allocation import allocate
from chainserve.planning.dispatch import patience
from chainserve.planning.sharing import Sharing, patience_beside, rate_when_full, turns_of
from chainserve.planning.times import BlockTimes, ServerTimes
from chainserve.planning.values import PlannedChain, total_rate
from chainserve.types import Chain, Hop, PeerId, Span

A, B, C = (PeerId(letter) for letter in "ABC")
ALONE, PAIR = Chain((Hop(A, Span(0, 4)),)), Chain((Hop(B, Span(0, 1)), Hop(C, Span(1, 4))))
MIXED = Chain((Hop(B, Span(0, 1)), Hop(A, Span(1, 4))))
TURN_S = {A: 0.1, B: 0.2, C: 0.3}


def test_turns_are_prompts_and_what_another_row_adds_to_a_step() -> None:
    block = BlockTimes(overhead_s=0.01, prefill_s=0.001, decode_s=0.02, session_s=0.004)
    assert block.turn_s(100, 11) == pytest.approx(0.01 + 0.1 + 0.04)
    times = ServerTimes(hop_s=0.5, block=block)
    assert turns_of([times.profile(A, 1.0, input_tokens=100, output_tokens=11)]) == {A: pytest.approx(0.15)}


def test_a_session_waits_for_the_turns_of_those_on_its_servers() -> None:
    sharing = Sharing(TURN_S)
    assert sharing.wait_s(ALONE) == sharing.wait_s(PAIR) == 0
    sharing.add(ALONE, 2)
    assert sharing.wait_s(ALONE) == pytest.approx(2 * 4 * 0.1)
    assert sharing.wait_s(MIXED) == pytest.approx(0.8)
    assert sharing.wait_s(PAIR) == 0
    sharing.add(PAIR)  # half its time at either server
    assert sharing.wait_s(PAIR) == pytest.approx((0.2 + 0.9) / 2) == sharing.own_s(PAIR)
    assert sharing.wait_s(MIXED) == pytest.approx(0.8 + 0.1)


def test_servers_without_turns_keep_nobody_waiting() -> None:
    sharing = Sharing({B: 0.2})
    sharing.add(MIXED, 3)
    assert sharing.wait_s(ALONE) == 0
    assert sharing.wait_s(PAIR) == pytest.approx(0.3)


def test_full_chains_are_slower_where_they_share() -> None:
    chains = [PlannedChain(ALONE, 3, 1.0), PlannedChain(PAIR, 1, 2.0)]
    assert rate_when_full(chains, TURN_S) == pytest.approx(3 / (1.0 + 2 * 0.4) + 1 / 2.0)
    assert rate_when_full([], TURN_S) == 0


def test_a_server_that_only_computes_prompts_does_no_more_with_more_places() -> None:
    rates = [rate_when_full([PlannedChain(ALONE, places, 0.4)], TURN_S) for places in (1, 2, 10)]
    assert rates == pytest.approx([2.5] * 3)


def test_a_slow_chain_is_joined_sooner_where_the_fast_ones_share() -> None:
    chains = [PlannedChain(ALONE, 4, 1.0), PlannedChain(PAIR, 1, 2.0)]
    alone, shared = (patience_beside(chains, turns, arrival_rate=0.5)[1] for turns in ({}, TURN_S))
    assert alone == pytest.approx((4 - 0.5) * (2 - 1))
    fast_rate = 4 / (1.0 + 3 * 0.4)
    assert shared == pytest.approx((fast_rate - 0.5) * (2 - 4 / fast_rate))
    assert shared < 0 < alone


@given(swarm=placed(), arrival_rate=st.floats(0, 5))
def test_without_turns_all_is_as_in_the_paper(swarm: tuple, arrival_rate: float) -> None:  # type: ignore[type-arg]
    profiles, model, placement = swarm
    chains = allocate(profiles, model, placement)
    assert rate_when_full(chains, {}) == pytest.approx(total_rate(chains))
    if chains:
        expected = patience([c.rate for c in chains], [c.capacity for c in chains], arrival_rate=arrival_rate)
        assert patience_beside(chains, {}, arrival_rate=arrival_rate) == pytest.approx(expected, abs=1e-6)


@given(swarm=placed(), turn_s=st.floats(0, 1))
def test_sharing_never_makes_chains_faster(swarm: tuple, turn_s: float) -> None:  # type: ignore[type-arg]
    profiles, model, placement = swarm
    chains = allocate(profiles, model, placement)
    turns = {profile.peer: turn_s for profile in profiles}
    assert rate_when_full(chains, turns) <= total_rate(chains) * (1 + 1e-9)
