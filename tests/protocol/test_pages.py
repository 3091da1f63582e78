"""Hashes of pages: the same for the same beginning, and for nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from chainserve.protocol.pages import HASH_BYTES, PAGE_TOKENS, page_hashes

IDS = st.lists(st.integers(0, 3), max_size=5 * PAGE_TOKENS)


@given(IDS, IDS)
def test_two_prompts_share_the_hashes_of_the_full_pages_they_share(one: list[int], other: list[int]) -> None:
    shared = one[: len(one) // 2]
    one, other = shared + one, shared + other
    hashes = page_hashes("m", one), page_hashes("m", other)
    for page, (a, b) in enumerate(zip(*hashes, strict=False)):
        end = (page + 1) * PAGE_TOKENS
        assert (a == b) == (one[:end] == other[:end])


@given(IDS)
def test_only_full_pages_count(ids: list[int]) -> None:
    hashes = page_hashes("m", ids)
    assert len(hashes) == len(set(hashes)) == len(ids) // PAGE_TOKENS
    assert all(len(each) == HASH_BYTES for each in hashes)


def test_another_model_reads_other_pages() -> None:
    ids = list(range(40))
    assert not set(page_hashes("m", ids)) & set(page_hashes("n", ids))
