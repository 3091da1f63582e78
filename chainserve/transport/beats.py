"""What beats tell of a link: how long the round trip takes, and how many bytes a second go from here to there.

A beat comes back in the other end's next one, with the time it was held there. So it is known when it left, by our
clock, and when it arrived, by the other end's: the clocks need not agree, as long as neither runs away. The least
that lies between the two stands for distance, the rest for waiting behind what was sent before.

A load is a large frame. The next beat is right behind it and tells when its last byte arrived; its first would have
arrived one way after it was sent, or when the load before it was through. Neither the way back nor the time until
the other end beats counts.
"""

import math
from collections import deque
from dataclasses import dataclass
from statistics import median_high

from chainserve.protocol.messages import Beat

LOAD_BYTES = 128 * 2**10
"""Frames of at least this size are loads; the other end answers the beat behind one at once."""

WINDOW_US = 10_000_000  # the least of this time counts
NUM_RATES = 7
RESOLUTION_US = 1000  # two event loops are not more punctual than this
TRAIN_US = 2_000_000  # loads without a gap are one measurement, up to this length
MAX_LOADS = 256  # under way and not forgotten


@dataclass(slots=True, eq=False)
class Load:
    """A large frame under way."""

    start_us: int  # when it was handed to the link
    start_bytes: int  # sent over the link before it
    mark_us: float = math.inf  # `sent_us` of the beat behind it
    end_bytes: int = 0  # sent before that beat
    is_out: bool = True  # we have not heard that it has arrived

    @property
    def is_marked(self) -> bool:
        """Whether a beat follows it."""
        return self.mark_us < math.inf


class Least:
    """The least value of the last WINDOW_US, or the last one if that is older."""

    def __init__(self) -> None:
        self._rising: deque[tuple[int, int]] = deque()  # when, value: what a later and lesser one follows is not kept

    @property
    def value(self) -> int | None:
        return self._rising[0][1] if self._rising else None

    def add(self, value: int, *, now_us: int) -> None:
        while self._rising and self._rising[-1][1] >= value:
            self._rising.pop()
        self._rising.append((now_us, value))
        while self._rising[0][0] < now_us - WINDOW_US:
            self._rising.popleft()


class Beats:
    """One end's account of the beats and loads of one link. All times in microseconds."""

    def __init__(self) -> None:
        self.sent_bytes = 0  # over this link, kept by whoever sends
        self._sent_us = 0
        self._echo_us = 0  # the last beat's `sent_us`, by the other end's clock
        self._echo_taken_us = 0  # when it came, by ours
        self._round_trip_us = Least()
        self._way_us = Least()  # out, and the difference of the clocks
        self._loads: deque[Load] = deque(maxlen=MAX_LOADS)
        self._unmarked: list[Load] = []  # of these the ones no beat was sent behind
        self._free_since_us = 0  # when we heard that a load had arrived
        self._arrived_us = -math.inf  # when the last load had, by the other end's clock
        self._train_us = -math.inf  # when the first of the loads without a gap began to arrive, by the same clock
        self._train_bytes = 0  # sent before it
        self._rates: deque[float] = deque(maxlen=NUM_RATES)
        self.bytes_per_s: float | None = None

    @property
    def round_trip_s(self) -> float | None:
        """The least of the last beats, as waiting behind others is not distance."""
        least_us = self._round_trip_us.value
        return None if least_us is None else least_us / 1e6

    def next_beat(self, *, now_us: int) -> Beat:
        """The beat to send now, behind every load that has begun."""
        self._sent_us = max(now_us, self._sent_us + 1)  # echoes tell beats apart by it
        for load in self._unmarked:
            load.mark_us, load.end_bytes = self._sent_us, self.sent_bytes
        self._unmarked.clear()
        return Beat(self._sent_us, self._echo_us, self._sent_us - self._echo_taken_us if self._echo_us else 0)

    def begin(self, *, now_us: int) -> Load:
        """A load is to be sent now, and then a beat if none was sent meanwhile."""
        load = Load(now_us, self.sent_bytes)
        self._loads.append(load)
        self._unmarked.append(load)
        return load

    def forget_loads(self) -> None:
        """One was not sent after all: what is under way is no longer known."""
        for load in self._loads:
            load.is_out = False
        self._loads.clear()
        self._unmarked.clear()
        self._train_us = -math.inf

    def take(self, beat: Beat, *, now_us: int, behind_load: bool = False) -> None:
        """A beat of the other end has come, maybe right behind a load of theirs."""
        self._echo_us, self._echo_taken_us = beat.sent_us, now_us
        if not beat.echo_us:
            return
        arrived_us = beat.sent_us - beat.held_us  # our beat, by the other end's clock
        if self._loads and self._loads[0].mark_us <= beat.echo_us:
            self._take_loads(beat.echo_us, arrived_us)
            self._free_since_us = now_us
        elif self._was_free(beat.echo_us):
            self._way_us.add(arrived_us - beat.echo_us, now_us=now_us)
            round_trip_us = now_us - beat.echo_us - beat.held_us
            if round_trip_us >= 0 and not behind_load:
                self._round_trip_us.add(round_trip_us, now_us=now_us)

    def _was_free(self, sent_us: int) -> bool:
        """Whether no load was under way when a beat of ours was sent."""
        return sent_us >= self._free_since_us and not (self._loads and self._loads[0].start_us <= sent_us)

    def _take_loads(self, echo_us: int, arrived_us: int) -> None:
        """Every load with its mark at or before `echo_us` has arrived."""
        arrived = []
        while self._loads and self._loads[0].mark_us <= echo_us:
            arrived.append(self._loads.popleft())
            arrived[-1].is_out = False
        first, last = arrived[0], arrived[-1]
        if (way_us := self._way_us.value) is not None:
            begin_us = first.start_us + way_us
            if begin_us > self._arrived_us or arrived_us - self._train_us > TRAIN_US:
                self._train_us, self._train_bytes = max(begin_us, self._arrived_us), first.start_bytes
            exact = first.mark_us == echo_us  # or there may have been gaps
            self._add_rate(last.end_bytes - self._train_bytes, arrived_us - self._train_us, exact=exact)
            if not exact:
                self._train_us = -math.inf
        self._arrived_us = arrived_us

    def _add_rate(self, num_bytes: int, elapsed_us: float, *, exact: bool) -> None:
        """Take a measurement: of the rate, or of what it is at least, which tells nothing below what is known."""
        bytes_per_s = num_bytes / max(elapsed_us, RESOLUTION_US) * 1e6
        if self.bytes_per_s is None or bytes_per_s > self.bytes_per_s or (exact and elapsed_us >= RESOLUTION_US):
            self._rates.append(bytes_per_s)
            self.bytes_per_s = median_high(self._rates)
