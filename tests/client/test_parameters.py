"""What cannot be asked for is named before anything is sent."""

from typing import Any

import pytest

from chainserve.errors import RequestError
from chainserve_client.parameters import Parameters


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", -1),
        ("max_new_tokens", 1.5),
        ("max_new_tokens", True),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("seed", -1),
        ("seed", 2**63),
        ("stop", [""]),
        ("stop", [3]),
    ],
)
def test_a_value_out_of_range_is_named(option: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"^{option} must be"):
        Parameters.parse({option: value})


def test_an_unknown_parameter_is_named_with_what_was_probably_meant() -> None:
    with pytest.raises(RequestError, match=r"unknown parameter 'max_tokens': did you mean max_new_tokens\?"):
        Parameters.parse({"max_tokens": 3})
    with pytest.raises(RequestError, match="unknown parameter 'xyzzy': known are max_new_tokens"):
        Parameters.parse({"xyzzy": 3})


def test_one_stop_text_may_stand_alone() -> None:
    assert Parameters.parse({"stop": "END"}).stop == ("END",)
    assert Parameters.parse({"stop": ["a", "b"]}).stop == ("a", "b")
