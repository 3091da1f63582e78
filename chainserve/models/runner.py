"""Run a server's blocks over packed batches of many sessions."""

from collections.abc import Sequence
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from chainserve.errors import FrameError
from chainserve.models import graphs, lean
from chainserve.models.cache import KVCache
from chainserve.models.ends import Ends
from chainserve.models.linear import pack
from chainserve.models.skeleton import blocks_of, final_norm, with_skips
from chainserve.protocol.messages import DTYPES, Step
from chainserve.types import Span


class Runner:
    """The blocks of one server, with the cache of its sessions. Call it from one thread only."""

    def __init__(self, model: PreTrainedModel, span: Span, cache: KVCache, *, ends: Ends | None = None) -> None:
        """`model` is a loaded skeleton with the blocks of `span` and without its ends, which are `ends`."""
        self._base = model.base_model
        assert isinstance(getattr(self._base, final_norm(self._base)), nn.Identity), "built with a head"
        self._hidden_size = model.config.hidden_size
        self._blocks = {span: blocks_of(self._base)}
        pack(self._blocks[span])
        self.dtype = next(weight.dtype for weight in self._base.parameters() if str(weight.dtype)[6:] in DTYPES)
        """Of the weights that are not quantized, and so of the hidden states that `forward` takes."""
        self.device = next(self._base.parameters()).device
        self._graphs = graphs.Graphs(partial(lean.run_family, self._base)) if self.device.type == "cuda" else None
        like = torch.empty(0, self._hidden_size, dtype=self.dtype)
        self._rotations = lean.Rotations(self._base, like=like)
        self._lean: dict[Span, list[lean.LeanBlock] | None] = {}
        self.span = span
        self.cache = cache
        self.ends = ends or Ends()

    @torch.inference_mode()
    def forward(self, hidden: Tensor, steps: Sequence[Step], span: Span) -> Tensor:
        """Run the blocks of `span`, which may be fewer than the hosted ones: (total, hidden) to (total, hidden).

        `hidden` holds the tokens of all steps one after another: decode steps and prefill chunks alike. StepError,
        before anything changes, if a step does not fit what its session reserved and cached; FrameError if the
        steps do not add up to `hidden`.
        """
        total, width = sum(step.num_tokens for step in steps), self._hidden_size
        if hidden.shape != (total, width):
            raise FrameError(f"steps need hidden states of shape {(total, width)}, got {tuple(hidden.shape)}")
        cache = self.cache.begin(steps, span)
        blocks = self._blocks_of(span)
        output = None
        if self._graphs is not None and total <= graphs.MOST_ROWS and (table := cache.table(span)) is not None:
            output = self._graphs.forward(hidden, table, blocks, span)
        if output is None:
            ranges = (range(step.start, step.start + step.num_tokens) for step in steps)
            positions = torch.tensor([*chain.from_iterable(ranges)], device=hidden.device)
            if total <= lean.MOST_ROWS and (few := self._lean_of(span)) is not None:
                output = lean.run_lean(hidden, self._rotations.at(positions), cache, few)
            else:
                output = lean.run_family(self._base, hidden, positions, cache, blocks)
        cache.commit()
        return output

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Make ready for small batches through all blocks, before there are any sessions."""
        self._lean_of(self.span)
        if self._graphs is not None:
            like = torch.zeros(1, self._hidden_size, dtype=self.dtype, device=self.device)
            self._graphs.prepare(like, self._blocks[self.span], self.span)

    def _lean_of(self, span: Span) -> list[lean.LeanBlock] | None:
        if span not in self._lean:
            like = torch.empty(0, self._hidden_size, dtype=self.dtype)
            is_cpu = self.device.type == "cpu"
            self._lean[span] = lean.lean_blocks(self._base, self._blocks[span], span, like=like) if is_cpu else None
        return self._lean[span]

    def _blocks_of(self, span: Span) -> nn.ModuleList:
        if span not in self._blocks:
            self._blocks[span] = with_skips(self._blocks[self.span], span)
        return self._blocks[span]
