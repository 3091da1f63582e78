"""Drafts from the text so far."""

from hypothesis import given
from hypothesis import strategies as st

from chainserve_server.drafts import LONGEST, SHORTEST, PromptLookup


def lookup(ids: list[int]) -> PromptLookup:
    made = PromptLookup()
    made.extend(ids)
    return made


def test_what_came_after_the_same_tokens_before_is_proposed() -> None:
    assert lookup([1, 2, 3, 4, 5, 9, 1, 2]).propose(3) == ([3, 4, 5], 2)


def test_the_longest_match_counts_and_of_equal_ones_the_latest() -> None:
    assert lookup([1, 2, 3, 7, 0, 2, 3, 8, 5, 1, 2, 3]).propose(1) == ([7], 3)
    assert lookup([2, 3, 7, 2, 3, 8, 2, 3]).propose(1) == ([8], 2)


def test_tokens_that_were_not_there_before_propose_nothing() -> None:
    assert lookup([1, 2, 3, 4]).propose(4) == ([], 0)
    assert lookup([1]).propose(4) == ([], 0)
    assert lookup([]).propose(4) == ([], 0)
    assert lookup([1, 2, 1, 2]).propose(0) == ([], 2)


def test_text_that_repeats_itself_goes_on_repeating_itself() -> None:
    assert lookup([5, 1, 2, 3, 1, 2, 3]).propose(7) == ([1, 2, 3, 1, 2, 3, 1], 3)


@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 3), max_size=20), st.integers(1, 8))
def test_it_is_what_a_search_through_the_text_finds(first: list[int], more: list[int], most: int) -> None:
    made = lookup(first)
    made.extend(more)
    ids = first + more
    wanted: tuple[list[int], int] = [], 0
    for size in range(min(LONGEST, len(ids)), SHORTEST - 1, -1):
        starts = [at + size for at in range(len(ids) - size) if ids[at : at + size] == ids[-size:]]
        if starts:
            rest = ids[starts[-1] :]
            wanted = [rest[at % len(rest)] for at in range(most)], size
            break
    assert made.propose(most) == wanted
