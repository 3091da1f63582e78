"""Seconds to the first token and tokens per second of a chain."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainserve.planning.allocation import allocate
from chainserve.planning.prediction import predict
from chainserve.planning.times import BlockTimes, ServerTimes
from chainserve.planning.values import ModelSpec, Placement
from chainserve.types import Chain, Hop, PeerId, Span

A, B, C = (PeerId(name) for name in "abc")
CHAIN = Chain((Hop(A, Span(0, 2)), Hop(B, Span(2, 5))))
SERVERS = {
    A: ServerTimes(hop_s=0.03, block=BlockTimes(overhead_s=0.001, prefill_s=0.00005, decode_s=0.002)),
    B: ServerTimes(hop_s=0.05, block=BlockTimes(overhead_s=0.002, prefill_s=0.00007, decode_s=0.001)),
}
SECONDS = st.floats(0, 1)
PAIRS = st.dictionaries(st.sampled_from([(A, B), (B, C), (C, B), (A, C)]), SECONDS)
TIMES = st.builds(
    ServerTimes,
    hop_s=SECONDS,
    block=st.builds(BlockTimes, overhead_s=st.floats(0.001, 1), prefill_s=SECONDS, decode_s=SECONDS),
)


def test_the_prompt_goes_once_and_each_further_token_once_more_through_the_chain() -> None:
    prediction = predict(CHAIN, SERVERS, input_tokens=1000)
    assert prediction.first_token_s == pytest.approx(0.03 + 2 * 0.051 + 0.05 + 3 * 0.072)
    assert prediction.token_s == pytest.approx(0.03 + 2 * 0.002 + 0.05 + 3 * 0.001)
    assert prediction.tokens_per_s == pytest.approx(1 / prediction.token_s)


def test_a_known_pair_has_its_own_way_and_the_head_keeps_that_of_the_client() -> None:
    plain, paired = (
        predict(CHAIN, SERVERS, input_tokens=10, pair_hop_s=pairs) for pairs in (None, {(A, B): 0.001, (B, A): 9.0})
    )
    assert plain.first_token_s - paired.first_token_s == pytest.approx(0.049)
    assert plain.token_s - paired.token_s == pytest.approx(0.049)


def test_a_prompt_takes_longer_over_a_slow_link_and_further_tokens_do_not() -> None:
    plain = predict(CHAIN, SERVERS, input_tokens=10)
    slow = predict(CHAIN, SERVERS, input_tokens=10, pair_prompt_s={(A, B): 0.7, (B, A): 9.0})
    assert slow.first_token_s - plain.first_token_s == pytest.approx(0.7)
    assert slow.token_s == plain.token_s


def test_every_token_comes_through_the_head_of_the_tail() -> None:
    plain = predict(CHAIN, SERVERS, input_tokens=10)
    with_heads = {A: replace(SERVERS[A], head_s=9.0), B: replace(SERVERS[B], head_s=0.25)}
    headed = predict(CHAIN, with_heads, input_tokens=10)
    assert headed.first_token_s - plain.first_token_s == pytest.approx(0.25)
    assert headed.token_s - plain.token_s == pytest.approx(0.25)


@settings(max_examples=100)
@given(
    times=st.tuples(TIMES, TIMES, TIMES),
    pair_hop_s=PAIRS,
    pair_prompt_s=PAIRS,
    input_tokens=st.integers(0, 100),
    output_tokens=st.integers(1, 100),
)
def test_first_token_and_further_tokens_add_up_to_the_service_time_of_planning(
    times: tuple[ServerTimes, ...],
    pair_hop_s: dict[tuple[PeerId, PeerId], float],
    pair_prompt_s: dict[tuple[PeerId, PeerId], float],
    input_tokens: int,
    output_tokens: int,
) -> None:
    servers = dict(zip((A, B, C), times, strict=True))
    profiles = [
        server.profile(peer, 100, input_tokens=input_tokens, output_tokens=output_tokens)
        for peer, server in servers.items()
    ]
    prompts = {pair: seconds for pair, seconds in pair_prompt_s.items() if pair in pair_hop_s}
    chains = allocate(
        profiles,
        ModelSpec(num_blocks=6, block_bytes=1, slot_bytes=1),
        Placement({A: Span(0, 3), B: Span(2, 5), C: Span(3, 6)}),
        pair_s={pair: seconds * output_tokens + prompts.get(pair, 0.0) for pair, seconds in pair_hop_s.items()},
    )
    assert chains
    for chain in chains:
        prediction = predict(
            chain.chain, servers, input_tokens=input_tokens, pair_hop_s=pair_hop_s, pair_prompt_s=prompts
        )
        whole_s = prediction.first_token_s + (output_tokens - 1) * prediction.token_s
        assert whole_s == pytest.approx(chain.service_s)


def test_tokens_that_take_no_time_come_infinitely_fast() -> None:
    free = ServerTimes(hop_s=0, block=BlockTimes(overhead_s=1, prefill_s=0, decode_s=0))
    prediction = predict(Chain((Hop(A, Span(0, 1)),)), {A: free}, input_tokens=1)
    assert (prediction.first_token_s, prediction.tokens_per_s) == (1, math.inf)


def test_a_negative_number_of_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="input_tokens is -1"):
        predict(CHAIN, SERVERS, input_tokens=-1)
