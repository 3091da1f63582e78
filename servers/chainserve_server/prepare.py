"""All that can be found out, and refused, before a server joins: model, blocks, device, memory."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from chainserve.errors import SpanError
from chainserve.models.resolve import resolve
from chainserve.models.skeleton import blocks_of, build_skeleton
from chainserve.models.source import ModelSource
from chainserve.models.support import cache_bytes_per_token, check_supported
from chainserve.types import Span
from chainserve_server.config import MIN_CACHE_TOKENS, ServerConfig, cache_budget, check_device, default_memory


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model whose blocks are known to fit, with no weights read yet."""

    source: ModelSource
    span: Span
    skeleton: PreTrainedModel
    device: torch.device
    dtype: torch.dtype
    weight_bytes: int
    cache_tokens: int


def prepare(config: ServerConfig) -> Prepared:
    """Check what was asked for; a UsageError says what cannot be and what to do instead."""
    device = check_device(config.device)
    dtype: torch.dtype = getattr(torch, config.dtype_name)
    source = resolve(config.model)
    check_supported(source.config)
    span = config.blocks or Span(0, source.num_blocks)
    if span.end > source.num_blocks:
        raise SpanError(f"{source.name} has blocks 0:{source.num_blocks}, it cannot be asked for {span}")
    skeleton = build_skeleton(source.config, span)
    blocks = blocks_of(skeleton.base_model)
    block_bytes = [sum(p.numel() for p in blocks[block].parameters()) * dtype.itemsize for block in span]
    cache_tokens = cache_budget(
        config.memory_bytes or default_memory(device),
        block_bytes=block_bytes,
        token_bytes=cache_bytes_per_token(source.config, span, dtype=dtype) // len(span),
        num_tokens=MIN_CACHE_TOKENS,
    )
    return Prepared(source, span, skeleton, device, dtype, sum(block_bytes), cache_tokens)
