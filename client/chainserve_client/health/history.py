"""The last 24 hours in figures: the last hour finely, what is older in means of five minutes. In memory only."""

from collections import deque
from dataclasses import astuple, dataclass

FINE_S, FINE_KEPT_S = 10.0, 3600.0
COARSE_S, COARSE_KEPT_S = 300.0, 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The swarm at one moment, or its means over some minutes."""

    at: float  # unix seconds
    load: float  # share of the cache in use
    tokens_per_s: float
    num_waiting: float
    num_online: float  # servers

    def to_json(self) -> list[float]:
        return [round(value, 3) for value in astuple(self)]


class History:
    """Samples, oldest first."""

    def __init__(self) -> None:
        self._fine: deque[Sample] = deque(maxlen=int(FINE_KEPT_S / FINE_S))
        self._coarse: deque[Sample] = deque(maxlen=int(COARSE_KEPT_S / COARSE_S))
        self._bucket: list[Sample] = []  # of the five minutes that run

    def is_due(self, at: float) -> bool:
        """Whether enough time has passed for another sample."""
        return not self._fine or at - self._fine[-1].at >= FINE_S

    def add(self, sample: Sample) -> None:
        """Take a sample; what is older than 24 hours goes."""
        if self._bucket and sample.at // COARSE_S != self._bucket[0].at // COARSE_S:
            self._coarse.append(_mean(self._bucket))
            self._bucket = []
        self._bucket.append(sample)
        self._fine.append(sample)
        for kept, longest_s in ((self._fine, FINE_KEPT_S), (self._coarse, COARSE_KEPT_S)):
            while kept and sample.at - kept[0].at > longest_s:
                kept.popleft()

    def samples(self) -> list[Sample]:
        """The means of what is older than the last hour, and that hour."""
        begin = self._fine[0].at if self._fine else float("inf")
        return [*(sample for sample in self._coarse if sample.at + COARSE_S / 2 <= begin), *self._fine]


def _mean(samples: list[Sample]) -> Sample:
    columns = zip(*map(astuple, samples), strict=True)
    at, load, tokens_per_s, num_waiting, num_online = (sum(column) / len(samples) for column in columns)
    return Sample(at=at, load=load, tokens_per_s=tokens_per_s, num_waiting=num_waiting, num_online=num_online)
