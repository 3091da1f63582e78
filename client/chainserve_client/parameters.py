"""What a request may ask for, checked before anything is sent."""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypedDict

from chainserve.errors import RequestError

TIMEOUT_S = 600.0
"""A request that has not ended by then is given up, unless it says otherwise."""


class GenerationOptions(TypedDict, total=False):
    """Keyword arguments of `generate` and `stream`; see `Parameters`."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stop: str | Sequence[str]
    timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """How to continue a prompt.

    `temperature` 0 takes the likeliest token; above, tokens are drawn among the `top_k` likeliest (0: all) that
    together have probability `top_p`. Equal `seed`s draw equal tokens. Generation ends after `max_new_tokens`, at
    the model's own end token, or before the first of the `stop` texts. `timeout_s` is how long the request may take in
    all: waiting for a place, generating, and going on elsewhere when servers are lost.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    timeout_s: float = TIMEOUT_S

    def __post_init__(self) -> None:
        _check(_is_int(self.max_new_tokens) and self.max_new_tokens >= 1, "max_new_tokens", "an integer >= 1")
        _check(_is_real(self.temperature) and self.temperature >= 0, "temperature", "a number >= 0")
        _check(_is_real(self.top_p) and 0 < self.top_p <= 1, "top_p", "a number in (0, 1]")
        _check(_is_int(self.top_k) and self.top_k >= 0, "top_k", "an integer >= 0 (0 keeps all)")
        _check(self.seed is None or (_is_int(self.seed) and 0 <= self.seed < 2**63), "seed", "an integer in [0, 2^63)")
        _check(_is_real(self.timeout_s) and self.timeout_s > 0, "timeout_s", "a number > 0")
        _check(all(isinstance(text, str) and text for text in self.stop), "stop", "one or more texts, none empty")

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> "Parameters":
        """Build from keyword arguments; RequestError names what is unknown or out of range."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
                raise RequestError(f"unknown parameter {name!r}: {hint}")
        values = dict(options)
        if "stop" in values:
            stop = values["stop"]
            values["stop"] = (stop,) if isinstance(stop, str) else tuple(stop or ())
        return cls(**values)


def _check(holds: bool, name: str, wanted: str) -> None:
    if not holds:
        raise RequestError(f"{name} must be {wanted}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
