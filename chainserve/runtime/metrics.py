"""Counting what happens often, for about what an addition costs; who reads it makes of it what they like."""

from bisect import bisect_left
from collections.abc import Hashable, Sequence
from itertools import accumulate
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Distribution:
    """How many values fell up to each of some bounds, and their sum."""

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds` ascend; values above the last are counted too."""
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[float, int]]:
        """Each bound with the number of values that are not above it; infinity comes last."""
        return list(zip((*self._bounds, float("inf")), accumulate(self._counts), strict=True))


class Distributions(Generic[Key]):
    """A distribution for each of a few keys, all with the same bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self.by_key: dict[Key, Distribution] = {}

    def __getitem__(self, key: Key) -> Distribution:
        found = self.by_key.get(key)
        if found is None:
            found = self.by_key[key] = Distribution(self._bounds)
        return found
