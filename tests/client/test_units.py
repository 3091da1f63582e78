"""Amounts are read as people write them, and written as people read them."""

import pytest

from chainserve.errors import UsageError
from chainserve_client.units import (
    BANDWIDTH,
    COMPUTING,
    DURATION,
    MEMORY,
    Quantity,
    format_age,
    format_bytes,
    format_part,
    format_seconds,
)


@pytest.mark.parametrize(
    ("quantity", "text", "amount"),
    [
        (MEMORY, "24GB", 24e9),
        (MEMORY, " 24 gib ", 24 * 2**30),
        (MEMORY, "512MiB", 512 * 2**20),
        (MEMORY, "1.5e9 B", 1.5e9),
        (COMPUTING, "82 TFLOPS", 82e12),
        (COMPUTING, "1.2 PFLOPS", 1.2e15),
        (BANDWIDTH, "1008 GB/s", 1.008e12),
        (BANDWIDTH, "3.35TB/s", 3.35e12),
        (DURATION, "20 ms", 0.02),
        (DURATION, "0.5s", 0.5),
        (DURATION, "30 µs", 30e-6),
        (DURATION, "30us", 30e-6),
    ],
)
def test_an_amount_is_a_number_with_its_unit(quantity: Quantity, text: str, amount: float) -> None:
    assert quantity.parse(text) == pytest.approx(amount)


@pytest.mark.parametrize(
    ("quantity", "text"),
    [
        (MEMORY, "24"),
        (MEMORY, "24 GB/s"),
        (MEMORY, "-24GB"),
        (MEMORY, "lots"),
        (MEMORY, ""),
        (COMPUTING, "82 T"),
        (BANDWIDTH, "1008 GB"),
        (DURATION, "20"),
        (DURATION, "nan s"),
    ],
)
def test_what_lacks_its_unit_is_refused_with_an_example(quantity: Quantity, text: str) -> None:
    with pytest.raises(UsageError, match="want for example") as caught:
        quantity.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (768, "768 B"),
        (22_118, "22.1 kB"),
        (7_080_192, "7.08 MB"),
        (999.6e6, "1.00 GB"),
        (2.5e15, "2,500 TB"),
    ],
)
def test_bytes_are_written_with_three_digits(num_bytes: float, text: str) -> None:
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 ms"), (0.0004, "0.40 ms"), (0.0123, "12.3 ms"), (0.9996, "1.00 s"), (4.567, "4.57 s"), (1234.5, "1,234 s")],
)
def test_seconds_are_written_with_three_digits(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (59, "59 s"), (60, "1 min"), (7_500, "2 h 5 min"), (86_400 * 3 + 7_300, "3 d 2 h")],
)
def test_of_an_age_only_what_matters_is_written(seconds: float, text: str) -> None:
    assert format_age(seconds) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (212e6, 300e6, "212 of 300 MB"),
        (999.4e6, 1.2e9, "999 MB of 1.20 GB"),
        (0, 24e9, "0 B of 24.0 GB"),
        (5, 9, "5.00 of 9.00 B"),
    ],
)
def test_a_part_shares_the_unit_of_the_whole_if_it_can(part: float, whole: float, text: str) -> None:
    assert format_part(part, whole) == text
