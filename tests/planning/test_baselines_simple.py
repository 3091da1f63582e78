"""Whole models on single servers, and random placement."""

import numpy as np
import pytest
from examples import WORKED_MODEL, WORKED_PROFILES, models, servers
from hypothesis import given, settings
from hypothesis import strategies as st

from chainserve.planning.baselines.simple import random_placement, whole_model_chains
from chainserve.planning.baselines.windows import blocks_with_cache
from chainserve.planning.values import ModelSpec, ServerProfile
from chainserve.types import PeerId, Span

A, B, C = PeerId("A"), PeerId("B"), PeerId("C")


def profile(peer: PeerId, memory: float, *, block_s: float = 1.0) -> ServerProfile:
    return ServerProfile(peer=peer, memory_bytes=memory, communication_s=1, block_s=block_s)


def test_servers_that_hold_the_model_and_a_session_are_chains_of_one() -> None:
    model = ModelSpec(num_blocks=4, block_bytes=1, slot_bytes=0.5)
    chains = whole_model_chains([profile(A, 5.9), profile(B, 8), profile(C, 9.9999999999, block_s=0.5)], model)
    assert [(chain.chain.head, chain.capacity, chain.service_s) for chain in chains] == [(C, 3, 3.0), (B, 2, 5.0)]
    assert chains[0].chain.hops[0].span == Span(0, 4)


def test_embedding_and_head_count_where_the_whole_model_is() -> None:
    model = ModelSpec(num_blocks=4, block_bytes=1, slot_bytes=0.5, embedding_bytes=1, head_bytes=2)
    assert [chain.capacity for chain in whole_model_chains([profile(A, 10)], model)] == [1]


def test_without_a_large_server_there_is_no_chain() -> None:
    assert whole_model_chains(WORKED_PROFILES, WORKED_MODEL) == ()


def test_groups_are_cut_as_soon_as_they_cover_the_model() -> None:
    model = ModelSpec(num_blocks=5, block_bytes=1, slot_bytes=0.1)
    rng = np.random.default_rng(0)
    profiles = [profile(PeerId(f"s{number}"), 2.2) for number in range(7)] + [profile(A, 1)]
    spans = random_placement(profiles, model, concurrency=1, rng=rng)
    assert A not in spans
    assert sorted(map(str, spans.spans.values())) == ["0:2", "0:2", "0:2", "2:4", "2:4", "3:5", "3:5"]


@settings(max_examples=100)
@given(servers(), models(), st.integers(1, 3), st.integers(0, 99))
def test_random_placement_stays_within_memory_and_covers_what_it_can(
    profiles: tuple[ServerProfile, ...], model: ModelSpec, concurrency: int, seed: int
) -> None:
    placement = random_placement(profiles, model, concurrency=concurrency, rng=np.random.default_rng(seed))
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
    again = random_placement(profiles[::-1], model, concurrency=concurrency, rng=np.random.default_rng(seed))
    assert again == placement


def test_no_session_is_no_concurrency() -> None:
    with pytest.raises(ValueError, match="concurrency is 0"):
        random_placement(WORKED_PROFILES, WORKED_MODEL, concurrency=0, rng=np.random.default_rng(0))
