"""The budget of the cache, and what sessions may do with what they reserved."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import A, B, C

from chainserve.errors import CacheFullError, StepError
from chainserve.models.cache import KVCache
from chainserve.protocol.messages import Step
from chainserve.types import SessionId, Span

SPAN = Span(2, 6)


@torch.inference_mode()
def fill(cache: KVCache, session: SessionId, lane: int, tokens: list[int]) -> None:
    """Cache one number per token in every block, as keys; values are their negatives."""
    batch = cache.begin([Step(session, lane, 0, len(tokens), 1)], SPAN)
    keys = torch.tensor(tokens, dtype=torch.float32).view(1, 1, -1, 1)
    for block in SPAN:
        batch.update(keys + block, -keys - block, block)
    batch.commit()


@torch.inference_mode()
def cached(cache: KVCache, session: SessionId, lane: int, block: int) -> list[int]:
    """What a block's attention would see before the next token."""
    length = cache.length(session, lane)
    new = torch.zeros(1, 1, 1, 1)
    batch = cache.begin([Step(session, lane, length, 1, 1)], SPAN)
    keys, values = batch.update(new, new, block)
    assert torch.equal(keys.parts[0], -values.parts[0])
    return [int(key) - block for key in keys.parts[0].flatten()[:length]]


def test_a_session_costs_its_lanes_times_its_tokens_and_gives_them_back() -> None:
    cache = KVCache(SPAN, budget_tokens=100)
    cache.reserve(A, SPAN, num_lanes=3, max_tokens=20)
    assert cache.free_tokens == 40
    with pytest.raises(CacheFullError, match="41 tokens is needed, 40 are free") as caught:
        cache.reserve(B, SPAN, num_lanes=1, max_tokens=41)
    assert (caught.value.needed_tokens, caught.value.free_tokens) == (41, 40)
    cache.reserve(B, SPAN, num_lanes=1, max_tokens=40)
    assert cache.free_tokens == 0
    cache.release(A)
    cache.release(A)
    assert cache.free_tokens == 60
    cache.check()


def test_a_session_over_fewer_blocks_costs_less() -> None:
    cache = KVCache(SPAN, budget_tokens=100)
    cache.reserve(A, Span(3, 4), num_lanes=1, max_tokens=100)
    assert cache.free_tokens == 75
    cache.reserve(B, Span(4, 6), num_lanes=1, max_tokens=150)
    assert cache.free_tokens == 0
    cache.check()


@pytest.mark.parametrize(
    ("span", "num_lanes", "max_tokens"),
    [(Span(0, 3), 1, 1), (Span(5, 7), 1, 1), (SPAN, 0, 1), (SPAN, 1, 0), (SPAN, -1, -1)],
)
def test_a_reservation_that_makes_no_sense_is_refused(span: Span, num_lanes: int, max_tokens: int) -> None:
    cache = KVCache(SPAN, budget_tokens=100)
    with pytest.raises(StepError):
        cache.reserve(A, span, num_lanes=num_lanes, max_tokens=max_tokens)
    assert cache.free_tokens == 100


def test_a_session_reserves_once() -> None:
    cache = KVCache(SPAN, budget_tokens=100)
    cache.reserve(A, SPAN, num_lanes=1, max_tokens=10)
    with pytest.raises(StepError, match="already"):
        cache.reserve(A, SPAN, num_lanes=1, max_tokens=10)
    assert cache.free_tokens == 90


@torch.inference_mode()
def test_a_batch_holds_each_sequence_apart() -> None:
    cache = KVCache(SPAN, budget_tokens=100)
    for session in (A, B):
        cache.reserve(session, SPAN, num_lanes=2, max_tokens=10)
    fill(cache, A, 0, [1, 2])
    fill(cache, B, 1, [7])
    batch = cache.begin([Step(B, 1, 1, 2, 1), Step(A, 0, 2, 1, 1)], SPAN)
    new = torch.tensor([8.0, 9.0, 3.0]).view(1, 1, 3, 1)
    keys, _ = batch.update(new, new, 2)
    assert [part.flatten().tolist() for part in keys.parts] == [[9, 8, 9], [3, 4, 3]]
    assert keys.num_new == [2, 1]


def test_tokens_of_a_pass_that_did_not_complete_are_not_cached() -> None:
    cache = KVCache(SPAN, budget_tokens=100)
    cache.reserve(A, SPAN, num_lanes=1, max_tokens=10)
    fill(cache, A, 0, [1, 2, 3])
    cache.begin([Step(A, 0, 2, 4, 1)], SPAN)
    assert cache.length(A, 0) == 2
    cache.check()


def test_truncated_tokens_are_forgotten() -> None:
    cache = KVCache(SPAN, budget_tokens=100)
    cache.reserve(A, SPAN, num_lanes=1, max_tokens=10)
    fill(cache, A, 0, [1, 2, 3, 4])
    cache.truncate(A, 0, 2)
    assert cached(cache, A, 0, 3) == [1, 2]
    for length in (3, -1):
        with pytest.raises(StepError, match="cannot be cut"):
            cache.truncate(A, 0, length)


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=3))
def test_any_reordering_gives_each_lane_what_its_source_had(reorderings: list[list[int]]) -> None:
    cache = KVCache(SPAN, budget_tokens=100)
    cache.reserve(A, SPAN, num_lanes=4, max_tokens=10)
    expected = [[], [10], [20, 21], [30, 31, 32]]
    for lane, tokens in enumerate(expected):
        if tokens:
            fill(cache, A, lane, tokens)
    for sources in reorderings:
        cache.reorder(A, sources)
        expected = [expected[source] for source in sources]
        cache.check()
        assert [[cached(cache, A, lane, block) for lane in range(4)] for block in SPAN] == [expected] * len(SPAN)


