"""PETALS' placement and routing: small cases by hand, and what always holds."""

import math

import numpy as np
import pytest
from examples import BLOOM, models, paper_servers, servers
from hypothesis import given, settings
from hypothesis import strategies as st

from chainserve.errors import NoChainError
from chainserve.planning.baselines import petals
from chainserve.planning.baselines.windows import blocks_with_cache
from chainserve.planning.values import ModelSpec, Placement, ServerProfile
from chainserve.types import PeerId, Span

A, B, C, D = (PeerId(letter) for letter in "ABCD")


def profile(peer: PeerId, memory: float, *, block_s: float = 1.0) -> ServerProfile:
    return ServerProfile(peer=peer, memory_bytes=memory, communication_s=1, block_s=block_s)


def test_throughput_is_the_smaller_of_network_and_device() -> None:
    assert petals.announced_throughput(30, 5) == 10
    assert petals.announced_throughput(30, 5, network_rate=4) == 4


def test_servers_fill_gaps_first_then_the_poorest_window() -> None:
    model = ModelSpec(num_blocks=4, block_bytes=1, slot_bytes=0.5)
    profiles = [profile(peer, 4) for peer in (A, B, C, D)]
    placement = petals.place(profiles, model, cache_slots=2, rng=np.random.default_rng(0))
    assert sorted(map(str, placement.spans.values())) == ["0:2", "0:2", "2:4", "2:4"]


def test_a_server_without_room_for_a_block_and_its_cache_holds_none() -> None:
    model = ModelSpec(num_blocks=4, block_bytes=1, slot_bytes=0.5)
    assert len(petals.place([profile(A, 1.9)], model, cache_slots=2, rng=np.random.default_rng(0))) == 0


def test_given_rates_replace_those_of_the_profiles() -> None:
    model = ModelSpec(num_blocks=3, block_bytes=1, slot_bytes=1)
    profiles = [profile(peer, 2) for peer in (A, B, C, D)]
    kwargs = {"forward_rate": {A: 9.0, B: 2.0, C: 1.0, D: 1.0}, "network_rate": {A: 3.0, B: 9.0, C: 9.0, D: 9.0}}
    spans = petals.place(profiles, model, cache_slots=1, rng=np.random.default_rng(0), **kwargs).spans
    assert spans[C] == spans[D]  # the two slowest share a block: 3, 2 and 1 + 1
    for name in kwargs:
        with pytest.raises(ValueError, match=f"no {name} of B"):
            petals.place(profiles, model, cache_slots=1, rng=np.random.default_rng(0), **{name: {A: 1.0}})
        with pytest.raises(ValueError, match=f"{name} of A is 0"):
            petals.place(profiles, model, cache_slots=1, rng=np.random.default_rng(0), **{name: {A: 0.0}})


def test_a_client_tries_again_at_once_and_then_ever_later() -> None:
    assert [petals.retry_delay_s(number) for number in range(1, 8)] == [0, 1, 2, 4, 8, 16, 16]


THROUGHPUT = {A: 1.0, B: 1.0, C: 1.0, D: 1.0}


def moved(peer: PeerId, spans: dict[PeerId, Span], throughput: dict[PeerId, float] = THROUGHPUT) -> Span | None:
    return petals.better_span(peer, spans, throughput=throughput, num_blocks=4, rng=np.random.default_rng(0))


def test_a_server_moves_to_blocks_that_nobody_holds() -> None:
    spans = {A: Span(0, 2), B: Span(0, 2), C: Span(0, 2)}
    assert moved(A, spans) == Span(2, 4)


def test_a_server_moves_if_others_follow_and_all_gain_enough() -> None:
    spans = {A: Span(0, 2), B: Span(0, 2), C: Span(0, 2), D: Span(2, 4)}
    assert moved(A, spans) == Span(2, 4)  # the least is 1, it would be 2


def test_a_server_stays_where_the_gain_is_small() -> None:
    spans = {A: Span(0, 2), B: Span(0, 2), C: Span(2, 4)}
    assert moved(A, spans, {A: 0.3, B: 1.0, C: 1.0}) is None  # 1.0 / 1.0 after it; no better
    # 0.8 on the last blocks would become 1.0 with A there: 0.8 is not below 0.75.
    assert moved(A, spans, {A: 0.2, B: 1.0, C: 0.8}) is None
    assert moved(A, spans, {A: 0.3, B: 1.0, C: 0.7}) == Span(2, 4)  # 0.7 would become 1.0


def test_a_server_stays_in_its_favourite_place_and_where_only_it_holds_a_block() -> None:
    assert moved(C, {A: Span(0, 2), B: Span(0, 2), C: Span(2, 4)}) is None
    assert moved(D, {A: Span(0, 4), B: Span(0, 4), D: Span(1, 3)}) is None  # the first of the best would be 0:2
    assert moved(A, {A: Span(0, 2), B: Span(1, 3)}) is None  # some block is missing either way


