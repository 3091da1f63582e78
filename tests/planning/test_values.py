"""What planning starts from cannot hold numbers that make no sense."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainserve.planning.values import (
    ModelSpec,
    Placement,
    PlannedChain,
    ServerProfile,
    Workload,
    by_peer,
    how_many,
    total_rate,
)
from chainserve.types import Chain, Hop, PeerId, Span

A, B = PeerId("a"), PeerId("b")
MODEL = ModelSpec(num_blocks=4, block_bytes=10, slot_bytes=1, embedding_bytes=3, head_bytes=5)
SERVER = ServerProfile(peer=A, memory_bytes=100, communication_s=1, block_s=2)
CHAIN = Chain((Hop(A, Span(0, 4)),))


@given(st.integers(1, 10**6), st.floats(1e-3, 1e12))
def test_sizes_that_differ_by_rounding_lose_nothing(number: int, size: float) -> None:
    assert how_many(number * size, size) == number
    assert how_many(number * size * (1 - 1e-10), size) == number
    assert how_many(number * size * (1 - 1e-7) - 1e-3 * size, size) == number - 1


def test_no_space_or_less_holds_nothing() -> None:
    assert how_many(0, 2) == how_many(-7, 2) == 0


@pytest.mark.parametrize("number", [-1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["block_bytes", "slot_bytes", "embedding_bytes", "head_bytes"])
def test_sizes_of_a_model_are_finite_and_not_negative(name: str, number: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {number}: it has to be finite and"):
        replace(MODEL, **{name: number})


@pytest.mark.parametrize("number", [-1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["memory_bytes", "communication_s", "block_s"])
def test_figures_of_a_server_are_finite_and_not_negative(name: str, number: float) -> None:
    with pytest.raises(ValueError, match=f"{name} of a is {number}"):
        replace(SERVER, **{name: number})


def test_zero_is_a_distance_but_no_size_and_no_time() -> None:
    assert replace(SERVER, communication_s=0).span_s(3) == 6
    for name in ("memory_bytes", "block_s"):
        with pytest.raises(ValueError, match="has to be finite and positive"):
            replace(SERVER, **{name: 0})
    for name in ("block_bytes", "slot_bytes"):
        with pytest.raises(ValueError, match="has to be finite and positive"):
            replace(MODEL, **{name: 0})


def test_a_model_has_blocks() -> None:
    with pytest.raises(ValueError, match="at least one block, not 0"):
        replace(MODEL, num_blocks=0)


def test_a_workload_arrives_and_leaves_room() -> None:
    for rate in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="arrival_rate"):
            Workload(arrival_rate=rate)
    for load in (0, 1, -0.5, math.nan):
        with pytest.raises(ValueError, match=f"target_load is {load}: it has to be between 0 and 1"):
            Workload(arrival_rate=1, target_load=load)


def test_a_planned_chain_holds_sessions() -> None:
    with pytest.raises(ValueError, match="at least one session, not 0"):
        PlannedChain(CHAIN, 0, 1.0)
    with pytest.raises(ValueError, match="service_s"):
        PlannedChain(CHAIN, 1, 0.0)
    assert total_rate([PlannedChain(CHAIN, 3, 2.0), PlannedChain(CHAIN, 1, 4.0)]) == 1.75


def test_the_ends_of_a_model_weigh_on_whoever_holds_them() -> None:
    assert [MODEL.weight_bytes(Span(*span)) for span in ((1, 3), (0, 3), (1, 4), (0, 4))] == [20, 33, 35, 48]
    assert replace(MODEL, is_tied=True).weight_bytes(Span(0, 4)) == 45


def test_equal_placements_are_equal_in_any_order() -> None:
    one, other = Placement({A: Span(0, 2), B: Span(1, 3)}), Placement({B: Span(1, 3), A: Span(0, 2)})
    assert one == other
    assert hash(one) == hash(other)
    assert list(other) == [A, B]
    assert one.missing(5) == (3, 4)


def test_servers_are_there_once() -> None:
    with pytest.raises(ValueError, match="there are no servers"):
        by_peer([])
    with pytest.raises(ValueError, match="two profiles of one server: a"):
        by_peer([SERVER, replace(SERVER, peer=B), replace(SERVER, memory_bytes=7)])
    assert list(by_peer([replace(SERVER, peer=B), SERVER])) == [A, B]
