"""BPRR under the virtual clock: where requests go by what is believed, and when they start by what is true."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainserve.planning.baselines import bprr
from chainserve.planning.values import ModelSpec, Placement, ServerProfile
from chainserve.simulator.bprr import BprrScheduler
from chainserve.simulator.engine import InvariantError, Outcome, run
from chainserve.simulator.times import route_by_size
from chainserve.simulator.workloads import Requests
from chainserve.types import Chain, PeerId, Span

A, B, C = PeerId("A"), PeerId("B"), PeerId("C")
MODEL = ModelSpec(num_blocks=4, block_bytes=1, slot_bytes=0.25)


def profile(peer: PeerId, block_s: float, memory: float = 100) -> ServerProfile:
    return ServerProfile(peer=peer, memory_bytes=memory, communication_s=0, block_s=block_s)


def simulate(
    arrivals: Sequence[tuple[float, float]],
    placement: Placement,
    profiles: Sequence[ServerProfile],
    *,
    slots: Mapping[PeerId, int],
) -> tuple[Outcome, dict[int, Chain]]:
    """Run requests given as (arrival, size); also the route of each."""
    arrival_s, size = zip(*arrivals, strict=True)
    ones = np.ones(len(size))
    requests = Requests(arrival_s=np.array(arrival_s), input_tokens=ones, output_tokens=ones, size=np.array(size))
    route_s = route_by_size(requests, {server.peer: server for server in profiles})
    taken: dict[int, Chain] = {}

    def service_s(request: int, route: Chain) -> float:
        taken[request] = route
        return route_s(request, route)

    routes = bprr.routes(placement, profiles, MODEL)
    return run(requests, BprrScheduler(placement, routes, slots=slots, service_s=service_s)), taken


REPLICAS = Placement({A: Span(0, 4), B: Span(0, 4)})
FAST_AND_SLOW = [profile(A, 1.0), profile(B, 2.25)]  # 4 s and 9 s
ONE_SESSION = {A: 4, B: 4}


def test_a_request_waits_for_a_fast_server_until_a_slow_one_is_done_sooner() -> None:
    result, taken = simulate([(0, 1), (1, 1), (2, 1)], REPLICAS, FAST_AND_SLOW, slots=ONE_SESSION)
    # At 1, A is believed free in 3 s: 3 + 4 < 9. At 2, in 6 s: 6 + 4 > 9.
    assert [taken[request].head for request in range(3)] == [A, A, B]
    assert result.start_s.tolist() == [0, 4, 2]


def test_a_belief_is_not_the_truth() -> None:
    result, taken = simulate([(0, 3), (5, 1)], REPLICAS, FAST_AND_SLOW, slots=ONE_SESSION)
    assert [taken[request].head for request in range(2)] == [A, A]  # A was to be free at 4
    assert result.start_s.tolist() == [0, 12]
    result, taken = simulate([(0, 0.1), (0.5, 1)], REPLICAS, FAST_AND_SLOW, slots=ONE_SESSION)
    assert result.start_s.tolist() == [0, 0.5]  # sooner than believed


def test_nobody_is_overtaken_at_a_shared_server() -> None:
    placement = Placement({A: Span(0, 2), B: Span(0, 2), C: Span(2, 4)})
    profiles = [profile(A, 1.0), profile(B, 1.1), profile(C, 1.0)]
    arrivals = [(0, 10), (0.1, 1), (0.2, 1), (5, 1)]
    result, taken = simulate(arrivals, placement, profiles, slots={A: 2, B: 2, C: 4})
    assert [taken[request].head for request in range(4)] == [A, B, A, B]
    # A is taken until 40, so the third waits. The fourth finds room on B and C from 5 on, but the third is first at C.
    assert result.start_s.tolist() == [0, 0.1, 40, 40]


def test_those_behind_start_with_the_one_in_front() -> None:
    result, _ = simulate(
        [(0, 1), (0, 1), (0.5, 1), (0.5, 1)], Placement({A: Span(0, 4)}), [profile(A, 1)], slots={A: 8}
    )
    assert result.start_s.tolist() == [0, 0, 4, 4]


def test_a_server_that_no_session_fits_is_refused_and_nothing_wakes() -> None:
    with pytest.raises(ValueError, match="A has 3 block-slots for its 4 blocks"):
        simulate([(0, 1)], REPLICAS, FAST_AND_SLOW, slots={A: 3, B: 4})
    routes = bprr.routes(REPLICAS, FAST_AND_SLOW, MODEL)
    scheduler = BprrScheduler(REPLICAS, routes, slots=ONE_SESSION, service_s=lambda request, route: 1.0)
    with pytest.raises(InvariantError, match="request 7 is woken"):
        scheduler.wake(7)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(3, 12), st.floats(0.1, 2)), min_size=3, max_size=6),
    st.integers(0, 99),
    st.floats(0.05, 2),
)
def test_every_request_finishes_within_the_cache_and_in_order_at_each_server(
    kinds: list[tuple[float, float]], seed: int, rate: float
) -> None:
    profiles = [profile(PeerId(f"s{number}"), block_s, memory) for number, (memory, block_s) in enumerate(kinds)]
    placement = bprr.place(profiles, MODEL, concurrency=2)
    memory = {server.peer: server.memory_bytes for server in profiles}
    slots = {peer: int((memory[peer] - len(span)) / 0.25 + 1e-9) for peer, span in placement.spans.items()}
    rng = np.random.default_rng(seed)
    arrivals = list(zip(rng.exponential(1 / rate, 60).cumsum().tolist(), rng.exponential(1, 60).tolist(), strict=True))
    result, taken = simulate(arrivals, placement, profiles, slots=slots)
    assert not result.is_refused.any()
    for peer in placement:
        starts = [result.start_s[request] for request in range(60) if peer in {hop.peer for hop in taken[request].hops}]
        assert starts == sorted(starts)
    again, _ = simulate(arrivals, placement, profiles, slots=slots)
    assert again.finish_s.tolist() == result.finish_s.tolist()
