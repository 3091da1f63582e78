"""Pages of earlier prompts: what is adopted is what was computed, and the books hold whatever happens."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, A, B, TinyChain, embeddings, random_ids, random_model

from chainserve.errors import CacheFullError
from chainserve.models import cache as cache_module
from chainserve.models.cache import KVCache
from chainserve.protocol.messages import Step
from chainserve.protocol.pages import PAGE_TOKENS, page_hashes
from chainserve.types import SessionId, Span

SPAN = Span(2, 5)


@torch.inference_mode()
def run(cache: KVCache, session: SessionId, start: int, ids: list[int], span: Span = SPAN) -> list[int]:
    """Cache tokens from `start` on as keys, and their negatives as values; what the last block sees then."""
    batch = cache.begin([Step(session, 0, start, len(ids), 1)], span)
    new = torch.tensor(ids, dtype=torch.float32).view(1, 1, -1, 1)
    for block in span:
        keys, values = batch.update(new + block, -new - block, block)
        assert torch.equal(keys.parts[0], -values.parts[0])
    batch.commit()
    return [int(key) - block for key in keys.parts[0].flatten()]


def test_a_later_session_has_the_pages_of_an_earlier_one() -> None:
    cache = KVCache(SPAN, budget_tokens=200)
    ids = list(range(40))
    pages = page_hashes("m", ids)
    assert cache.reserve(A, SPAN, num_lanes=1, max_tokens=50, prefix=pages) == 0
    run(cache, A, 0, ids)
    cache.keep(A, pages)
    cache.release(A)
    assert cache.free_tokens == 200
    assert cache.kept == 2 * PAGE_TOKENS * len(SPAN)
    assert cache.reserve(B, SPAN, num_lanes=1, max_tokens=60, prefix=page_hashes("m", [*ids[:36], 7])) == 32
    assert run(cache, B, 32, [90, 91]) == [*ids[:32], 90, 91]
    assert run(cache, B, 20, [80]) == [*ids[:20], 80]
    cache.check()


def test_fewer_blocks_are_enough_and_others_are_missed() -> None:
    cache = KVCache(SPAN, budget_tokens=200)
    ids = list(range(16))
    cache.reserve(A, Span(2, 4), num_lanes=1, max_tokens=16)
    run(cache, A, 0, ids, Span(2, 4))
    cache.keep(A, page_hashes("m", ids))
    assert cache.reserve(B, Span(3, 4), num_lanes=1, max_tokens=20, prefix=page_hashes("m", ids)) == 16
    cache.release(B)
    assert cache.reserve(B, SPAN, num_lanes=1, max_tokens=20, prefix=page_hashes("m", ids)) == 0
    cache.check()


def test_kept_pages_make_way_for_sessions() -> None:
    cache = KVCache(SPAN, budget_tokens=64)
    ids = list(range(32))
    cache.reserve(A, SPAN, num_lanes=1, max_tokens=32)
    run(cache, A, 0, ids)
    cache.keep(A, page_hashes("m", ids))
    cache.release(A)
    cache.reserve(B, SPAN, num_lanes=1, max_tokens=48)
    assert cache.kept == PAGE_TOKENS * len(SPAN)
    assert cache.reserve(A, SPAN, num_lanes=1, max_tokens=16, prefix=page_hashes("m", ids)) == 0  # no room for both
    cache.check()


def test_pages_go_with_their_blocks() -> None:
    cache = KVCache(SPAN, budget_tokens=64)
    ids = list(range(16))
    cache.reserve(A, SPAN, num_lanes=1, max_tokens=16)
    run(cache, A, 0, ids)
    cache.keep(A, page_hashes("m", ids))
    cache.release(A)
    cache.resize(Span(3, 6), budget_tokens=64)
    assert cache.kept == 2 * PAGE_TOKENS
    cache.resize(None, budget_tokens=0)
    assert cache.kept == 0
    cache.check()


def allocated(cache: KVCache) -> int:
    """What tensors of the cache take, in tokens times blocks: here a key and a value are one float32 each."""
    lanes = [lane for reservation in cache._sessions.values() for lane in reservation.lanes]
    pairs = [slot for lane in lanes for slot in lane.slots.values()]
    pages = {page for lane in lanes for pages in lane.adopted.values() for page in pages}
    pairs += [page.states for page in pages.union(cache._store._pages.values()) if page.states]
    return sum(tensor.untyped_storage().nbytes() for pair in pairs for tensor in pair) // 8


@settings(deadline=None)  # the first calls into torch take long
@given(st.integers(0, 10**6))
def test_whatever_happens_the_books_hold_and_pages_are_what_their_hashes_say(seed: int) -> None:
    rng = random.Random(seed)
    budget = rng.choice([64, 100, 200])
    cache = KVCache(SPAN, budget_tokens=budget)
    prompts = [[rng.randrange(50) for _ in range(rng.randrange(17, 60))] for _ in range(3)]
    known: dict[SessionId, tuple[Span, list[int], list[int]]] = {}  # blocks, tokens to run, those cached
    for number in range(40):
        action = rng.choice(["open", "run", "run", "keep", "release", "resize"])
        if action == "open":
            session, ids = SessionId(number.to_bytes(16, "big")), list(rng.choice(prompts))
            span = rng.choice([SPAN, Span(3, 5), Span(2, 3)])
            if cache.span is None or not cache.span.covers(span):
                continue
            try:
                adopted = cache.reserve(
                    session, span, num_lanes=1, max_tokens=len(ids) + 5, prefix=page_hashes("m", ids[:-1])
                )
            except CacheFullError:
                continue
            assert adopted % PAGE_TOKENS == 0
            known[session] = span, ids, ids[:adopted]
        elif action == "resize":
            cache.resize(rng.choice([SPAN, Span(1, 5)]), budget_tokens=rng.choice([budget, budget // 2]))
        elif known:
            session = rng.choice(list(known))
            span, ids, done = known[session]
            if action == "run" and len(done) < len(ids):
                start = rng.choice([len(done), max(0, len(done) - 3)])
                new = ids[start : start + rng.randrange(1, 20)]
                assert run(cache, session, start, new, span) == ids[: start + len(new)]
                known[session] = span, ids, ids[: start + len(new)]
            elif action == "keep":
                cache.keep(session, page_hashes("m", done))
            elif action == "release":
                cache.release(session)
                del known[session]
        cache.check()
        assert cache.reserved == sum(len(span) * (len(ids) + 5) for span, ids, _ in known.values())
        room = cache.budget_tokens * len(cache.span) if cache.span else 0
        assert allocated(cache) <= max(room, cache.reserved + cache._store.pinned_cost)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_outputs_behind_adopted_pages_are_what_they_are_without(family: str) -> None:
    model = random_model(FAMILIES[family])
    chain = TinyChain(model)
    ids = random_ids(40, seed=7)
    hidden, pages = embeddings(model, ids), page_hashes("m", ids.flatten().tolist())
    chain.open(A)
    (whole,) = chain.run((A, 0, hidden))
    for runner in chain.runners:
        runner.cache.keep(A, pages)
        adopted = runner.cache.reserve(B, runner.span, num_lanes=1, max_tokens=64, prefix=pages)
        assert adopted == 32
    (rest,) = chain.run((B, 32, hidden[32:]))
    assert (rest - whole[32:]).abs().max() <= 3e-5 * whole.abs().max()


@pytest.mark.parametrize("fails", [False, True])
def test_pages_that_are_being_copied_make_way_for_sessions(monkeypatch: pytest.MonkeyPatch, *, fails: bool) -> None:
    cache = KVCache(SPAN, budget_tokens=64)
    tokens = list(range(32))
    cache.reserve(A, SPAN, num_lanes=1, max_tokens=32)
    run(cache, A, 0, tokens, SPAN)
    copied = cache_module.copy_page

    def copy_while_others_come(
        slot: tuple[torch.Tensor, torch.Tensor], index: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if cache.length(A, 0) and B not in cache._sessions:
            cache.reserve(B, SPAN, num_lanes=1, max_tokens=32, prefix=page_hashes("m", tokens))
            assert cache.length(B, 0) == 0  # nobody adopts what is not there yet
        if fails:
            raise RuntimeError("out of memory")
        return copied(slot, index)

    monkeypatch.setattr(cache_module, "copy_page", copy_while_others_come)
    try:
        cache.keep(A, page_hashes("m", tokens))
    except RuntimeError:
        assert fails
    assert (cache.kept, cache.free_tokens) == (0, 0)
    cache.check()


def test_pages_somebody_waits_for_go_with_their_blocks_once_they_are_copied() -> None:
    cache = KVCache(SPAN, budget_tokens=200)
    tokens = list(range(20))
    cache.reserve(A, SPAN, num_lanes=1, max_tokens=20)
    run(cache, A, 0, tokens, SPAN)
    cache.keep(A, page_hashes("m", tokens))
    assert cache.reserve(B, SPAN, num_lanes=1, max_tokens=20, prefix=page_hashes("m", tokens)) == 16
    cache.resize(None, budget_tokens=0)
    assert cache.kept == 16 * len(SPAN)
    cache.check()
    assert run(cache, B, 16, tokens[16:], SPAN) == tokens
    assert cache.kept == 0
    cache.check()
