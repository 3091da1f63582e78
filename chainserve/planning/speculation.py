"""How many tokens to draft ahead: as many as make tokens come fastest, none where that does not pay."""

from collections.abc import Callable

DECAY = 0.9
"""What a draft counts one step later: text changes its character within some ten steps."""
PRIOR = 1.0
"""Right and wrong drafts that are taken for seen before there were any."""
SMOOTHING = 0.2
"""Weight of a new step's time."""


def expected_tokens(acceptance: float, num_drafts: int) -> float:
    """Tokens that a step with so many drafts gives in the mean, each right with probability `acceptance`.

    Leviathan et al. 2023, Eq. 1: (1 - a^(k+1)) / (1 - a).
    """
    if acceptance >= 1:
        return num_drafts + 1.0
    return float((1 - acceptance ** (num_drafts + 1)) / (1 - acceptance))


def best_num_drafts(acceptance: float, step_s: Callable[[int], float], *, most: int) -> int:
    """The number of drafts, up to `most`, for which most tokens come per second; the least of equals.

    `step_s(k)` are the seconds of a step with k drafts, around the whole chain.
    """
    return max(range(most + 1), key=lambda num: expected_tokens(acceptance, num) / step_s(num))


class Speculation:
    """What one session has seen of its drafts and its steps, and how many drafts that suggests."""

    def __init__(self, extra_s: Callable[[int], float]) -> None:
        """`extra_s(k)`: by how many seconds k drafts make a step longer."""
        self._extra_s = extra_s
        self._right = self._wrong = PRIOR
        self.plain_s: float | None = None
        """A step without drafts; None: none was timed."""

    @property
    def acceptance(self) -> float:
        """Share of drafts that are right, where those before them are."""
        return self._right / (self._right + self._wrong)

    def num_drafts(self, *, most: int) -> int:
        """How many to send with the next step, of `most` that there are."""
        if self.plain_s is None:
            return 0
        plain_s = self.plain_s
        return best_num_drafts(self.acceptance, lambda num: plain_s + self._extra_s(num), most=most)

    def verified(self, num_right: int, *, num_wrong: int) -> None:
        """Drafts were compared to what came: right ones in a row, and the wrong one after them, if any was."""
        self._right = PRIOR + (self._right - PRIOR) * DECAY + num_right
        self._wrong = PRIOR + (self._wrong - PRIOR) * DECAY + num_wrong

    def took(self, seconds: float, *, num_drafts: int) -> None:
        """A step with so many drafts came around the chain."""
        plain_s = max(seconds - self._extra_s(num_drafts), seconds / (1 + num_drafts))
        self.plain_s = plain_s if self.plain_s is None else self.plain_s + SMOOTHING * (plain_s - self.plain_s)
