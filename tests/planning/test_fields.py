"""Values from elsewhere are of one type or refused: nothing is converted that could have been meant otherwise."""

from collections.abc import Callable

import pytest

from chainserve.planning.fields import flag, number, text, whole

VALUES = [3, 2.5, True, "3", b"3", None, [3], float("inf")]


@pytest.mark.parametrize(("read", "kinds"), [(whole, {int}), (number, {int, float}), (flag, {bool}), (text, {str})])
def test_each_takes_its_own_type_and_no_other(read: Callable[[object], object], kinds: set[type]) -> None:
    for value in VALUES:
        if type(value) in kinds:
            assert read(value) == value
        else:
            with pytest.raises(TypeError, match=f"{type(value).__name__} where"):
                read(value)


def test_numbers_become_floats() -> None:
    assert type(number(3)) is float


def test_what_is_refused_is_not_repeated() -> None:
    nested: list[object] = []
    for _ in range(5000):
        nested = [nested]
    for read in (whole, number, flag, text):
        with pytest.raises(TypeError, match="list where"):
            read(nested)
