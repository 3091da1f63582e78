"""Run a server's blocks over packed batches of many sessions."""

from collections.abc import Sequence
from functools import partial
from itertools import chain, groupby

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

Part = tuple[bool, nn.ModuleList]
"""Blocks in a row that are all lean, and only these; or that all are the family's, with skips for the others."""


class Runner:
    """The blocks of one server, with the cache of its sessions. Call it from one thread only."""

    def __init__(self, model: PreTrainedModel, span: Span, cache: KVCache, *, ends: Ends | None = None) -> None:
        """`model` is a loaded skeleton with the blocks of `span` and without its ends, which are `ends`."""
        self._base = model.base_model
        assert isinstance(getattr(self._base, final_norm(self._base)), nn.Identity), "built with a head"
        self._hidden_size = model.config.hidden_size
        self.dtype = next(weight.dtype for weight in self._base.parameters() if str(weight.dtype)[6:] in DTYPES)
        """Of the weights that are not quantized, and so of the hidden states that `forward` takes."""
        self.device = next(self._base.parameters()).device
        self._graphs = graphs.Graphs(partial(lean.run_family, self._base)) if self.device.type == "cuda" else None
        like = torch.empty(0, self._hidden_size, dtype=self.dtype)
        self._rotations = lean.Rotations(self._base, like=like)
        self.blocks = blocks_of(self._base)
        if self.device.type == "cpu":
            lean.make_lean(self._base, self.blocks, span, like=like)
        pack(self.blocks)
        self._parts: dict[Span, list[Part]] = {}
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
        parts = self._parts_of(span)
        output = None
        if self._graphs is not None and total <= graphs.MOST_ROWS and (table := cache.table(span)) is not None:
            [(_, blocks)] = parts
            output = self._graphs.forward(hidden, table, blocks, span)
        if output is None:
            ranges = (range(step.start, step.start + step.num_tokens) for step in steps)
            positions = torch.tensor([*chain.from_iterable(ranges)], device=hidden.device)
            output, rotation = hidden, None
            for is_lean, blocks in parts:
                if is_lean:
                    rotation = rotation or self._rotations.at(positions)
                    output = lean.run_lean(output, rotation, cache, blocks)
                else:
                    output = lean.run_family(self._base, output, positions, cache, blocks)
        cache.commit()
        return output

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Make ready for small batches through all blocks, before there are any sessions."""
        if self._graphs is not None:
            like = torch.zeros(1, self._hidden_size, dtype=self.dtype, device=self.device)
            self._graphs.prepare(like, self.blocks, self.span)

    def _parts_of(self, span: Span) -> list[Part]:
        if span not in self._parts:
            self._parts[span] = []
            for is_lean, numbers in groupby(span, lambda number: isinstance(self.blocks[number], lean.LeanBlock)):
                first, *others = numbers
                part = Span(first, first + len(others) + 1)
                blocks = self.blocks[part.start : part.end] if is_lean else with_skips(self.blocks, part)
                self._parts[span].append((is_lean, blocks))
        return self._parts[span]
