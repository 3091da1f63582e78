"""PETALS' clients under the virtual clock: who goes where, and who has to try again."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainserve.planning.baselines import petals
from chainserve.planning.values import ModelSpec, Placement, ServerProfile
from chainserve.simulator.engine import Outcome, run
from chainserve.simulator.petals import PetalsScheduler
from chainserve.simulator.times import route_by_size
from chainserve.simulator.workloads import Requests
from chainserve.types import Chain, PeerId, Span

A, B = PeerId("A"), PeerId("B")
SERVICE_S = 10.0
REPLICAS = Placement({A: Span(0, 4), B: Span(0, 4)})


def requests(arrival_s: Sequence[float], size: Sequence[float] | None = None) -> Requests:
    ones = np.ones(len(arrival_s))
    return Requests(
        arrival_s=np.array(arrival_s),
        input_tokens=ones,
        output_tokens=ones,
        size=ones if size is None else np.array(size),
    )


def outcome(
    arrival_s: Sequence[float], placement: Placement, num_sessions: int, **options: float
) -> tuple[Outcome, list[Chain]]:
    """Run sessions of SERVICE_S seconds over servers that hold `num_sessions` each; the routes in order of start."""
    taken: list[Chain] = []

    def service_s(request: int, route: Chain) -> float:
        taken.append(route)
        return SERVICE_S

    routes = petals.routes(placement, 4, round_trip_s={}, step_s=dict.fromkeys(placement, 0.01))
    slots = {peer: num_sessions * len(span) for peer, span in placement.spans.items()}
    scheduler = PetalsScheduler(
        placement, routes, slots=slots, service_s=service_s, rng=np.random.default_rng(0), **options
    )
    return run(requests(arrival_s), scheduler), taken


def test_the_next_try_comes_later_and_later() -> None:
    assert [petals.retry_delay_s(num_failures) for num_failures in range(1, 9)] == [0, 1, 2, 4, 8, 16, 16, 16]


def test_a_session_that_finds_no_cache_fails_and_tries_again() -> None:
    result, _ = outcome([0, 0.5], Placement({A: Span(0, 4)}), 1)
    assert result.start_s.tolist() == [0, 15.5]  # tried at 0.5, 0.5, 1.5, 3.5 and 7.5, though A was free at 10


def test_of_two_equal_replicas_one_takes_nearly_all() -> None:
    arrival_s = np.random.default_rng(1).exponential(3, 98).cumsum().tolist()
    _, taken = outcome(arrival_s, REPLICAS, 6)
    num_sessions = Counter(route.head for route in taken)
    assert num_sessions[A] >= 90
    assert num_sessions.total() == 98


def test_a_server_without_room_is_left_out_of_the_next_try() -> None:
    result, taken = outcome([0, 0.5], REPLICAS, 1)
    assert result.start_s.tolist() == [0, 0.5]
    assert [route.head for route in taken] == [A, B]


def test_without_bans_only_a_new_announcement_leads_elsewhere() -> None:
    result, taken = outcome([0, 0.5], REPLICAS, 1, banned_for_s=0, announced_every_s=2)
    assert [route.head for route in taken] == [A, B]
    assert result.start_s[1] in (1.5, 3.5)
    # Announced at 76 s for the first time (this seed): too late.
    result, taken = outcome([0, 0.5], REPLICAS, 1, banned_for_s=0)
    assert [route.head for route in taken] == [A, A]
    assert result.start_s[1] == 15.5


def test_what_was_announced_as_full_is_announced_as_free_again() -> None:
    _, taken = outcome([0, 5, 30], REPLICAS, 1, announced_every_s=2)
    assert [route.head for route in taken] == [A, B, A]


def test_a_route_over_two_servers_takes_cache_on_both_or_on_none() -> None:
    placement = Placement({A: Span(0, 2), B: Span(2, 4)})
    result, taken = outcome([0, 0, 0], placement, 2)
    assert result.start_s.tolist() == [0, 0, 15]
    assert {str(route) for route in taken} == {"A[0:2] -> B[2:4]"}


def test_a_server_that_no_session_fits_is_refused() -> None:
    with pytest.raises(ValueError, match="A has 0 block-slots for its 4 blocks"):
        outcome([0], REPLICAS, 0)
    with pytest.raises(ValueError, match="announced_every_s"):
        outcome([0], REPLICAS, 1, announced_every_s=0)
    with pytest.raises(ValueError, match="banned_for_s"):
        outcome([0], REPLICAS, 1, banned_for_s=-1)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(3, 12), st.floats(0.1, 2)), min_size=3, max_size=6),
    st.integers(0, 99),
    st.floats(0.05, 2),
)
def test_every_request_finishes_within_the_cache_and_by_the_seed(
    kinds: list[tuple[float, float]], seed: int, rate: float
) -> None:
    model = ModelSpec(num_blocks=5, block_bytes=1, slot_bytes=0.25)
    profiles = {
        PeerId(f"s{number}"): ServerProfile(
            peer=PeerId(f"s{number}"), memory_bytes=memory, communication_s=0.5, block_s=block_s
        )
        for number, (memory, block_s) in enumerate(kinds)
    }
    rng = np.random.default_rng(seed)
    arrivals = requests(rng.exponential(1 / rate, 60).cumsum().tolist(), rng.exponential(1, 60).tolist())
    placement = petals.place(list(profiles.values()), model, cache_slots=2, rng=rng)
    slots = {
        peer: int((profiles[peer].memory_bytes - len(span)) / 0.25 + 1e-9) for peer, span in placement.spans.items()
    }
    routes = petals.routes(
        placement, 5, round_trip_s={}, step_s={peer: profiles[peer].block_s / 20 for peer in placement}
    )

    def simulate() -> Outcome:
        scheduler = PetalsScheduler(
            placement,
            routes,
            slots=slots,
            service_s=route_by_size(arrivals, profiles),
            rng=np.random.default_rng(seed),
        )
        return run(arrivals, scheduler)

    result = simulate()
    assert not result.is_refused.any()
    assert (result.waiting_s >= 0).all()
    assert simulate().finish_s.tolist() == result.finish_s.tolist()
