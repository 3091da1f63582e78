"""How many tokens to draft ahead: as many as make tokens come fastest, none where that does not pay."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import mul

PRIOR_WRONG = 1.0
PRIOR_RIGHT = (0.25, 1.0, 2.0, 3.0)
"""Drafts after one, two, three and more tokens of matching text, taken for seen before there were any: on code and
chat about as many were right as these say."""
ALIKE = len(PRIOR_RIGHT)
"""The match to give for drafts that nothing tells apart, as those of a model."""
DECAY = 0.9
"""What a draft counts one such draft later: text changes its character within some ten steps."""
SMOOTHING = 0.2
"""Weight of a new step's time."""


def best_num_drafts(acceptances: Sequence[float], step_s: Callable[[int], float]) -> int:
    """The number of drafts for which most tokens come per second; the least of equals.

    `acceptances[i]`: probability that draft i is right where those before it are. `step_s(k)`: seconds of a step with k
    drafts, around the whole chain, which gives 1 + a_1 + a_1 a_2 + ... tokens in the mean (Leviathan et al. 2023,
    Eq. 1, where all are equally likely).
    """
    tokens = list(accumulate(accumulate(acceptances, mul), initial=1.0))
    return max(range(len(tokens)), key=lambda num: tokens[num] / step_s(num))


class Speculation:
    """What one session has seen of its drafts and its steps, and how many drafts that suggests.

    The more text has matched before a draft, the likelier it is right. So drafts count by this length: that of the
    match for the first of a step, and one more for each after it.
    """

    def __init__(self, extra_s: Callable[[int], float]) -> None:
        """`extra_s(k)`: by how many seconds k drafts make a step longer."""
        self._extra_s = extra_s
        self._right = list(PRIOR_RIGHT)
        self._wrong = [PRIOR_WRONG] * len(PRIOR_RIGHT)
        self.plain_s: float | None = None
        """A step without drafts; None: none was timed."""

    def acceptance(self, match: int) -> float:
        """Share of drafts that are right after so many tokens that match, drafts before them included."""
        at = _place(match)
        return self._right[at] / (self._right[at] + self._wrong[at])

    def num_drafts(self, *, match: int, most: int) -> int:
        """How many to send with the next step, of `most` that there are after a match of so many tokens."""
        if self.plain_s is None:
            return 0
        plain_s = self.plain_s
        acceptances = [self.acceptance(match + num) for num in range(most)]
        return best_num_drafts(acceptances, lambda num: plain_s + self._extra_s(num))

    def verified(self, match: int, num_right: int, *, num_wrong: int) -> None:
        """Drafts were compared to what came: right ones in a row, and the wrong one after them, if any was."""
        for num in range(num_right + num_wrong):
            at, is_right = _place(match + num), num < num_right
            self._right[at] = PRIOR_RIGHT[at] + (self._right[at] - PRIOR_RIGHT[at]) * DECAY + is_right
            self._wrong[at] = PRIOR_WRONG + (self._wrong[at] - PRIOR_WRONG) * DECAY + (not is_right)

    def took(self, seconds: float, *, num_drafts: int) -> None:
        """A step with so many drafts came around the chain."""
        plain_s = max(seconds - self._extra_s(num_drafts), seconds / (1 + num_drafts))
        self.plain_s = plain_s if self.plain_s is None else self.plain_s + SMOOTHING * (plain_s - self.plain_s)


def _place(match: int) -> int:
    return min(match, len(PRIOR_RIGHT)) - 1
