"""What the owner of a server is told of who can call it."""

import pytest

from chainserve.transport.calling_back import Called
from chainserve_server.reachability import _warning

THROUGH, REFUSED, NOT_ASKED = Called("10.0.0.6"), Called("203.0.113.7", "no answer within 3 s"), Called("", "gone")


@pytest.mark.parametrize("told", [[], [THROUGH], [NOT_ASKED], [THROUGH, NOT_ASKED]])
def test_there_is_nothing_to_say_where_others_get_through_or_are_not_there(told: list[Called]) -> None:
    assert _warning(told, 8300, given=8300, announced="203.0.113.7") is None


def test_who_cannot_be_called_is_told_where_and_why_and_what_to_open() -> None:
    warning = _warning([THROUGH, REFUSED, NOT_ASKED], 8300, given=8300, announced="203.0.113.7")
    assert warning is not None
    assert "1 of 2 servers" in warning
    assert "203.0.113.7, port 8300: no answer within 3 s" in warning
    assert "ports 8300 and 8301" in warning


def test_ports_that_the_system_chose_have_to_be_given_first() -> None:
    warning = _warning([REFUSED], 40123, given=0, announced="203.0.113.7")
    assert warning is not None
    assert "--port" in warning


def test_an_address_that_is_not_the_one_announced_is_told_as_that() -> None:
    warning = _warning([REFUSED], 8300, given=8300, announced="192.168.1.5")
    assert warning is not None
    assert "203.0.113.7, port 8300 (where it asked from; it is announced at 192.168.1.5): no answer" in warning
