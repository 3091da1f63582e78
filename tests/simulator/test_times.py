"""Service times: from sizes and from tokens."""

import numpy as np
import pytest

from chainserve.planning.times import BlockTimes, ServerTimes
from chainserve.planning.values import PlannedChain
from chainserve.simulator.times import by_size, by_tokens, route_by_size, route_by_tokens
from chainserve.simulator.workloads import make_requests
from chainserve.types import Chain, Hop, PeerId, Span

A, B = PeerId("a"), PeerId("b")
SERVERS = {
    A: ServerTimes(hop_s=0.03, block=BlockTimes(overhead_s=0.001, prefill_s=0.00005, decode_s=0.002)),
    B: ServerTimes(hop_s=0.05, block=BlockTimes(overhead_s=0.002, prefill_s=0.00007, decode_s=0.001)),
}
CHAIN = Chain((Hop(A, Span(0, 2)), Hop(B, Span(2, 5))))
REQUESTS = make_requests([0, 1, 2], input_tokens=[1, 10, 2000], output_tokens=[1, 5, 20], size=[1, 0.5, 2])


def test_a_chain_takes_what_its_hops_take() -> None:
    planned = by_tokens(REQUESTS, [PlannedChain(CHAIN, 1, 9.0)], servers=SERVERS)
    on_route = route_by_tokens(REQUESTS, SERVERS)
    for request, (inputs, outputs, size) in enumerate([(1, 1, 1), (10, 5, 0.5), (2000, 20, 2)]):
        by_hand_s = size * (
            SERVERS[A].span_s(2, input_tokens=inputs, output_tokens=outputs)
            + SERVERS[B].span_s(3, input_tokens=inputs, output_tokens=outputs)
        )
        assert planned(request, 0) == pytest.approx(by_hand_s)
        assert on_route(request, CHAIN) == pytest.approx(by_hand_s)


def test_at_the_papers_level_only_the_size_counts() -> None:
    profiles = {peer: server.profile(peer, 1e9, input_tokens=9, output_tokens=3) for peer, server in SERVERS.items()}
    mean_s = profiles[A].span_s(2) + profiles[B].span_s(3)
    planned = by_size(REQUESTS, [PlannedChain(CHAIN, 1, mean_s)])
    on_route = route_by_size(REQUESTS, profiles)
    expected = pytest.approx(np.array([1, 0.5, 2]) * mean_s)
    assert [planned(request, 0) for request in range(3)] == expected
    assert [on_route(request, CHAIN) for request in range(3)] == expected
