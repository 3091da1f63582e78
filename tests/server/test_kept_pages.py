"""Pages that are certain: full, and before the last step's start."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainserve.protocol.messages import Step
from chainserve.protocol.pages import PAGE_TOKENS, page_hashes
from chainserve.types import SessionId
from chainserve_server.kept_pages import CertainPages

ID = SessionId(bytes(16))


def step(start: int, ids: list[int]) -> Step:
    return Step(ID, 0, start, len(ids), 1, ids=tuple(ids))


def test_hashes_depend_on_model_and_all_tokens_before() -> None:
    ids = list(range(3 * PAGE_TOKENS + 5))
    hashes = page_hashes("model", ids)
    assert len(hashes) == 3
    assert page_hashes("other", ids)[0] != hashes[0]
    changed = page_hashes("model", [99, *ids[1:]])
    assert not set(changed) & set(hashes)
    assert page_hashes("model", ids[PAGE_TOKENS:], after=hashes[0]) == hashes[1:]
    assert page_hashes("model", ids[: PAGE_TOKENS - 1]) == ()


@pytest.mark.parametrize("start", [0, 5, PAGE_TOKENS, PAGE_TOKENS + 3])
def test_who_goes_back_behind_a_page_that_was_certain_has_no_more(start: int) -> None:
    pages = CertainPages("m", ())
    pages.take(step(0, [1] * 2 * PAGE_TOKENS))
    assert len(pages.take(step(2 * PAGE_TOKENS, [2]))) == 2
    assert pages.take(step(start, [3] * 3 * PAGE_TOKENS)) == ()
    assert pages.take(step(start + 3 * PAGE_TOKENS, [4])) == ()


@given(st.integers(0, 10**6), st.integers(0, 3))
def test_whatever_the_steps_the_hashes_are_those_of_the_certain_tokens(seed: int, num_cached: int) -> None:
    rng = random.Random(seed)
    known = [rng.randrange(9) for _ in range(num_cached * PAGE_TOKENS)]
    told = page_hashes("m", known + [1] * 2 * PAGE_TOKENS)  # more than was cached everywhere
    pages = CertainPages("m", told)
    start, total = len(known), list(known)
    reported = num_cached
    for _ in range(12):
        ids = [rng.randrange(9) for _ in range(rng.choice([1, 3, 16, 40]))]
        hashes = pages.take(step(start, ids))
        del total[start:]
        if hashes:
            assert hashes == page_hashes("m", total)
            assert len(hashes) > reported
            reported = len(hashes)
        assert reported == len(total) // PAGE_TOKENS or len(total) // PAGE_TOKENS <= num_cached
        total += ids
        start += rng.randint(1, len(ids))  # some of them were wrong
