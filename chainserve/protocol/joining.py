"""A client's search for a place by rules that join one chain and stay there, free or not. For benchmarks.

All heads are asked at once. When all have answered, the chain of least cost is joined; where it has no place, the
request waits in its queue until one is offered.
"""

import math
import random
from collections.abc import Callable, Sequence

from chainserve.protocol.search import Candidate, PlaceSearch, Sending, _Answer
from chainserve.types import SessionId

Cost = Callable[[SessionId, float, int], float]
"""Of a chain, by its session, the seconds that its head lets it wait, and how many wait before it."""


class JoinSearch(PlaceSearch):
    """One request's search; of equal costs a chain is drawn."""

    def __init__(
        self, candidates: Sequence[Candidate], *, epoch: int, num_tokens: int, rng: random.Random, cost: Cost
    ) -> None:
        super().__init__(candidates, epoch=epoch, num_tokens=num_tokens, rng=rng)
        self._cost = cost
        self._rng = rng
        self._joined: SessionId | None = None

    def begin(self) -> list[Sending]:
        """Ask for all chains."""
        return self._ask(len(self._unasked))

    def _decide(self) -> list[Sending]:
        withdrawn: list[Sending] = []
        if self._joined is None:
            if not self._answers or _Answer.AWAITED in self._answers.values():
                return []
            self._joined = min(self._answers, key=lambda session: (self._cost_of(session), self._rng.random()))
            withdrawn = self._withdraw([other for other in self._answers if other != self._joined])
        if self._answers.get(self._joined) is _Answer.OFFERED:
            del self._answers[self._joined]
            self.found = self._candidates[self._joined]
        return withdrawn

    def _cost_of(self, session: SessionId) -> float:
        queued = self._waits.get(session)
        if queued is not None:
            return self._cost(session, queued.wait_ms / 1000, queued.position + 1)
        return self._cost(session, 0.0, 0) if self._answers[session] is _Answer.OFFERED else math.inf  # a silent head
