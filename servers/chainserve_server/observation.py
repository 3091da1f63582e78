"""What a server sees of its own work: requests, tokens, and steps that take longer than was predicted."""

import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from chainserve.planning.profile import StepTimes
from chainserve.swarm.offers import LEAST_STEP_S, Demand, StepCheck
from chainserve_server.work import Forward

WINDOW_S = 600.0
LEAST_WINDOW_S = 60.0
"""Requests of a shorter time say nothing about a rate."""

RATE_WINDOW_S = 10.0

NUM_STEPS = 64
"""Steps of each kind that are remembered."""
LEAST_STEPS = 8
"""Fewer say nothing about a speed."""
BUSY = 2.0
"""A device that is so many times as fast as when it was measured was busy with something else then."""
LEAST_PREFILL_TOKENS = 8
"""Shorter chunks than those that were measured are no evidence against the measurement."""


class DemandWindow:
    """Requests of the last minutes that had their head here."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since_s = clock()
        self._arrived_s: deque[float] = deque()
        self._served: deque[tuple[float, int, int]] = deque()  # when it ended, tokens in, tokens out

    def arrived(self) -> None:
        """A request has come."""
        self._arrived_s.append(self._clock())

    def served(self, input_tokens: int, output_tokens: int) -> None:
        """A request has ended."""
        self._served.append((self._clock(), input_tokens, output_tokens))

    def seen(self) -> Demand | None:
        """The window up to now; None until a request has ended in it."""
        begin_s = self._clock() - WINDOW_S
        while self._arrived_s and self._arrived_s[0] < begin_s:
            self._arrived_s.popleft()
        while self._served and self._served[0][0] < begin_s:
            self._served.popleft()
        if not self._served:
            return None
        return Demand(
            num_requests=len(self._arrived_s),
            window_s=min(max(self._clock() - self._since_s, LEAST_WINDOW_S), WINDOW_S),
            input_tokens=statistics.fmean(num_in for _, num_in, _ in self._served),
            output_tokens=statistics.fmean(num_out for *_, num_out in self._served),
        )


class TokenRate:
    """Tokens of answers that came through this server's blocks in the last seconds."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._came: deque[tuple[float, int]] = deque()
        self._num_tokens = 0  # of all of these: in ten seconds tens of thousands of steps may come

    def came(self, num_tokens: int) -> None:
        """Some have come."""
        self._came.append((self._clock(), num_tokens))
        self._num_tokens += num_tokens
        self._forget()

    @property
    def per_s(self) -> float:
        self._forget()
        return self._num_tokens / RATE_WINDOW_S

    def _forget(self) -> None:
        begin_s = self._clock() - RATE_WINDOW_S
        while self._came and self._came[0][0] < begin_s:
            self._num_tokens -= self._came.popleft()[1]


class StepChecks:
    """Predicted beside observed seconds of the last steps, prefill and decoding apart."""

    def __init__(self, times: StepTimes) -> None:
        self._times = times
        self._prefill: deque[tuple[float, float]] = deque(maxlen=NUM_STEPS)
        self._decode: deque[tuple[float, float]] = deque(maxlen=NUM_STEPS)

    def observe(self, forward: Forward) -> None:
        """Take note of a forward; one that did both kinds of work says nothing about either."""
        predicted_s = self._times.step_s(
            forward.num_decode,
            forward.num_prefill_tokens,
            num_blocks=len(forward.span),
            num_outputs=forward.num_outputs,
        )
        if min(predicted_s, forward.seconds) < LEAST_STEP_S:  # lines may fall to 0 beyond what was measured
            return
        if not forward.num_prefill_tokens:
            self._decode.append((predicted_s, forward.seconds))
        elif not forward.num_decode and forward.num_prefill_tokens >= LEAST_PREFILL_TOKENS:
            self._prefill.append((predicted_s, forward.seconds))

    @property
    def prefill(self) -> StepCheck | None:
        return _check(self._prefill)

    @property
    def decode(self) -> StepCheck | None:
        return _check(self._decode)

    @property
    def was_busy(self) -> bool:
        """Whether the device was busy with something else when it was measured: it is much faster now."""
        return any(check is not None and check.ratio * BUSY < 1 for check in (self.prefill, self.decode))


@dataclass(frozen=True, slots=True)
class Observed:
    """All of it."""

    demand: DemandWindow
    tokens: TokenRate
    checks: StepChecks


def _check(steps: deque[tuple[float, float]]) -> StepCheck | None:
    """The median prediction, and that times the median ratio: single steps that were held up do not count."""
    if len(steps) < LEAST_STEPS:
        return None
    predicted_s = statistics.median(predicted for predicted, _ in steps)
    ratio = statistics.median(observed / predicted for predicted, observed in steps)
    return StepCheck(predicted_s=predicted_s, observed_s=predicted_s * ratio)
