"""Service times: from sizes, from tokens, and the profiles that planning sees of both."""

import numpy as np
import pytest

from chainserve.planning.values import PlannedChain
from chainserve.simulator.times import BlockTimes, ServerTimes, by_size, by_tokens, route_by_size, route_by_tokens
from chainserve.simulator.workloads import make_requests
from chainserve.types import Chain, Hop, PeerId, Span

A, B = PeerId("a"), PeerId("b")
SERVERS = {
    A: ServerTimes(hop_s=0.03, block=BlockTimes(overhead_s=0.001, prefill_s=0.00005, decode_s=0.002)),
    B: ServerTimes(hop_s=0.05, block=BlockTimes(overhead_s=0.002, prefill_s=0.00007, decode_s=0.001)),
}
CHAIN = Chain((Hop(A, Span(0, 2)), Hop(B, Span(2, 5))))
REQUESTS = make_requests([0, 1, 2], input_tokens=[1, 10, 2000], output_tokens=[1, 5, 20], size=[1, 0.5, 2])


def test_the_high_server_of_the_paper_takes_109_ms_per_block() -> None:
    """40 GB, 120 TFLOPS, 1.02 GB/ms on BLOOM-176B; the low one, 80 TFLOPS and 0.51 GB/ms, 175 ms."""
    per_block_s = [
        BlockTimes.from_hardware(
            overhead_s=0.001, flop_per_token=5e9, flop_per_s=flop_per_s, block_bytes=1.32e9, bytes_per_s=bytes_per_s
        ).request_s(2000, 20)
        for flop_per_s, bytes_per_s in [(120e12, 1.02e12), (80e12, 0.51e12)]
    ]
    assert per_block_s == pytest.approx([0.109, 0.175], abs=0.0006)


def test_a_request_is_one_message_per_output_token_and_its_blocks() -> None:
    by_hand_s = 20 * 0.03 + 2 * (0.001 + 0.00005 * 2000 + 0.002 * 19)
    assert SERVERS[A].span_s(2, input_tokens=2000, output_tokens=20) == pytest.approx(by_hand_s)


def test_planning_sees_the_mean_request() -> None:
    profile = SERVERS[A].profile(A, 4e10, input_tokens=2000.5, output_tokens=20.25, pinned=Span(1, 3))
    assert profile.span_s(2) == pytest.approx(SERVERS[A].span_s(2, input_tokens=2000.5, output_tokens=20.25))
    assert (profile.peer, profile.memory_bytes, profile.pinned) == (A, 4e10, Span(1, 3))


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


def test_times_cannot_be_negative() -> None:
    with pytest.raises(ValueError, match="decode_s is -1"):
        BlockTimes(overhead_s=0, prefill_s=0, decode_s=-1)
    with pytest.raises(ValueError, match="hop_s is nan"):
        ServerTimes(hop_s=float("nan"), block=BlockTimes(overhead_s=0, prefill_s=0, decode_s=0))
    with pytest.raises(ValueError, match="flop_per_s is 0"):
        BlockTimes.from_hardware(overhead_s=0, flop_per_token=1, flop_per_s=0, block_bytes=1, bytes_per_s=1)
