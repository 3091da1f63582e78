"""Times of a block and a server, and the profile that planning sees of them."""

import pytest

from chainserve.planning.times import BlockTimes, ServerTimes
from chainserve.types import PeerId, Span

A = PeerId("a")
SERVER = ServerTimes(hop_s=0.03, block=BlockTimes(overhead_s=0.001, prefill_s=0.00005, decode_s=0.002))


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
    assert SERVER.span_s(2, input_tokens=2000, output_tokens=20) == pytest.approx(by_hand_s)


def test_planning_sees_the_mean_request() -> None:
    profile = SERVER.profile(A, 4e10, input_tokens=2000.5, output_tokens=20.25, pinned=Span(1, 3))
    assert profile.span_s(2) == pytest.approx(SERVER.span_s(2, input_tokens=2000.5, output_tokens=20.25))
    assert (profile.peer, profile.memory_bytes, profile.pinned) == (A, 4e10, Span(1, 3))


def test_times_cannot_be_negative() -> None:
    with pytest.raises(ValueError, match="decode_s is -1"):
        BlockTimes(overhead_s=0, prefill_s=0, decode_s=-1)
    with pytest.raises(ValueError, match="hop_s is nan"):
        ServerTimes(hop_s=float("nan"), block=BlockTimes(overhead_s=0, prefill_s=0, decode_s=0))
    with pytest.raises(ValueError, match="head_s is -1"):
        ServerTimes(hop_s=0, block=SERVER.block, head_s=-1)
    with pytest.raises(ValueError, match="flop_per_s is 0"):
        BlockTimes.from_hardware(overhead_s=0, flop_per_token=1, flop_per_s=0, block_bytes=1, bytes_per_s=1)
