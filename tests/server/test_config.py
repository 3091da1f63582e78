"""What a server is told, in the forms people write it."""

import pytest

from chainserve.errors import DeviceError, OutOfMemoryError, UsageError
from chainserve_server.config import cache_budget, check_device, parse_bytes


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("6GB", 6 * 10**9), ("512MiB", 2**29), ("1.5g", 1_500_000_000), ("2 GiB", 2**31), ("1000", 1000), ("3kb", 3000)],
)
def test_memory_may_be_written_in_many_ways(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "6TB", "1e9", "six"])
def test_what_is_no_memory_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not an amount of memory"):
        parse_bytes(text)


def test_the_cache_takes_what_the_weights_leave() -> None:
    assert cache_budget(1000, block_bytes=[100, 100], token_bytes=2, num_tokens=10) == 200


@pytest.mark.parametrize(("memory", "fitting"), [(100, 0), (119, 0), (120, 1), (359, 2)])
def test_too_little_memory_says_how_many_blocks_would_fit(memory: int, fitting: int) -> None:
    with pytest.raises(OutOfMemoryError, match=f"3 blocks need .* {fitting} blocks would fit"):
        cache_budget(memory, block_bytes=[100, 100, 100], token_bytes=2, num_tokens=10)


def test_exactly_enough_memory_is_enough() -> None:
    assert cache_budget(360, block_bytes=[100, 100, 100], token_bytes=2, num_tokens=10) == 10


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    assert str(check_device("cpu")) == "cpu"
    for name in ("cuda:99", "abacus"):
        with pytest.raises(DeviceError, match="this machine has cpu"):
            check_device(name)
