"""Servers that are told to be slower: what they announce, and what their forwards take."""

import time
from dataclasses import replace
from typing import Any, cast

import pytest
from moving_server import PROFILE
from test_engine import WIDE, AddsOne, work

from chainserve.errors import UsageError
from chainserve_server.config import ServerConfig
from chainserve_server.iteration import run_batch
from chainserve_server.slowdown import pace_of, slowed
from chainserve_server.work import Batch, Forward

FORWARD = Forward(WIDE, num_decode=3, num_prefill_tokens=64, seconds=0.0, num_outputs=3)
SHORT_S = 0.05


def test_all_times_of_a_slowed_profile_are_longer_and_no_bytes() -> None:
    twice = slowed(PROFILE, 2.0)
    assert replace(twice, times=PROFILE.times) == PROFILE
    for sizes in ((1, 0, 0), (4, 0, 4), (0, 100, 1), (3, 64, 3)):
        num_decode, num_tokens, num_outputs = sizes
        plain, slow = (
            profile.times.step_s(num_decode, num_tokens, num_blocks=4, num_outputs=num_outputs)
            for profile in (PROFILE, twice)
        )
        assert slow == pytest.approx(2 * plain)


def test_the_pace_is_what_the_profile_says_of_a_forward() -> None:
    expected_s = PROFILE.times.step_s(3, 64, num_blocks=len(WIDE), num_outputs=3)
    assert pace_of(PROFILE.times)(FORWARD) == expected_s


def test_a_forward_waits_until_its_time_is_over_and_says_what_it_took() -> None:
    began_s = time.perf_counter()
    outcome = run_batch(cast(Any, AddsOne()), Batch([], [work(1)]), pace=lambda _: SHORT_S)
    assert time.perf_counter() - began_s >= SHORT_S
    assert outcome.forwards[0].seconds >= SHORT_S


def test_a_forward_that_took_longer_by_itself_waits_no_more() -> None:
    outcome = run_batch(cast(Any, AddsOne()), Batch([], [work(1)]), pace=lambda _: 0.0)
    assert outcome.forwards[0].seconds < SHORT_S


@pytest.mark.parametrize("factor", [0.5, 0.0, -1.0, float("inf"), float("nan")])
def test_a_server_cannot_be_made_quicker(factor: float) -> None:
    with pytest.raises(UsageError, match="give at least 1 with --slowdown"):
        ServerConfig(model="any", slowdown=factor)
