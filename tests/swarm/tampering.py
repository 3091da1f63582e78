"""Trees of fields with one value replaced by any other, and whether values are of the types that were declared."""

import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NewType, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

whole_numbers = st.one_of(
    st.integers(-3, 70), st.integers(-(2**63), 2**64 - 1), st.sampled_from([2**31, 2**46, 2**46 + 1, 2**53 + 1])
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    whole_numbers,
    st.floats(),
    st.sampled_from([0.0, 5e-324, 1e-300, 1e300]),
    st.text(max_size=8),
    st.binary(max_size=8),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=4), st.just("times")), inner, max_size=3),
    ),
    max_leaves=5,
)
"""Whatever msgpack can carry."""

Path = tuple[Any, ...]


def paths(tree: object, here: Path = ()) -> Iterator[Path]:
    """The way to every value in a tree of maps and lists, apart from the whole."""
    if here:
        yield here
    for key in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield from paths(tree[key], (*here, key))  # type: ignore[index]


def replaced(tree: Any, path: Path, value: object) -> Any:
    """The tree with another value there."""
    if not path:
        return value
    copy = tree.copy()
    copy[path[0]] = replaced(tree[path[0]], path[1:], value)
    return copy


def assert_typed(value: object, hint: Any, name: str = "it") -> None:
    """Fail unless a value, and all that it is made of, is of its declared type; True is no number."""
    if isinstance(hint, NewType):
        hint = hint.__supertype__
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in args if (kind is type(None)) == (value is None)]
        assert len(kinds) == 1, f"{name} is {value!r}, not {hint}"
        assert_typed(value, kinds[0], name)
    elif origin is tuple and args[-1] is ...:
        assert type(value) is tuple, name
        for index, each in enumerate(value):
            assert_typed(each, args[0], f"{name}[{index}]")
    elif origin is tuple:
        assert type(value) is tuple, name
        for index, (each, kind) in enumerate(zip(value, args, strict=True)):
            assert_typed(each, kind, f"{name}[{index}]")
    elif origin is frozenset:
        assert type(value) is frozenset, name
        for each in value:
            assert_typed(each, args[0], name)
    elif origin is Mapping:
        assert isinstance(value, Mapping), name
        for key, each in value.items():
            assert_typed(key, args[0], f"key of {name}")
            assert_typed(each, args[1], f"{name}[{key!r}]")
    elif is_dataclass(hint):
        assert type(value) is hint, f"{name} is {value!r}"
        hints = get_type_hints(hint)
        for field in fields(hint):
            assert_typed(getattr(value, field.name), hints[field.name], f"{name}.{field.name}")
    elif hint is float:
        assert type(value) in (float, int), f"{name} is {value!r}"
    elif hint is type(None):
        assert value is None, name
    else:
        assert type(value) is hint, f"{name} is {value!r}, not {hint}"
