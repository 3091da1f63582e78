"""What is counted, and how it is read."""

from chainserve.runtime.metrics import Distribution, Distributions


def test_values_on_a_bound_are_below_it_and_larger_ones_below_infinity() -> None:
    seen = Distribution((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 7.0):
        seen.add(value)
    assert seen.cumulative() == [(1.0, 2), (2.0, 4), (float("inf"), 5)]
    assert seen.total == 12.0


def test_each_key_has_a_distribution_of_its_own() -> None:
    seen: Distributions[str] = Distributions((1.0,))
    seen["a"].add(3.0)
    seen["a"].add(1.0)
    seen["b"].add(0.0)
    assert {key: one.total for key, one in seen.by_key.items()} == {"a": 4.0, "b": 0.0}
