"""A model whose `generate()` is transformers' own and whose blocks are in the swarm.

Beam search, custom logits processors, `inputs_embeds`, streamers: all that GenerationMixin offers works, as it calls
`forward` and reorders the cache like for any other model. Embedding and head run here, blocks on the servers.
"""

from collections.abc import Sequence
from typing import Any, Self, cast

import torch
from transformers import Cache, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from chainserve.errors import RequestError
from chainserve.models.cache_name import CACHE
from chainserve_client.blocking import Client
from chainserve_client.local_model import load_local_model
from chainserve_client.session import Session


class RemoteCache(Cache):
    """Stands for what the servers have cached for a batch of sequences; one lane of the session per sequence."""

    def __init__(self, client: Client, *, num_lanes: int, max_tokens: int) -> None:
        super().__init__(layers=[])
        self._client = client
        opening = client.asynchronous.open_session(num_lanes=num_lanes, max_tokens=max_tokens)
        self.session: Session = client.thread.run(opening)
        self._num_columns = 0  # tokens per sequence as the caller counts them: padding included
        self._padding = [0] * num_lanes

    def step(self, hidden: torch.Tensor, mask: torch.Tensor, num_columns: int) -> torch.Tensor:
        """Run new columns (lanes, new, hidden) where `mask` (lanes, new) is true.

        Returns outputs (lanes, num_columns, hidden) of the last columns, zero where they are padding.
        """
        wanted = mask[:, mask.shape[1] - num_columns :]
        running = self.session.step(hidden[mask], _counts(mask), _counts(wanted))
        outputs = self._client.thread.run(running)
        result = hidden.new_zeros(*wanted.shape, hidden.shape[-1])
        result[wanted] = torch.cat(outputs)
        self._num_columns += mask.shape[1]
        self._padding = [old + new for old, new in zip(self._padding, _counts(~mask), strict=True)]
        return result

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._num_columns

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Let lane i continue from lane beam_idx[i]."""
        sources = beam_idx.tolist()
        self._padding = [self._padding[source] for source in sources]
        if sources != list(range(len(sources))):
            self._client.thread.run(self.session.reorder(sources))

    def crop(self, max_length: int) -> None:
        """Keep the first `max_length` columns, or all but the last -max_length."""
        length = max_length if max_length >= 0 else self._num_columns + max_length
        if length < self._num_columns:
            self.session.truncate([length - padding for padding in self._padding])
            self._num_columns = length

    def close(self) -> None:
        """Free the session's cache on the servers."""
        self._client.thread.run(self.session.close())


class RemoteModelForCausalLM(PreTrainedModel, GenerationMixin):
    """A causal language model over the blocks of a swarm.

    with Client.connect(token) as client:
        model = RemoteModelForCausalLM(client)
        model.generate(**tokenizer("Once upon a time", return_tensors="pt"), num_beams=4)
    """

    main_input_name = "input_ids"
    _supports_sdpa = True  # of what is computed here, nothing attends

    def __init__(self, client: Client, *, model: str | None = None, progress: bool = False) -> None:
        """`model` is where this machine finds the model, if that is elsewhere than for the servers."""
        chosen = client.asynchronous.model
        local = load_local_model(model or chosen.name, chosen, progress=progress)
        super().__init__(local.source.config)
        self.client = client
        self.tokenizer = local.tokenizer
        self.ends = local.ends
        self.local_part = local.skeleton
        self.generation_config = local.source.generation_config() or GenerationConfig.from_model_config(self.config)
        self._caches: list[RemoteCache] = []

    @classmethod
    def from_swarm(cls, token: str, *, model: str | None = None, progress: bool = False) -> Self:
        """Connect to the swarm of `token`, and load embedding and head of its model; `model.client.close()` leaves it.

        `model` names one of several models of the swarm, or where this machine finds it if that is elsewhere than for
        the servers. ModelNotFoundError if it is not the swarm's.
        """
        client = Client.connect(token, model=model)
        try:
            return cls(client, model=model, progress=progress)
        except BaseException:
            client.close()
            raise

    def new_cache(self, *, num_lanes: int, max_tokens: int) -> RemoteCache:
        """Reserve room on the servers for `num_lanes` sequences of up to `max_tokens` tokens; close it when done."""
        return RemoteCache(self.client, num_lanes=num_lanes, max_tokens=max_tokens)

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: RemoteCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        logits_to_keep: int = 0,
        cache: RemoteCache | None = None,
        **_unused: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (lanes, columns, vocab) of the last `logits_to_keep` columns, or of all for 0.

        Sequences may be padded, on either side, where `attention_mask` (lanes, all columns) is 0. Without a `cache`,
        which earlier versions of transformers call `past_key_values`, nothing stays cached afterwards.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise RequestError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.ends.embed(input_ids.flatten()).unflatten(0, input_ids.shape)
        num_lanes, num_new = inputs_embeds.shape[:2]
        mask = torch.ones(num_lanes, num_new, dtype=torch.bool)
        if attention_mask is not None:
            mask = attention_mask[:, -num_new:].bool()
        given = past_key_values if cache is None else cache  # not `or`: an empty Cache counts as false
        used = self.new_cache(num_lanes=num_lanes, max_tokens=num_new) if given is None else given
        try:
            hidden = used.step(inputs_embeds, mask, logits_to_keep or num_new)
        finally:
            if given is None:
                used.close()
        logits = self.ends.logits(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])
        output: dict[str, Any] = {"logits": logits, CACHE: given}
        return CausalLMOutputWithPast(**output)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As `GenerationMixin.generate`; what it reserves on the servers it frees again."""
        try:
            return GenerationMixin.generate(cast(Any, self), *args, **kwargs)
        finally:
            while self._caches:
                self._caches.pop().close()

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> bool:
        """Called by `generate` to make the cache that its steps fill; whether we made one (nobody asks)."""
        if model_kwargs.get(CACHE) is None:
            copies = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
            cache = self.new_cache(num_lanes=batch_size * copies, max_tokens=max_cache_length)
            self._caches.append(cache)
            model_kwargs[CACHE] = cache
            return True
        return False


def _counts(mask: torch.Tensor) -> Sequence[int]:
    counts: list[int] = mask.sum(dim=1).tolist()
    return counts