def test_a_settled_swarm_has_nobody_who_moves() -> None:
    spans = {A: Span(0, 2), B: Span(0, 2), C: Span(0, 2), D: Span(0, 2)}
    placement = petals.settle(Placement(spans), THROUGHPUT, num_blocks=4, rng=np.random.default_rng(0))
    assert sorted(map(str, placement.spans.values())) == ["0:2", "0:2", "2:4", "2:4"]


@settings(max_examples=100)
@given(servers(), models(), st.floats(1, 4), st.integers(0, 99))
def test_placement_stays_within_memory_covers_what_it_can_and_follows_its_seed(
    profiles: tuple[ServerProfile, ...], model: ModelSpec, cache_slots: float, seed: int
) -> None:
    placement = petals.place(profiles, model, cache_slots=cache_slots, rng=np.random.default_rng(seed))
    sizes = {server.peer: blocks_with_cache(server, model, num_slots=cache_slots) for server in profiles}
    assert {peer: len(span) for peer, span in placement.spans.items()} == {
        peer: size for peer, size in sizes.items() if size
    }
    for server in profiles:
        if server.peer in placement:
            span = placement[server.peer]
            needed = model.weight_bytes(span) + cache_slots * len(span) * model.slot_bytes
            assert needed <= server.memory_bytes * (1 + 1e-8)
    assert (placement.missing(model.num_blocks) == ()) == (sum(sizes.values()) >= model.num_blocks)
    again = petals.place(profiles[::-1], model, cache_slots=cache_slots, rng=np.random.default_rng(seed))
    assert again == placement


@pytest.mark.parametrize("seed", range(3))
def test_the_papers_servers_are_covered_and_settled(seed: int) -> None:
    rng = np.random.default_rng(seed)
    profiles = paper_servers(20, share_high=0.2, rng=rng)
    placement = petals.place(profiles, BLOOM, cache_slots=2, rng=rng)
    assert placement.missing(70) == ()
    assert {len(placement[server.peer]) for server in profiles[:4]} == {25}  # floor(40 / (1.32 + 0.22))
    assert {len(placement[server.peer]) for server in profiles[4:]} == {12}


STEP_S = {A: 0.010, B: 0.010, C: 0.010}


def test_a_step_costs_half_round_trips_overheads_and_blocks() -> None:
    round_trips = {(None, A): 0.02, (A, B): 0.04, (None, B): 0.06}
    routes = petals.routes(
        Placement({A: Span(0, 2), B: Span(1, 4)}), 4, round_trip_s=round_trips, step_s={A: 0.001, B: 0.01}
    )
    route = routes.cheapest([0.0] * len(routes.hops))
    assert route is not None
    assert [str(hop.span) for hop in route.hops] == ["0:2", "2:4"]
    assert routes.cost_s(route) == pytest.approx(0.010 + 0.018 + 0.002 + 0.020 + 0.018 + 0.020 + 0.030)


def test_an_unknown_round_trip_counts_as_three_tenths_of_a_second() -> None:
    routes = petals.routes(Placement({A: Span(0, 4)}), 4, round_trip_s={}, step_s=STEP_S)
    route = routes.cheapest([0.0])
    assert route is not None
    assert routes.cost_s(route) == pytest.approx(0.15 + 0.018 + 0.04 + 0.15)


def test_cache_is_counted_for_the_whole_span() -> None:
    assert petals.seems_to_lack_cache(Span(2, 6), 3)
    assert not petals.seems_to_lack_cache(Span(2, 6), 4)


def test_a_lack_of_cache_outweighs_all_but_the_worst_links() -> None:
    routes = petals.routes(
        Placement({A: Span(0, 4), B: Span(0, 4)}), 4, round_trip_s={(None, A): 0.01, (None, B): 0.9}, step_s=STEP_S
    )
    extra_s = [petals.NO_CACHE_S if hop.peer == A else 0.0 for hop in routes.hops]
    near, far = routes.cheapest([0.0, 0.0]), routes.cheapest(extra_s)
    assert near is not None
    assert far is not None
    assert (near.head, far.head) == (A, B)


def test_routes_need_every_block() -> None:
    with pytest.raises(NoChainError):
        petals.routes(Placement({A: Span(0, 2)}), 4, round_trip_s={}, step_s=STEP_S)


@pytest.mark.parametrize("cache_slots", [0, -1, math.nan, math.inf])
def test_the_cache_allotted_is_positive(cache_slots: float) -> None:
    model = ModelSpec(num_blocks=4, block_bytes=1, slot_bytes=0.5)
    with pytest.raises(ValueError, match="cache_slots"):
        petals.place([profile(A, 4)], model, cache_slots=cache_slots, rng=np.random.default_rng(0))
