"""Sizes of a prompt's chunks."""

from dataclasses import replace

import pytest

from chainserve.planning.chunks import SIZES, along_chain, beside_decoding
from chainserve.planning.profile import MAX_BATCH_TOKENS, StepTimes

TIMES = StepTimes(
    forward_s=0.001, prefill=((16, 0.002), (1024, 0.1)), decode=((1, 0.002), (8, 0.004)), head=((1, 0.001), (8, 0.002))
)


@pytest.mark.parametrize("num_decoding", [1, 4, 8, 30])
def test_a_chunk_takes_at_most_twice_as_long_as_a_decode_round(num_decoding: int) -> None:
    size = beside_decoding(TIMES, num_blocks=10, num_decoding=num_decoding)
    most_s = 2 * TIMES.step_s(num_decoding, 0, num_blocks=10)
    assert TIMES.step_s(0, size, num_blocks=10) <= most_s
    assert size == SIZES[-1] or TIMES.step_s(0, 2 * size, num_blocks=10) > most_s


def test_where_even_the_smallest_chunk_is_too_long_it_is_taken() -> None:
    slow = StepTimes(
        forward_s=0.0, prefill=((16, 1.0), (1024, 9.0)), decode=((1, 0.01), (8, 0.01)), head=((1, 0.001), (8, 0.002))
    )
    assert beside_decoding(slow, num_blocks=10, num_decoding=1) == SIZES[0]


def test_alone_a_server_runs_as_much_as_it_can_at_once_and_a_chain_runs_chunks() -> None:
    assert along_chain(TIMES, num_blocks=10, num_tokens=2048, num_hops=1) == MAX_BATCH_TOKENS
    assert along_chain(TIMES, num_blocks=10, num_tokens=2048, num_hops=4) <= 128
    assert along_chain(TIMES, num_blocks=10, num_tokens=10, num_hops=4) >= 10


@pytest.mark.parametrize("num_tokens", [17, 100, 1500, 2048, 5000])
@pytest.mark.parametrize("num_hops", [2, 5])
def test_chunks_of_a_prompt_are_nearly_equal(num_tokens: int, num_hops: int) -> None:
    """As each turn takes as long as the largest: the last one is no remnant."""
    size = along_chain(TIMES, num_blocks=10, num_tokens=num_tokens, num_hops=num_hops)
    num_chunks = -(-num_tokens // size)
    assert size <= MAX_BATCH_TOKENS
    assert num_chunks == 1 or num_tokens - (num_chunks - 1) * size > size - SIZES[0] * num_chunks


def test_small_chunks_do_not_pay_for_what_each_takes_beside_the_blocks() -> None:
    steady = replace(
        TIMES, forward_s=0.0, prefill=((16, 0.0002), (1024, 0.0128))
    )  # of blocks alone the smallest are best
    assert along_chain(steady, num_blocks=10, num_tokens=2048, num_hops=2) > SIZES[0]


@pytest.mark.parametrize("num_hops", [2, 3, 4, 8])
def test_a_long_prompt_keeps_nearly_all_servers_of_a_chain_busy(num_hops: int) -> None:
    size = along_chain(TIMES, num_blocks=10, num_tokens=2048, num_hops=num_hops)
    chunk_s = TIMES.step_s(0, size, num_blocks=10)
    alone_s = 2 * TIMES.step_s(0, 1024, num_blocks=10)  # of one such server's share
    assert (2048 / size + num_hops - 1) * chunk_s < 1.6 * alone_s
