"""How the tail chooses tokens from logits, as a client asks for it."""

import math
from dataclasses import dataclass

from chainserve.errors import GrammarError, RequestError

MAX_BIASED = 1024
MAX_LOGPROBS = 20
MAX_END_TOKENS = 256
MAX_BIAS = 1e4
MAX_GRAMMAR_BYTES = 64 * 2**10
MAX_DRAFTS = 63
"""A step's outputs, one more, are no more rows than servers keep memory for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Parameters of one request; the same for its whole life, also when it goes on over another chain.

    Penalties count the tokens of the request: `repetition_penalty` those of prompt and answer (Keskar et al. 2019),
    `presence_penalty` and `frequency_penalty` those of the answer, which begins at `num_prompt_tokens`. What is drawn
    depends on `seed` and the token's position only, so that a token drawn again is the same. RequestError if a value is
    out of its range.
    """

    num_prompt_tokens: int
    temperature: float = 0.0  # 0 takes the likeliest token
    top_p: float = 1.0
    top_k: int = 0  # 0 keeps all
    min_p: float = 0.0  # keep tokens with at least this share of the likeliest one's probability
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    end_tokens: tuple[int, ...] = ()  # those after which nothing more is wanted
    num_logprobs: int | None = None  # likeliest tokens to report with each token; None: report nothing
    max_drafts: int = 0  # tokens drafted ahead per step, at most
    drafts_by_client: bool = False  # the head waits for them before each step but the first
    grammar: str | None = None  # the answer, up to its end token, is in it; in llguidance's form of Lark

    def __post_init__(self) -> None:
        _require("temperature", self.temperature, 0.0, 100.0)
        _require("top_p", self.top_p, 1e-9, 1.0)
        _require("top_k", self.top_k, 0, 2**31)
        _require("min_p", self.min_p, 0.0, 1.0)
        _require("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _require("presence_penalty", self.presence_penalty, -100.0, 100.0)
        _require("frequency_penalty", self.frequency_penalty, -100.0, 100.0)
        _require("seed", self.seed, 0, 2**63 - 1)
        _require("number of biased tokens", len(self.logit_bias), 0, MAX_BIASED)
        for _, bias in self.logit_bias:
            _require("logit bias", bias, -MAX_BIAS, MAX_BIAS)
        _require("number of end tokens", len(self.end_tokens), 0, MAX_END_TOKENS)
        if self.num_logprobs is not None:
            _require("num_logprobs", self.num_logprobs, 0, MAX_LOGPROBS)
        _require("max_drafts", self.max_drafts, 0, MAX_DRAFTS)
        if self.grammar is not None:
            _check_grammar(self.grammar)
            if not self.end_tokens:
                raise RequestError("a grammar takes at least one end token: the answer ends where the grammar does")

    @property
    def needs_history(self) -> bool:
        """Whether the choice depends on the tokens before."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


def _check_grammar(grammar: str) -> None:
    try:
        num_bytes = len(grammar.encode())
    except UnicodeEncodeError:
        raise RequestError("the grammar is no Unicode text: it holds half of a surrogate pair") from None
    if not 1 <= num_bytes <= MAX_GRAMMAR_BYTES:
        raise GrammarError(f"the grammar takes {num_bytes} bytes: it may be 1 to {MAX_GRAMMAR_BYTES}")


def _require(name: str, value: float, least: float, most: float) -> None:
    if not (math.isfinite(value) and least <= value <= most):
        raise RequestError(f"{name} is {value}: it has to be from {least:g} to {most:g}")
