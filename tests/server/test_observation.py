"""What a server says of the load it sees, and of its steps beside what was predicted for them."""

from dataclasses import astuple, replace

import pytest

from chainserve.planning.profile import StepTimes
from chainserve.swarm.offers import Demand
from chainserve.types import Span
from chainserve_server.observation import (
    LEAST_PREFILL_TOKENS,
    LEAST_STEPS,
    LEAST_WINDOW_S,
    NUM_STEPS,
    RATE_WINDOW_S,
    WINDOW_S,
    DemandWindow,
    StepChecks,
    TokenRate,
)
from chainserve_server.work import Forward

TIMES = StepTimes(
    forward_s=0.001,
    prefill=((1, 0.002), (101, 0.012)),
    decode=((1, 0.002), (11, 0.012)),
    head=((1, 0.005), (2, 0.009)),
)
BLOCKS = Span(2, 5)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def serve(window: DemandWindow, clock: Clock, *requests: tuple[float, int, int]) -> None:
    """Requests that come after so many seconds each and end at once, with tokens in and out."""
    for gap_s, input_tokens, output_tokens in requests:
        clock.now_s += gap_s
        window.arrived()
        window.served(input_tokens, output_tokens)


def test_nothing_is_said_until_a_request_has_ended(clock: Clock) -> None:
    window = DemandWindow(clock=clock)
    assert window.seen() is None
    window.arrived()
    clock.now_s += 100
    assert window.seen() is None
    window.served(30, 7)
    assert window.seen() == Demand(num_requests=1, window_s=100.0, input_tokens=30.0, output_tokens=7.0)


def test_requests_that_still_run_count_for_the_rate_and_means_are_of_those_that_ended(clock: Clock) -> None:
    window = DemandWindow(clock=clock)
    serve(window, clock, (100, 10, 1), (100, 30, 2))
    window.arrived()
    seen = window.seen()
    assert seen == Demand(num_requests=3, window_s=200.0, input_tokens=20.0, output_tokens=1.5)
    assert seen.arrival_rate == pytest.approx(3 / 200)


def test_a_server_that_has_just_started_does_not_extrapolate_from_seconds(clock: Clock) -> None:
    window = DemandWindow(clock=clock)
    serve(window, clock, (1, 10, 10))
    seen = window.seen()
    assert seen is not None
    assert (seen.num_requests, seen.window_s) == (1, LEAST_WINDOW_S)


def test_the_window_slides(clock: Clock) -> None:
    window = DemandWindow(clock=clock)
    serve(window, clock, (0, 1000, 1000), (WINDOW_S - 1, 10, 1), (1, 20, 2))
    seen = window.seen()
    assert seen is not None
    assert (seen.num_requests, seen.window_s) == (3, WINDOW_S)
    clock.now_s += 1
    assert window.seen() == Demand(num_requests=2, window_s=WINDOW_S, input_tokens=15.0, output_tokens=1.5)
    clock.now_s += WINDOW_S
    assert window.seen() is None
    serve(window, clock, (0, 5, 5))
    assert window.seen() == Demand(num_requests=1, window_s=WINDOW_S, input_tokens=5.0, output_tokens=5.0)


def test_a_request_may_end_in_the_window_that_came_before_it(clock: Clock) -> None:
    window = DemandWindow(clock=clock)
    window.arrived()
    clock.now_s += 2 * WINDOW_S
    window.served(10, 900)
    assert window.seen() == Demand(num_requests=0, window_s=WINDOW_S, input_tokens=10.0, output_tokens=900.0)


def forward(num_decode: int, num_prefill_tokens: int, *, ratio: float) -> Forward:
    """One that took so many times as long as it should have."""
    predicted_s = TIMES.step_s(num_decode, num_prefill_tokens, num_blocks=len(BLOCKS))
    return Forward(BLOCKS, num_decode, num_prefill_tokens, predicted_s * ratio)


def observe(checks: StepChecks, *forwards: Forward) -> None:
    for item in forwards:
        checks.observe(item)


def test_too_few_steps_say_nothing() -> None:
    checks = StepChecks(TIMES)
    observe(checks, *[forward(1, 0, ratio=2.0)] * (LEAST_STEPS - 1))
    observe(checks, *[forward(0, 50, ratio=2.0)] * (LEAST_STEPS - 1))
    assert (checks.decode, checks.prefill) == (None, None)
    observe(checks, forward(1, 0, ratio=2.0))
    assert checks.decode is not None
    assert checks.prefill is None


