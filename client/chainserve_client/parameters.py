"""What a request may ask for, checked before anything is sent."""

import difflib
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict

from chainserve.errors import RequestError
from chainserve.protocol.sampling import MAX_BIAS, MAX_BIASED, MAX_DRAFTS, MAX_LOGPROBS, Sampling

TIMEOUT_S = 600.0
"""A request that has not ended by then is given up, unless it says otherwise."""


USUAL_DRAFTS = 16


class GenerationOptions(TypedDict, total=False):
    """Keyword arguments of `generate` and `stream`; see `Parameters`."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None
    stop: str | Sequence[str]
    stop_tokens: Sequence[int]
    ignore_end: bool
    num_logprobs: int | None
    max_drafts: int
    grammar: str | None
    timeout_s: float
    max_wait_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """How to continue a prompt.

    `temperature` 0 takes the likeliest token; above, tokens are drawn among the `top_k` likeliest (0: all) that
    together have probability `top_p`, and that are each at least `min_p` times as likely as the likeliest. Equal
    `seed`s draw equal tokens. `repetition_penalty` divides the scores of tokens of prompt and answer,
    `presence_penalty` and `frequency_penalty` are taken off those of tokens of the answer, once and per occurrence, and
    `logit_bias` is added to those of the tokens it names.

    Generation ends after `max_new_tokens`, at the model's own end token unless `ignore_end`, at one of the
    `stop_tokens`, or before the first of the `stop` texts. With `num_logprobs` each piece comes with its
    log-probability and those of as many likeliest tokens. `max_drafts` tokens per step may be drafted ahead from the
    text so far and verified at once, which changes nothing but speed; 0 turns that off.

    With a `grammar`, in llguidance's form of Lark, only tokens are chosen with which the answer stays in it; the others
    do not count for `top_k`, `top_p` and `min_p`, and log-probabilities are as without. An end token comes only where
    the grammar may end, and must come where nothing else can.

    `timeout_s` is how long the request may take in all: waiting for a place, generating, and going on elsewhere when
    servers are lost. With `max_wait_s` it is given up at once when all chains are full and the first place is expected
    later than that.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    ignore_end: bool = False
    num_logprobs: int | None = None
    max_drafts: int = USUAL_DRAFTS
    grammar: str | None = None
    timeout_s: float = TIMEOUT_S
    max_wait_s: float | None = None

    def __post_init__(self) -> None:
        _check(_is_int(self.max_new_tokens) and self.max_new_tokens >= 1, "max_new_tokens", "an integer >= 1")
        _check(_is_real(self.temperature) and self.temperature >= 0, "temperature", "a number >= 0")
        _check(_is_real(self.top_p) and 0 < self.top_p <= 1, "top_p", "a number in (0, 1]")
        _check(_is_int(self.top_k) and self.top_k >= 0, "top_k", "an integer >= 0 (0 keeps all)")
        _check(_is_real(self.min_p) and 0 <= self.min_p <= 1, "min_p", "a number in [0, 1]")
        penalty = self.repetition_penalty
        _check(_is_real(penalty) and 0.01 <= penalty <= 100, "repetition_penalty", "a number in [0.01, 100]")
        for name in ("presence_penalty", "frequency_penalty"):
            penalty = getattr(self, name)
            _check(_is_real(penalty) and -2 <= penalty <= 2, name, "a number in [-2, 2]")
        biases = self.logit_bias.items() if isinstance(self.logit_bias, Mapping) else [(None, None)]
        are_biases = all(_is_int(t) and t >= 0 and _is_real(bias) and abs(bias) <= MAX_BIAS for t, bias in biases)
        _check(are_biases and len(biases) <= MAX_BIASED, "logit_bias", f"token ids with a number, {MAX_BIASED} at most")
        _check(self.seed is None or (_is_int(self.seed) and 0 <= self.seed < 2**63), "seed", "an integer in [0, 2^63)")
        _check(_is_real(self.timeout_s) and self.timeout_s > 0, "timeout_s", "a number > 0")
        wait_s = self.max_wait_s
        _check(wait_s is None or (_is_real(wait_s) and wait_s >= 0), "max_wait_s", "a number >= 0")
        _check(all(isinstance(text, str) and text for text in self.stop), "stop", "one or more texts, none empty")
        _check(all(_is_int(token) and token >= 0 for token in self.stop_tokens), "stop_tokens", "token ids")
        _check(self.grammar is None or isinstance(self.grammar, str), "grammar", "a text")
        _check(self.grammar is None or not self.ignore_end, "ignore_end", "False with a grammar, which ends the answer")
        num = self.num_logprobs
        are_known = num is None or (_is_int(num) and 0 <= num <= MAX_LOGPROBS)
        _check(are_known, "num_logprobs", f"an integer in [0, {MAX_LOGPROBS}]")
        _check(
            _is_int(self.max_drafts) and 0 <= self.max_drafts <= MAX_DRAFTS,
            "max_drafts",
            f"an integer in [0, {MAX_DRAFTS}]",
        )

    def sampling(self, *, num_prompt_tokens: int, end_tokens: frozenset[int]) -> Sampling:
        """What the tail has to know, for a prompt of so many tokens and a model that ends its answers with these."""
        ends = {*self.stop_tokens, *(() if self.ignore_end else end_tokens)}
        return Sampling(
            num_prompt_tokens=num_prompt_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=secrets.randbits(63) if self.seed is None else self.seed,
            logit_bias=tuple((token, float(bias)) for token, bias in sorted(self.logit_bias.items())),
            end_tokens=tuple(sorted(ends)),
            num_logprobs=self.num_logprobs,
            max_drafts=self.max_drafts,
            grammar=self.grammar,
        )

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
        if "stop_tokens" in values:
            values["stop_tokens"] = tuple(values["stop_tokens"] or ())
        return cls(**values)


def _check(holds: bool, name: str, wanted: str) -> None:
    if not holds:
        raise RequestError(f"{name} must be {wanted}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
