"""From logits to tokens, as `Sampling` says: greedy, or drawn with a number that depends on seed and position only.

So a token is the same whether it is computed alone or in a batch, drafted and verified, or computed once more on
another server: to accept a draft is to draw its token. That accepts a draft as often as rejection sampling does
(Leviathan et al. 2023, where the draft is certain of its draft), and leaves every answer what it is without drafts.
"""

from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from chainserve.models.grammars import Matcher
from chainserve.protocol.messages import Choice, Logprobs
from chainserve.protocol.sampling import Sampling
from chainserve.types import SessionId


class TokenSampler:
    """Chooses the tokens of one session; knows the tokens so far where the choice depends on them."""

    def __init__(
        self, session: SessionId, sampling: Sampling, *, max_tokens: int, matcher: Matcher | None = None
    ) -> None:
        """The token at position `max_tokens` is the last one in any case. `matcher` is for the sampling's grammar."""
        assert (matcher is None) == (sampling.grammar is None)
        self.session = session
        self.sampling = sampling
        self._max_tokens = max_tokens
        self._ends = frozenset(sampling.end_tokens)
        self._history: list[int] = []
        self._matcher = matcher
        self._answer: list[int] = []  # as far as it is known, drafts included; kept for the matcher
        self._biased = torch.tensor([token for token, _ in sampling.logit_bias])
        self._biases = torch.tensor([bias for _, bias in sampling.logit_bias])

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is all that is asked for."""
        how = self.sampling
        is_plain = not how.logit_bias and not how.needs_history and how.grammar is None
        return how.temperature == 0 and is_plain and how.num_logprobs is None

    def take(self, start: int, ids: Sequence[int]) -> None:
        """Learn the tokens from position `start` on; those known from there on are forgotten."""
        if self.sampling.needs_history:
            del self._history[start:]
            assert len(self._history) == start, "tokens came with a gap"
            self._history += ids
        if self._matcher is not None:
            first = self.sampling.num_prompt_tokens
            del self._answer[max(0, start - first) :]
            self._answer += ids[max(0, first - start) :]

    def choose(self, logits: Tensor, *, start: int, drafts: Sequence[int], likeliest: Sequence[int]) -> Choice:
        """The tokens that follow position `start`: one, and one more for every draft that was right.

        `logits` (1 + drafts, vocab) belong to positions `start` and on, of which `likeliest` are the likeliest tokens;
        drafts[i] was taken for the token at start + i + 1. GrammarError if the answer cannot go on by its grammar.
        """
        ids: list[int] = []
        logprobs: list[Logprobs] = []
        for index in range(1 + len(drafts)):
            position = start + index + 1
            token = likeliest[index] if self.is_greedy else self._choose_one(logits[index], position)
            ids.append(token)
            if self.sampling.num_logprobs is not None:
                logprobs.append(logprobs_of(logits[index], token, num=self.sampling.num_logprobs))
            is_last = token in self._ends or position >= self._max_tokens
            if is_last or index == len(drafts) or token != drafts[index]:
                break
        return Choice(self.session, start + 1, tuple(ids), is_last, tuple(logprobs))

    def _choose_one(self, logits: Tensor, position: int) -> int:
        """The token at `position`, from its logits (vocab,)."""
        how = self.sampling
        scores = _numbers(logits)
        if how.needs_history or how.logit_bias:
            scores = self._penalized(scores.clone(), position)
        if self._matcher is not None:
            before = self._answer[: max(0, position - how.num_prompt_tokens)]
            scores = scores.masked_fill(~self._matcher.allowed(before, ends=self._ends)[: len(scores)], -torch.inf)
        if how.temperature == 0:
            return int(scores.argmax())
        # From the likeliest down, so that the lowest temperature overflows towards 0 and not beyond everything.
        kept = filtered(
            (scores - scores.max()).double() / how.temperature, top_k=how.top_k, top_p=how.top_p, min_p=how.min_p
        )
        sums = torch.softmax(kept, dim=-1, dtype=torch.float64).cumsum(0)
        drawn = torch.tensor([uniform(how.seed, position) * float(sums[-1])], dtype=torch.float64)
        token = int(torch.searchsorted(sums, drawn, right=True))
        return min(token, int((kept > -torch.inf).nonzero()[-1]))  # rounding must not lead beyond the last one kept

    def _penalized(self, scores: Tensor, position: int) -> Tensor:
        """Scores with bias and penalties for the tokens before `position`, changed in place."""
        how = self.sampling
        before = self._history[:position]
        if how.repetition_penalty != 1.0 and before:
            seen = torch.tensor(sorted(set(before)))
            old = scores[seen]
            scores[seen] = torch.where(old < 0, old * how.repetition_penalty, old / how.repetition_penalty)
        if answered := Counter(before[how.num_prompt_tokens :]):
            seen = torch.tensor(list(answered))
            counts = torch.tensor(list(answered.values()), dtype=scores.dtype)
            scores[seen] -= how.presence_penalty + how.frequency_penalty * counts
        if how.logit_bias:
            scores.index_add_(0, self._biased, self._biases)
        return scores


def filtered(scores: Tensor, *, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Scores (vocab,) with -inf where a token is not among the `top_k` likeliest, not among the likeliest that together
    have probability `top_p`, or less likely than `min_p` times the likeliest one; the likeliest is always kept."""
    if 0 < top_k < len(scores):
        scores = scores.masked_fill(scores < scores.topk(top_k).values[-1], -torch.inf)
    if top_p < 1:
        ordered, order = scores.sort(descending=True)
        before = torch.softmax(ordered, dim=-1).cumsum(0).roll(1)
        before[0] = 0.0
        scores = scores.masked_fill(
            torch.zeros_like(scores, dtype=torch.bool).scatter_(0, order, before >= top_p), -torch.inf
        )
    if min_p > 0:
        probabilities = torch.softmax(scores, dim=-1)
        scores = scores.masked_fill(probabilities < min_p * probabilities.max(), -torch.inf)
    return scores


def logprobs_of(logits: Tensor, token: int, *, num: int) -> Logprobs:
    """Log-probability of `token` and of the `num` likeliest tokens under logits (vocab,)."""
    logprobs = torch.log_softmax(_numbers(logits), dim=-1)
    values, tokens = logprobs.topk(num) if num else (logprobs[:0], logprobs[:0])
    pairs = zip(map(int, tokens.tolist()), values.tolist(), strict=True)
    return Logprobs(float(logprobs[token]), tuple(pairs))


def _numbers(logits: Tensor) -> Tensor:
    """Logits as float32 on the CPU, all of them finite: a block that overflowed is to give a bad answer, not none."""
    numbers = logits.detach().float().cpu()
    return numbers if bool(numbers.isfinite().all()) else numbers.nan_to_num()


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that looks random, the same for the same seed and position on every machine."""
    digest = blake2b(seed.to_bytes(8, "little") + position.to_bytes(8, "little"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53
