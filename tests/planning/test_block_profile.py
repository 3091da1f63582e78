"""Measured profiles: what is fitted to timings, what is predicted from it, and what planning sees."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from chainserve.planning.profile import BlockProfile, StepTimes, Timings, nearest_line
from chainserve.planning.times import BlockTimes
from chainserve.planning.values import ModelSpec
from chainserve.types import PeerId

CHUNKS, BATCHES = (8, 32, 128, 512), (1, 2, 4, 8, 16)
TIMES = StepTimes(
    forward_s=0.001,
    prefill=((10, 0.02), (100, 0.11)),
    decode=((1, 0.004), (2, 0.01), (8, 0.016)),
    head=((1, 0.003), (4, 0.009)),
)
PROFILE = BlockProfile(
    times=TIMES,
    block_bytes=1000,
    embedding_bytes=300,
    head_bytes=310,
    is_tied=True,
    token_bytes=16,
    activation_bytes=200,
)
positive = st.floats(1e-6, 1.0)


@given(forward_s=positive, block=st.tuples(*[positive] * 4), num_blocks=st.integers(2, 40))
def test_the_terms_that_made_timings_are_recovered(
    forward_s: float, block: tuple[float, float, float, float], num_blocks: int
) -> None:
    overhead_s, prefill_s, decode_s, session_s = block
    assume(forward_s <= num_blocks * min(decode_s, overhead_s))
    assume(session_s <= decode_s)  # a further session costs no more than the first

    def rounds(block_s: float, num_blocks: int = num_blocks) -> list[float]:
        quiet_s = forward_s + num_blocks * block_s
        return [9 * quiet_s, quiet_s, quiet_s]  # others used the machine in the first

    times = Timings(
        num_blocks=num_blocks,
        prefill={size: rounds(overhead_s + prefill_s * size) for size in CHUNKS},
        decode={num: rounds(decode_s + session_s * (num - 1)) for num in BATCHES},
        one_block=rounds(decode_s, 1),
        head={num: [9.0, 0.5 * num, 0.5 * num] for num in BATCHES},
    ).step_times()
    exactly = {"rel": 1e-4, "abs": 1e-8}
    assert times.forward_s == pytest.approx(forward_s, **exactly)
    assert asdict(times.block) == pytest.approx(
        asdict(BlockTimes(overhead_s=overhead_s, prefill_s=prefill_s, decode_s=decode_s, session_s=session_s)),
        **exactly,
    )
    assert times.head == tuple((num, 0.5 * num) for num in BATCHES)
    for num_decode, num_tokens in ((1, 0), (3, 0), (20, 0), (0, 1), (0, 300), (0, 1024), (5, 100)):
        by_hand_s = forward_s
        if num_decode:
            by_hand_s += 7 * (decode_s + session_s * (num_decode - 1))
        if num_tokens:
            by_hand_s += 7 * (overhead_s + prefill_s * num_tokens)
        assert times.step_s(num_decode, num_tokens, num_blocks=7) == pytest.approx(by_hand_s, **exactly)


def test_between_sizes_that_were_measured_steps_take_a_time_between() -> None:
    for size, block_s in ((1, 0.004), (2, 0.01), (5, 0.013), (8, 0.016), (10, 0.018)):
        assert TIMES.step_s(size, 0, num_blocks=3) == pytest.approx(0.001 + 3 * block_s)
    assert TIMES.step_s(0, 55, num_blocks=1) == pytest.approx(0.001 + 0.065)
    assert TIMES.step_s(1, 100, num_blocks=1) == pytest.approx(0.001 + 0.004 + 0.11)


def test_outputs_go_on_through_the_head() -> None:
    for num_outputs, head_s in ((0, 0.0), (1, 0.003), (2, 0.005), (8, 0.017)):
        step_s = TIMES.step_s(2, 0, num_blocks=3, num_outputs=num_outputs)
        assert step_s == pytest.approx(0.001 + 3 * 0.01 + head_s)


def test_a_forward_of_nothing_takes_no_time() -> None:
    assert TIMES.step_s(0, 0, num_blocks=3) == 0


def test_no_step_takes_less_than_no_time() -> None:
    faster = replace(TIMES, decode=((4, 0.002), (8, 0.01)))
    assert faster.step_s(1, 0, num_blocks=5) == pytest.approx(0.001)


def test_a_model_of_one_block_has_no_time_of_a_forward_apart() -> None:
    times = Timings(
        num_blocks=1,
        prefill={1: [2.0], 3: [4.0]},
        decode={1: [5.0], 2: [6.0]},
        one_block=[5.0],
        head={1: [7.0], 2: [8.0]},
    )
    assert times.step_times() == StepTimes(
        forward_s=0, prefill=((1, 2.0), (3, 4.0)), decode=((1, 5.0), (2, 6.0)), head=((1, 7.0), (2, 8.0))
    )


@given(st.lists(positive, min_size=9, max_size=9), positive)
def test_whatever_the_noise_times_are_positive(medians: list[float], alone_s: float) -> None:
    timings = Timings(
        num_blocks=4,
        prefill={size: [seconds] for size, seconds in zip(CHUNKS, medians, strict=False)},
        decode={num: [seconds] for num, seconds in zip(BATCHES, medians[4:], strict=True)},
        one_block=[alone_s],
        head={1: [alone_s], 2: [alone_s]},
    )
    times = timings.step_times()
    assert min(times.forward_s, *asdict(times.block).values(), times.session_s) >= 0
    for points, step_s in (
        (timings.prefill, lambda size: times.step_s(0, size, num_blocks=4)),
        (timings.decode, lambda num: times.step_s(num, 0, num_blocks=4)),
    ):
        for size in points:
            least_s = min(seconds[0] for other, seconds in points.items() if other >= size)
            assert step_s(size) == pytest.approx(least_s)  # nothing takes longer than what is larger
    assert times.block.request_s(100, 20) > 0  # planning needs a time


def test_a_line_falls_nowhere() -> None:
    assert nearest_line(((1, 3.0), (2, 5.0), (4, 9.0))) == pytest.approx((1, 2))
    assert nearest_line(((1, 1.0), (2, 1.0), (4, 0.5)))[1] == 0
    fixed, slope = nearest_line(((1, 1.0), (2, 3.0), (4, 10.0)))
    assert fixed == 0
    assert 1 < slope < 2.5


def test_a_line_is_fitted_once_for_equal_points() -> None:
    nearest_line.cache_clear()
    points = [replace(TIMES, prefill=((3, 0.125), (5, 0.25), (7, seconds))) for seconds in (0.5, 0.5, 0.75)]
    first, second, other = (times.block for times in points)
    assert nearest_line.cache_info().misses == 3  # two of prompts, one of decoding
    assert first == second != other


def test_planning_sees_times_per_message_and_per_block() -> None:
    server = PROFILE.server_times(0.05).profile(PeerId("a"), 1e9, input_tokens=100, output_tokens=11)
    assert PROFILE.server_times(0.05).head_s == 0.003
    assert server.communication_s == pytest.approx(11 * 0.051)
    assert server.block_s == pytest.approx(0.11 + 0.004 * 10)


def test_planning_sees_what_the_model_takes_in_memory() -> None:
    expected = ModelSpec(
        num_blocks=30, block_bytes=1000, slot_bytes=32_000, embedding_bytes=300, head_bytes=310, is_tied=True
    )
    assert PROFILE.model(30, max_tokens=2000) == expected


def test_a_profile_survives_json() -> None:
    assert BlockProfile.from_fields(json.loads(json.dumps(asdict(PROFILE)))) == PROFILE


@pytest.mark.parametrize(
    "change",
    [
        {"times": None},
        {"times": {}},
        {"times": asdict(TIMES) | {"forward_s": -1}},
        {"times": asdict(TIMES) | {"forward_s": "fast"}},
        {"times": asdict(TIMES) | {"prefill": [[1, 2, 3]]}},
        {"times": asdict(TIMES) | {"decode": [["one", 2]]}},
        {"times": asdict(TIMES) | {"head": [[1, 0.1]]}},
        {"times": {name: value for name, value in asdict(TIMES).items() if name != "head"}},
        {"times": asdict(TIMES) | {"decode": [[float("inf"), 2], [1, 2]]}},
        {"block_bytes": 0},
        {"token_bytes": None},
        {"activation_bytes": -1},
        {"activation_bytes": "few"},
        {"unknown": 1},
    ],
)
def test_fields_that_make_no_profile_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of several kinds
        BlockProfile.from_fields(asdict(PROFILE) | change)


@pytest.mark.parametrize("fields", [None, [], 3, "text", {}])
def test_what_is_no_set_of_fields_is_refused(fields: object) -> None:
    with pytest.raises(ValueError, match=r"not a profile|dictionary update"):
        BlockProfile.from_fields(fields)


@pytest.mark.parametrize(
    ("points", "fact"),
    [
        (((1, 0.1),), r"at sizes \[1\]: it takes at least two"),
        (((2, 0.1), (2, 0.2)), "rising"),
        (((0, 0.1), (2, 0.2)), "from at least 1"),
        (((1, 0.1), (2, 0.0)), "decode at size 2 is 0.0"),
    ],
)
def test_points_are_positive_and_rise(points: tuple[tuple[int, float], ...], fact: str) -> None:
    with pytest.raises(ValueError, match=fact):
        replace(TIMES, decode=points)