def test_prefill_and_decoding_are_compared_apart() -> None:
    checks = StepChecks(TIMES)
    observe(checks, *[forward(1, 0, ratio=1.5)] * LEAST_STEPS, *[forward(0, 51, ratio=3.0)] * LEAST_STEPS)
    assert checks.decode is not None
    assert checks.prefill is not None
    assert astuple(checks.decode) == pytest.approx((0.007, 0.0105))
    assert astuple(checks.prefill) == pytest.approx((0.022, 0.066))


def test_at_the_tail_a_step_is_compared_with_its_outputs_through_the_head() -> None:
    checks = StepChecks(TIMES)
    observe(checks, *[Forward(BLOCKS, 1, 0, 0.012, num_outputs=1)] * LEAST_STEPS)
    observe(checks, *[Forward(BLOCKS, 0, 51, 0.031, num_outputs=2)] * LEAST_STEPS)
    assert checks.decode is not None
    assert checks.prefill is not None
    assert (checks.decode.ratio, checks.prefill.ratio) == pytest.approx((1.0, 1.0))


def test_single_steps_that_were_held_up_do_not_count() -> None:
    checks = StepChecks(TIMES)
    observe(checks, *[forward(1, 0, ratio=1.1)] * 6, *[forward(8, 0, ratio=500.0)] * 5)
    assert checks.decode is not None
    assert checks.decode.ratio == pytest.approx(1.1)


def test_the_ratio_is_that_of_usual_steps_whatever_their_size() -> None:
    checks = StepChecks(TIMES)
    observe(checks, *(forward(num_decode, 0, ratio=1.3) for num_decode in range(1, 12)))
    assert checks.decode is not None
    assert checks.decode.ratio == pytest.approx(1.3)
    assert checks.decode.predicted_s == TIMES.step_s(6, 0, num_blocks=len(BLOCKS))


def test_forwards_of_both_kinds_of_work_and_short_chunks_are_evidence_of_nothing() -> None:
    checks = StepChecks(TIMES)
    observe(checks, *[forward(3, 50, ratio=9.0)] * NUM_STEPS)
    observe(checks, *[forward(0, LEAST_PREFILL_TOKENS - 1, ratio=9.0)] * NUM_STEPS)
    assert (checks.decode, checks.prefill) == (None, None)


def test_what_lies_back_is_forgotten() -> None:
    checks = StepChecks(TIMES)
    observe(checks, *[forward(1, 0, ratio=9.0)] * NUM_STEPS, *[forward(1, 0, ratio=1.0)] * NUM_STEPS)
    assert checks.decode is not None
    assert checks.decode.ratio == pytest.approx(1.0)


def test_steps_that_are_predicted_to_take_no_time_are_passed_over() -> None:
    falling = replace(TIMES, forward_s=0.0, decode=((1, 0.002), (2, 0.001)))
    checks = StepChecks(falling)
    observe(checks, *[Forward(BLOCKS, 3, 0, 0.01)] * LEAST_STEPS, *[Forward(BLOCKS, 1, 0, 0.0)] * LEAST_STEPS)
    assert checks.decode is None
    observe(checks, *[Forward(BLOCKS, 1, 0, 0.012)] * LEAST_STEPS)
    assert checks.decode is not None
    assert checks.decode.ratio == pytest.approx(2.0)


@pytest.mark.parametrize(("ratio", "was_busy"), [(0.6, False), (0.4, True), (9.0, False)])
@pytest.mark.parametrize("what", [(1, 0), (0, 50)])
def test_steps_that_are_much_faster_say_that_the_device_was_busy_when_it_was_measured(
    what: tuple[int, int], ratio: float, was_busy: bool
) -> None:
    checks = StepChecks(TIMES)
    assert not checks.was_busy
    observe(checks, *[forward(*what, ratio=ratio)] * LEAST_STEPS)
    assert checks.was_busy is was_busy


def test_the_rate_of_tokens_is_that_of_the_last_seconds() -> None:
    clock = Clock()
    rate = TokenRate(clock=clock)
    assert rate.per_s == 0
    rate.came(30)
    clock.now_s += RATE_WINDOW_S / 2
    rate.came(20)
    assert rate.per_s == 50 / RATE_WINDOW_S
    clock.now_s += RATE_WINDOW_S * 0.75
    assert rate.per_s == 20 / RATE_WINDOW_S
    clock.now_s += RATE_WINDOW_S
    assert rate.per_s == 0