@pytest.mark.parametrize("sources", [[0], [0, 1, 2], [0, 2], [-1, 0]])
def test_a_reordering_that_names_no_lane_or_too_few_is_refused(sources: list[int]) -> None:
    cache = KVCache(SPAN, budget_tokens=100)
    cache.reserve(A, SPAN, num_lanes=2, max_tokens=10)
    fill(cache, A, 0, [1])
    with pytest.raises(StepError, match="lanes"):
        cache.reorder(A, sources)
    assert [cache.length(A, lane) for lane in range(2)] == [1, 0]


def test_with_less_room_nobody_loses_what_is_reserved_and_nobody_new_comes() -> None:
    cache = KVCache(SPAN, budget_tokens=100)
    cache.reserve(A, SPAN, num_lanes=1, max_tokens=30)
    cache.reserve(B, Span(2, 4), num_lanes=1, max_tokens=20)
    assert cache.reserved == 4 * 30 + 2 * 20
    cache.resize(SPAN, budget_tokens=35)
    assert (cache.reserved, cache.free_tokens) == (160, 0)
    with pytest.raises(CacheFullError):
        cache.reserve(C, Span(2, 3), num_lanes=1, max_tokens=1)
    fill(cache, A, 0, [1, 2, 3])
    assert cached(cache, A, 0, 5) == [1, 2, 3]
    cache.release(B)
    assert (cache.reserved, cache.free_tokens) == (120, 5)
    cache.reserve(C, SPAN, num_lanes=1, max_tokens=5)
    cache.resize(SPAN, budget_tokens=100)
    assert cache.free_tokens == 65
    cache.check()


def test_sessions_stay_in_the_blocks_they_reserved_when_others_are_served() -> None:
    cache = KVCache(SPAN, budget_tokens=100)
    cache.reserve(A, SPAN, num_lanes=1, max_tokens=10)
    fill(cache, A, 0, [1, 2])
    cache.resize(Span(4, 9), budget_tokens=20)
    assert cache.free_tokens == (5 * 20 - 4 * 10) // 5
    assert cached(cache, A, 0, 2) == [1, 2]
    with pytest.raises(StepError, match="asks for blocks 2:6, this cache serves 4:9"):
        cache.reserve(B, SPAN, num_lanes=1, max_tokens=1)
    cache.reserve(B, Span(4, 9), num_lanes=1, max_tokens=12)
    assert cache.free_tokens == 0
    cache.check()


def test_without_blocks_there_is_no_room_for_anything() -> None:
    cache = KVCache(None, budget_tokens=0)
    assert (cache.free_tokens, cache.reserved) == (0, 0)
    with pytest.raises(StepError, match="asks for blocks 2:6, this cache serves none"):
        cache.reserve(A, SPAN, num_lanes=1, max_tokens=1)
    cache.resize(SPAN, budget_tokens=10)
    cache.reserve(A, SPAN, num_lanes=1, max_tokens=10)
    cache.resize(None, budget_tokens=10)
    assert (cache.free_tokens, cache.reserved) == (0, 40)
    cache.release(A)
    assert cache.reserved == 0
    cache.check()


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("resize"), st.integers(0, 5), st.integers(0, 40)),
            st.tuples(st.just("reserve"), st.integers(0, 5), st.integers(1, 40)),
            st.tuples(st.just("release"), st.integers(0, 9), st.just(0)),
        ),
        max_size=20,
    )
)
def test_new_reservations_never_exceed_the_room_there_is(changes: list[tuple[str, int, int]]) -> None:
    cache, costs = KVCache(None, budget_tokens=0), dict[SessionId, int]()
    for number, (what, size, tokens) in enumerate(changes):
        if what == "resize":
            cache.resize(Span(2, 2 + size) if size else None, budget_tokens=tokens)
        elif what == "release":
            session = SessionId(size.to_bytes(16, "big"))
            cache.release(session)
            costs.pop(session, None)
        else:
            session, free = SessionId(number.to_bytes(16, "big")), cache.free_tokens
            try:
                cache.reserve(session, Span(2, 3 + size), num_lanes=1, max_tokens=tokens)
            except (CacheFullError, StepError):
                assert cache.span is None or not cache.span.covers(Span(2, 3 + size)) or tokens > free
            else:
                costs[session] = (1 + size) * tokens
                assert cache.span is not None
                assert sum(costs.values()) <= cache.budget_tokens * len(cache.span)
        assert cache.reserved == sum(costs.values())
        cache.check()


def test_unknown_sessions_are_named() -> None:
    cache = KVCache(SPAN, budget_tokens=100)
    with pytest.raises(StepError, match=f"session {C.hex()[:8]} has no cache"):
        cache.length(C, 0)
    with pytest.raises(StepError, match="has no cache"):
        cache.reorder(C, [0])
