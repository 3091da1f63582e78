"""A small model on this machine that drafts for the swarm's large one. It takes torch and transformers.

It draws each token as the tail will: by the request's parameters, with the number that belongs to seed and position. So
also what is drawn is often the same.
"""

import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Self

import torch

from chainserve.errors import CacheFullError, ModelNotFoundError
from chainserve.models.cache import KVCache
from chainserve.models.ends import Ends
from chainserve.models.linear import default_dtype
from chainserve.models.load import load_weights
from chainserve.models.resolve import resolve
from chainserve.models.runner import Runner
from chainserve.models.sampling import TokenSampler
from chainserve.models.skeleton import build_skeleton
from chainserve.models.support import check_supported
from chainserve.planning.profile import MAX_BATCH_TOKENS
from chainserve.protocol.messages import Step
from chainserve.protocol.sampling import Sampling
from chainserve.types import SessionId, Span
from chainserve_client.drafting import Drafting
from chainserve_client.text_model import TextModel

logger = logging.getLogger(__name__)

CACHE_TOKENS = 32_768
"""Of all requests at once; those for which there is no room do without drafts."""
LEAST_COMMON = 0.99
"""Share of the large model's tokens that have to be the small one's too; special tokens differ within families."""


class DraftModel:
    """All blocks and both ends of a model, and the thread that runs them."""

    def __init__(self, name: str, runner: Runner, *, tokens: Mapping[str, int], vocab_size: int) -> None:
        self.name = name
        self.runner = runner
        self.vocab_size = vocab_size
        self._tokens = tokens
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="drafts")

    @classmethod
    def load(cls, name: str, *, dtype: torch.dtype | None = None) -> Self:
        """The model that `name` stands for on this machine, on its GPU if it has one, in what that computes fastest.

        ModelNotFoundError, UnsupportedModelError or WeightsError if that cannot be.
        """
        source = resolve(name)
        check_supported(source.config)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or default_dtype(device)
        span = Span(0, source.num_blocks)
        blocks = build_skeleton(source.config, span)
        ends = build_skeleton(source.config, None, embed=True, head=True)
        for part in (blocks, ends):
            load_weights(part, source, dtype=dtype, device=device, progress=False)
        runner = Runner(blocks, span, KVCache(span, budget_tokens=CACHE_TOKENS), ends=Ends(ends))
        runner.warm_up()
        return cls(name, runner, tokens=source.tokenizer().get_vocab(), vocab_size=source.config.vocab_size)

    def check_fits(self, text: TextModel) -> None:
        """ModelNotFoundError unless the swarm's model has the same tokens."""
        wanted = text.tokens()
        num_common = sum(self._tokens.get(token) == number for token, number in wanted.items())
        if num_common < LEAST_COMMON * len(wanted):
            raise ModelNotFoundError(
                f"{self.name} cannot draft for {text.name}: they share {num_common:,} of {len(wanted):,} tokens; "
                f"name a smaller model of the same family"
            )

    def begin(self, sampling: Sampling, *, max_tokens: int) -> Drafting | None:
        """Draft for a request of at most so many tokens; None if it wants no drafts, or there is no room for it."""
        if not sampling.max_drafts:
            return None
        session = SessionId(secrets.token_bytes(16))
        try:
            self.runner.cache.reserve(session, self.runner.span, num_lanes=1, max_tokens=max_tokens)
        except CacheFullError as error:
            logger.info("a request does without drafts: %s", error)
            return None
        alone = replace(sampling, grammar=None, num_logprobs=None, end_tokens=())
        draft = _ModelDraft(self, session, TokenSampler(session, alone, max_tokens=max_tokens), max_tokens=max_tokens)
        return Drafting(draft, self.thread, most=sampling.max_drafts)

    def close(self) -> None:
        """End the thread."""
        self.thread.shutdown(wait=False, cancel_futures=True)


class _ModelDraft:
    """The tokens of one request as far as the draft model has cached them."""

    def __init__(self, model: DraftModel, session: SessionId, sampler: TokenSampler, *, max_tokens: int) -> None:
        self._model = model
        self._session = session
        self._sampler = sampler
        self._max_tokens = max_tokens
        self._cached: list[int] = []

    def following(self, ids: Sequence[int]) -> Iterator[int]:
        known = zip(self._cached, ids[:-1], strict=False)  # the last one has to run in any case
        start = next((at for at, (old, new) in enumerate(known) if old != new), min(len(self._cached), len(ids) - 1))
        new = list(ids[start:])
        while start + len(new) <= self._max_tokens and max(new) < self._model.vocab_size:
            row = self._run(start, new)
            self._cached[start:] = new
            self._sampler.take(start, new)
            start += len(new)
            likeliest = row.argmax(dim=-1).tolist()
            new = list(self._sampler.choose(row, start=start - 1, drafts=(), likeliest=likeliest).ids)
            yield new[0]

    def _run(self, start: int, ids: Sequence[int]) -> torch.Tensor:
        """Logits (1, vocab) behind these tokens, the first of which is at position `start`."""
        runner = self._model.runner
        for first in range(0, len(ids), MAX_BATCH_TOKENS):
            part = ids[first : first + MAX_BATCH_TOKENS]
            hidden = runner.ends.embed(torch.tensor(part, device=runner.device))
            step = Step(self._session, 0, start + first, len(part), 1, ids=tuple(part))
            hidden = runner.forward(hidden, [step], runner.span)
        return runner.ends.logits(hidden[-1:])

    def close(self) -> None:
        self._model.runner.cache.release(self._session)
