"""What is made of beats and loads, by an emulated wire between two clocks that do not agree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainserve.protocol.messages import Beat
from chainserve.transport.beats import LOAD_BYTES, MAX_LOADS, WINDOW_US, Beats, Load

SHIFT_US = 5_000_000_000  # the far clock shows so much more
WAY_US = 20_000  # each way
RATE = 10.0  # bytes per microsecond: 10 MB/s
LOAD_US = int(LOAD_BYTES / RATE)


class Wire:
    """The near end's beats and loads on a wire with delay and rate. Nothing moves but when told, times are near's."""

    def __init__(self) -> None:
        self.near, self.far = Beats(), Beats()
        self.free_us = 0.0  # when the last byte sent leaves

    def send(self, num_bytes: int, now_us: int) -> int:
        """When the last byte has arrived."""
        self.near.sent_bytes += num_bytes
        self.free_us = max(self.free_us, now_us) + num_bytes / RATE
        return int(self.free_us) + WAY_US

    def beat(self, now_us: int) -> None:
        """A beat over, and one back at once."""
        beat = self.near.next_beat(now_us=now_us)
        self.answer(beat, arrives_us=self.send(0, now_us))

    def answer(self, beat: Beat, *, arrives_us: int, held_us: int = 0) -> None:
        self.far.take(beat, now_us=arrives_us + SHIFT_US)
        self.echo(arrives_us + held_us)

    def echo(self, now_us: int) -> None:
        """A beat of the far end."""
        self.near.take(self.far.next_beat(now_us=now_us + SHIFT_US), now_us=now_us + WAY_US)

    def load(self, now_us: int, num_bytes: int = LOAD_BYTES) -> tuple[Load, Beat, int]:
        """A load and the beat behind it on their way; when they arrive."""
        load = self.near.begin(now_us=now_us)
        arrives_us = self.send(num_bytes, now_us)
        return load, self.near.next_beat(now_us=now_us), arrives_us

    @property
    def rate(self) -> float | None:
        return self.near.bytes_per_s and self.near.bytes_per_s / 1e6


@pytest.fixture
def wire() -> Wire:
    wire = Wire()
    wire.beat(1000)
    return wire


def test_the_round_trip_is_without_the_time_an_echo_was_held(wire: Wire) -> None:
    assert wire.near.round_trip_s == pytest.approx(0.04)
    wire.near.take(wire.far.next_beat(now_us=SHIFT_US + 500_000), now_us=500_000 + WAY_US)
    assert wire.near.round_trip_s == pytest.approx(0.04)
    assert Beats().round_trip_s is None


@pytest.mark.parametrize("held_us", [0, 700_000])
def test_a_load_is_timed_by_the_beat_behind_it_however_long_that_is_held(wire: Wire, held_us: int) -> None:
    assert wire.rate is None
    load, mark, arrives_us = wire.load(100_000)
    assert load.is_out
    wire.answer(mark, arrives_us=arrives_us, held_us=held_us)
    assert not load.is_out
    assert wire.rate == pytest.approx(RATE, rel=0.01)


def test_a_slow_way_back_does_not_count(wire: Wire) -> None:
    _, mark, arrives_us = wire.load(100_000)
    wire.far.take(mark, now_us=arrives_us + SHIFT_US)
    beat = wire.far.next_beat(now_us=arrives_us + SHIFT_US)
    wire.near.take(beat, now_us=arrives_us + 900_000)
    assert wire.rate == pytest.approx(RATE, rel=0.01)
    assert wire.near.round_trip_s == pytest.approx(0.04)


def test_loads_one_behind_another_are_one_measurement(wire: Wire) -> None:
    sent = [wire.load(100_000 + number) for number in range(5)]
    for _, mark, arrives_us in sent:
        wire.answer(mark, arrives_us=arrives_us)
        assert wire.rate == pytest.approx(RATE, rel=0.01)


def test_a_gap_between_loads_is_not_counted_though_the_echo_of_the_first_was_not_here_yet(wire: Wire) -> None:
    first = wire.load(100_000)
    second = wire.load(100_000 + LOAD_US + WAY_US)
    for _, mark, arrives_us in (first, second):
        wire.answer(mark, arrives_us=arrives_us)
        assert wire.rate == pytest.approx(RATE, rel=0.01)


def test_the_next_beat_is_for_all_loads_before_it(wire: Wire) -> None:
    loads = [wire.near.begin(now_us=100_000 + number) for number in range(3)]  # two wait for the first
    arrives_us = [wire.send(LOAD_BYTES, 100_000) for _ in loads][-1]
    assert not any(load.is_marked for load in loads)
    beat = wire.near.next_beat(now_us=100_500)
    assert all(load.is_marked for load in loads)
    wire.answer(beat, arrives_us=arrives_us)
    assert wire.rate == pytest.approx(RATE, rel=0.01)


def test_small_frames_between_loads_count(wire: Wire) -> None:
    first = wire.load(100_000)
    wire.send(LOAD_BYTES - 1, 100_000)
    second = wire.load(100_000)
    for _, mark, arrives_us in (first, second):
        wire.answer(mark, arrives_us=arrives_us)
    assert wire.rate == pytest.approx(RATE, rel=0.01)


def test_a_load_whose_beat_was_overwritten_tells_what_the_rate_is_at_least(wire: Wire) -> None:
    _, mark, arrives_us = wire.load(100_000)
    wire.answer(mark, arrives_us=arrives_us)
    load, _, arrives_us = wire.load(300_000)
    wire.beat(300_000 + 10 * LOAD_US)
    assert not load.is_out
    assert wire.rate == pytest.approx(RATE, rel=0.01)
    other = Wire()
    other.beat(1000)
    other.load(300_000)
    other.beat(300_000 + 10 * LOAD_US)
    assert other.rate == pytest.approx(RATE / 10, rel=0.01)  # for want of better


def test_a_load_too_fast_for_the_clock_tells_what_the_rate_is_at_least(wire: Wire) -> None:
    wire.near.begin(now_us=100_000)
    wire.near.sent_bytes += LOAD_BYTES
    wire.answer(wire.near.next_beat(now_us=100_000), arrives_us=100_000 + WAY_US)
    assert wire.near.bytes_per_s == LOAD_BYTES / 1e-3


def test_one_stall_does_not_change_the_rate(wire: Wire) -> None:
    for number in range(7):
        now_us = 1_000_000 * (number + 1)
        wire.beat(now_us - 100_000)
        _, mark, arrives_us = wire.load(now_us)
        wire.answer(mark, arrives_us=arrives_us + (300_000 if number == 3 else 0))
    assert wire.rate == pytest.approx(RATE, rel=0.01)


def test_a_wire_that_changed_is_known_after_some_loads(wire: Wire) -> None:
    for number in range(14):
        now_us = 1_000_000 * (number + 1)
        _, mark, arrives_us = wire.load(now_us)
        wire.answer(mark, arrives_us=arrives_us + (LOAD_US if number > 6 else 0))
        wire.beat(now_us + 500_000)
    assert wire.rate == pytest.approx(RATE / 2, rel=0.01)


def test_a_long_train_forgets_its_beginning(wire: Wire) -> None:
    now_us, rates = 1_000_000, []
    for number in range(700):  # without a gap, the second half at half the rate
        wire.near.begin(now_us=now_us)
        wire.near.sent_bytes += LOAD_BYTES
        mark = wire.near.next_beat(now_us=now_us)
        now_us += LOAD_US if number < 350 else 2 * LOAD_US
        wire.answer(mark, arrives_us=now_us + WAY_US)
        rates.append(wire.rate)
    assert rates[300] == pytest.approx(RATE, rel=0.01)
    assert rates[-1] == pytest.approx(RATE / 2, rel=0.01)


def test_beats_behind_loads_do_not_stand_for_distance(wire: Wire) -> None:
    for number in range(2 * WINDOW_US // LOAD_US):  # the wire is never free
        _, mark, arrives_us = wire.load(100_000 + number * LOAD_US, LOAD_BYTES + 1)
        wire.beat(100_000 + number * LOAD_US)
        wire.answer(mark, arrives_us=arrives_us)
        wire.echo(arrives_us + 1)
    assert wire.near.round_trip_s == pytest.approx(0.04)
    assert wire.rate == pytest.approx(RATE, rel=0.05)


def test_beats_behind_loads_of_the_other_end_do_not_stand_for_distance(wire: Wire) -> None:
    for number in range(2 * WINDOW_US // 100_000):
        sent = wire.near.next_beat(now_us=number * 100_000)
        wire.far.take(sent, now_us=number * 100_000 + WAY_US + SHIFT_US)
        back = wire.far.next_beat(now_us=number * 100_000 + WAY_US + SHIFT_US)
        wire.near.take(back, now_us=number * 100_000 + 90_000, behind_load=True)
    assert wire.near.round_trip_s == pytest.approx(0.04)


def test_a_way_that_became_longer_is_known_soon(wire: Wire) -> None:
    for number in range(1, 21):
        beat = wire.near.next_beat(now_us=number * 1_000_000)
        wire.answer(beat, arrives_us=number * 1_000_000 + 50_000)
        assert wire.near.round_trip_s == pytest.approx(0.04 if number < 10 else 0.07)


def test_a_load_that_was_not_sent_is_forgotten(wire: Wire) -> None:
    load = wire.near.begin(now_us=100_000)
    wire.near.sent_bytes += LOAD_BYTES
    wire.near.forget_loads()
    assert not load.is_out
    wire.beat(200_000)
    assert wire.rate is None
    _, mark, arrives_us = wire.load(300_000)
    wire.answer(mark, arrives_us=arrives_us)
    assert wire.rate == pytest.approx(RATE, rel=0.01)


def test_what_nobody_answers_does_not_pile_up(wire: Wire) -> None:
    for number in range(2 * MAX_LOADS):
        wire.load(100_000 + number)
    assert len(wire.near._loads) == MAX_LOADS


times = st.integers(0, 2**63 - 1)


@given(st.lists(st.one_of(st.builds(Beat, times, times, times), st.sampled_from(["beat", "load", "forget"]))))
def test_beats_that_make_no_sense_break_nothing(events: list[Beat | str]) -> None:
    near, now_us = Beats(), 10**9
    for event in events:
        now_us += 1000
        if event == "load":
            near.begin(now_us=now_us)
            near.sent_bytes += LOAD_BYTES
        elif event == "forget":
            near.forget_loads()
        elif isinstance(event, Beat):
            near.take(event, now_us=now_us)
        else:
            near.next_beat(now_us=now_us)
        assert near.round_trip_s is None or near.round_trip_s >= 0
        assert near.bytes_per_s is None or near.bytes_per_s > 0
