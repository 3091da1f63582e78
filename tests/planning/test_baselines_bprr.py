"""BPRR's placement and routing: small cases by hand, and what always holds."""

import math

import pytest
from examples import BLOOM, models, servers
from hypothesis import given, settings
from hypothesis import strategies as st

from chainserve.planning.baselines import bprr
from chainserve.planning.baselines.windows import blocks_with_cache
from chainserve.planning.values import ModelSpec, Placement, ServerProfile
from chainserve.types import PeerId, Span

A, B, C, D = (PeerId(letter) for letter in "ABCD")
MODEL = ModelSpec(num_blocks=4, block_bytes=1, slot_bytes=0.5)


def profile(peer: PeerId, memory: float, *, block_s: float = 1.0) -> ServerProfile:
    return ServerProfile(peer=peer, memory_bytes=memory, communication_s=1, block_s=block_s)


def test_the_guess_of_service_time_averages_over_servers_with_room() -> None:
    # A: two blocks for one session in 3 s, B: one block in 3 s, C: none.
    profiles = [profile(A, 3), profile(B, 2.9, block_s=2), profile(C, 1)]
    assert bprr.mean_service_s(profiles, MODEL) == pytest.approx(4 * (1.5 + 3) / 2)
    with pytest.raises(ValueError, match="no server has room"):
        bprr.mean_service_s([profile(C, 1)], MODEL)


def test_concurrency_is_mean_and_deviation_as_far_as_memory_goes() -> None:
    roomy = [profile(A, 100), profile(B, 100)]
    assert bprr.reserved_concurrency(roomy, MODEL, arrival_rate=0.5, service_s=8) == 6  # 4 + 2
    assert bprr.reserved_concurrency(roomy, MODEL, arrival_rate=0.5, service_s=8.1) == 7
    assert bprr.reserved_concurrency(roomy, MODEL, arrival_rate=10, service_s=8) == 64  # (200 - 6) / (0.5 * 6)
    assert bprr.reserved_concurrency([profile(A, 5)], MODEL, arrival_rate=10, service_s=8) == 1
    guessed = bprr.mean_service_s(roomy, MODEL)
    assert bprr.reserved_concurrency(roomy, MODEL, arrival_rate=0.5) == bprr.reserved_concurrency(
        roomy, MODEL, arrival_rate=0.5, service_s=guessed
    )
    with pytest.raises(ValueError, match="arrival_rate"):
        bprr.reserved_concurrency(roomy, MODEL, arrival_rate=0)
    with pytest.raises(ValueError, match="service_s"):
        bprr.reserved_concurrency(roomy, MODEL, arrival_rate=1, service_s=math.nan)


def test_equal_servers_tile_the_model() -> None:
    placement = bprr.place([profile(peer, 4) for peer in (A, B, C, D)], MODEL, concurrency=2)
    assert {peer: str(span) for peer, span in placement.spans.items()} == {A: "0:2", B: "2:4", C: "0:2", D: "2:4"}


def test_the_fast_come_first_and_the_slow_go_where_the_slowest_are() -> None:
    # Two sessions each. B and A, the fast ones, cover the model; C and D come when nothing is in need.
    profiles = [profile(A, 4, block_s=2), profile(B, 4), profile(C, 4, block_s=3), profile(D, 4, block_s=4)]
    placement = bprr.place(profiles, MODEL, concurrency=2)
    assert {peer: str(span) for peer, span in placement.spans.items()} == {B: "0:2", A: "2:4", C: "0:2", D: "2:4"}


def test_the_last_server_overlaps_the_one_before_it_and_more_go_where_fewest_fit() -> None:
    model = ModelSpec(num_blocks=3, block_bytes=1, slot_bytes=1)
    profiles = [profile(A, 4), profile(B, 4, block_s=2), profile(C, 2, block_s=3)]
    placement = bprr.place(profiles, model, concurrency=1)
    assert {peer: str(span) for peer, span in placement.spans.items()} == {A: "0:2", B: "1:3", C: "0:1"}


def test_servers_without_room_hold_nothing() -> None:
    assert len(bprr.place([profile(A, 1.9)], MODEL, concurrency=2)) == 0
    with pytest.raises(ValueError, match="concurrency is 0"):
        bprr.place([profile(A, 4)], MODEL, concurrency=0)


@settings(max_examples=100)
@given(servers(), models(), st.integers(1, 4))
def test_placement_stays_within_memory_and_covers_what_it_can(
    profiles: tuple[ServerProfile, ...], model: ModelSpec, concurrency: int
) -> None:
    placement = bprr.place(profiles, model, concurrency=concurrency)
    sizes = {server.peer: blocks_with_cache(server, model, num_slots=concurrency) for server in profiles}
    assert {peer: len(span) for peer, span in placement.spans.items()} == {
        peer: size for peer, size in sizes.items() if size
    }
    for server in profiles:
        if server.peer in placement:
            span = placement[server.peer]
            needed = model.weight_bytes(span) + concurrency * len(span) * model.slot_bytes
            assert needed <= server.memory_bytes * (1 + 1e-8)
    assert (placement.missing(model.num_blocks) == ()) == (sum(sizes.values()) >= model.num_blocks)
    assert bprr.place(profiles[::-1], model, concurrency=concurrency) == placement


@settings(max_examples=50)
@given(servers(), st.integers(1, 20), st.floats(0.01, 5))
def test_the_memory_limit_lets_every_block_be_covered(
    profiles: tuple[ServerProfile, ...], num_blocks: int, arrival_rate: float
) -> None:
    model = ModelSpec(num_blocks=num_blocks, block_bytes=0.5, slot_bytes=0.05)
    concurrency = bprr.reserved_concurrency(profiles, model, arrival_rate=arrival_rate, service_s=10)
    if concurrency > 1:
        assert bprr.place(profiles, model, concurrency=concurrency).missing(num_blocks) == ()


def test_a_route_costs_its_mean_service_time() -> None:
    placement = Placement({A: Span(0, 3), B: Span(2, 4)})
    profiles = [profile(A, 4), profile(B, 4, block_s=2)]
    plain = bprr.routes(placement, profiles, MODEL)
    near = bprr.routes(placement, profiles, MODEL, pair_s={(A, B): 0.25})
    route = plain.cheapest([0.0, 0.0])
    assert route is not None
    assert plain.cost_s(route) == 1 + 3 + 1 + 2
    assert near.cost_s(route) == 1 + 3 + 0.25 + 2


def test_waiting_lasts_until_enough_sessions_are_believed_to_have_ended() -> None:
    endings = [(10.0, 2), (12.0, 3), (20.0, 2)]
    assert bprr.expected_waiting_s(1, 1, endings, now_s=9.0) == 0
    assert bprr.expected_waiting_s(3, 1, endings, now_s=9.0) == 1
    assert bprr.expected_waiting_s(4, 1, endings, now_s=9.0) == 3
    assert bprr.expected_waiting_s(4, -2, endings, now_s=9.0) == 11
    assert bprr.expected_waiting_s(9, 1, endings, now_s=9.0) == math.inf
    assert bprr.expected_waiting_s(3, 1, endings, now_s=11.0) == 0


def test_the_papers_reservation_is_within_memory() -> None:
    profiles = [profile(PeerId(f"s{number:02}"), 40e9 if number < 4 else 20e9) for number in range(20)]
    limit = 36  # (480 - 1.32 * 90) / (0.11 * 90) = 36.48, in GB
    assert bprr.reserved_concurrency(profiles, BLOOM, arrival_rate=100, service_s=100) == limit
