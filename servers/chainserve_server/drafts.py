"""Drafts from the text so far: what came after the same few tokens before (prompt lookup, Saxena 2023)."""

from collections.abc import Sequence

LONGEST, SHORTEST = 4, 1
"""Tokens that have to be the same; the longest match counts."""


class PromptLookup:
    """The tokens of one session, indexed by what precedes them."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}  # a few tokens -> where the token after them was last

    def extend(self, ids: Sequence[int]) -> None:
        """Add tokens that are certain."""
        for token in ids:
            end = len(self.ids)
            for size in range(SHORTEST, min(LONGEST, end) + 1):
                self._next[tuple(self.ids[end - size :])] = end
            self.ids.append(token)

    def propose(self, most: int) -> tuple[list[int], int]:
        """What may come next, up to `most` tokens, and after how many last tokens that were there before; 0: none."""
        for size in range(min(LONGEST, len(self.ids)), SHORTEST - 1, -1):
            if (start := self._next.get(tuple(self.ids[-size:]))) is not None:
                found = self.ids[start : start + most]
                while found and len(found) < most:  # the text repeats itself up to its end
                    found += found[: most - len(found)]
                return found, size
        return [], 0
