"""All that can be found out, and refused, before a server joins: model, blocks, device, speed, memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from chainserve.errors import SpanError
from chainserve.models.linear import default_dtype
from chainserve.models.load import bytes_by_block
from chainserve.models.profiles import profile_of
from chainserve.models.quantize import quantization_of, quantize_blocks, settle_quantized
from chainserve.models.resolve import resolve
from chainserve.models.source import ModelSource
from chainserve.models.support import check_supported
from chainserve.planning.profile import BlockProfile
from chainserve.swarm.inputs import SLOT_TOKENS
from chainserve.types import Span
from chainserve_server.config import ALL, ServerConfig
from chainserve_server.devices import (
    MIN_CACHE_TOKENS,
    cache_budget,
    check_device,
    check_one_block,
    resolve_memory,
)
from chainserve_server.slowdown import slowed


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model of which at least one block is known to fit, with no weights read yet."""

    source: ModelSource
    pinned: Span | None  # None: the swarm chooses
    device: torch.device
    dtype: torch.dtype
    profile: BlockProfile
    memory_bytes: int  # for weights, activations and cache
    block_bytes: tuple[int, ...]  # weights of each block of the model

    @property
    def longest_tokens(self) -> int:
        """Of a sequence, as the model was trained."""
        return int(getattr(self.source.config, "max_position_embeddings", None) or SLOT_TOKENS)

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def quant(self) -> str | None:
        """What the weights of blocks are quantized to."""
        return quantization_of(self.source.config)

    def weight_bytes(self, span: Span | None) -> int:
        """Of all blocks of the span, and of the ends of the model that come with them."""
        return weight_bytes(span, self.block_bytes, self.profile)

    def left_bytes(self, *weight_bytes: int) -> int:
        """Memory for cache beside activations and such weights; below 0 if they do not fit."""
        return self.memory_bytes - self.profile.activation_bytes - sum(weight_bytes)

    def cache_tokens(self, span: Span, left_bytes: int) -> int:
        """Tokens through all blocks of the span whose cache takes at most `left_bytes`."""
        return max(0, left_bytes) // (self.profile.token_bytes * len(span))


def weight_bytes(span: Span | None, block_bytes: Sequence[int], profile: BlockProfile) -> int:
    """Weights of a span, of a model whose blocks take `block_bytes`."""
    if span is None:
        return 0
    end_bytes = profile.model(len(block_bytes), max_tokens=1).end_bytes(span)
    return sum(block_bytes[block] for block in span) + int(end_bytes)


def lightest_block(profile: BlockProfile, num_blocks: int) -> int:
    """Weights of one block as planning counts them, where the least of the model's ends comes with it."""
    model = profile.model(num_blocks, max_tokens=1)
    return int(min(model.weight_bytes(Span(block, block + 1)) for block in range(num_blocks)))


def prepare(config: ServerConfig) -> Prepared:
    """Check what was asked for; a UsageError says what cannot be and what to do instead."""
    device = check_device(config.device)
    dtype: torch.dtype = getattr(torch, config.dtype) if config.dtype else default_dtype(device)
    source = resolve(config.model)
    check_supported(source.config)
    if config.quant:
        quantize_blocks(source.config, config.quant, dtype=dtype, device=device)
    settle_quantized(source.config, device)
    pinned = Span(0, source.num_blocks) if config.blocks == ALL else config.blocks
    if pinned is not None and pinned.end > source.num_blocks:
        raise SpanError(f"{source.name} has blocks 0:{source.num_blocks}, it cannot be asked for {pinned}")
    memory_bytes = resolve_memory(config.memory, device)
    profile = profile_of(source.config, dtype=dtype, device=device)
    if config.slowdown is not None:
        profile = slowed(profile, config.slowdown)
    block_bytes = bytes_by_block(source.config, dtype)
    if pinned is not None:
        first = [Span(pinned.start, pinned.start + num_blocks) for num_blocks in range(1, len(pinned) + 1)]
        cache_budget(
            memory_bytes,
            weight_bytes=[weight_bytes(span, block_bytes, profile) for span in first],
            activation_bytes=profile.activation_bytes,
            token_bytes=profile.token_bytes,
            num_tokens=MIN_CACHE_TOKENS,
        )
    else:
        check_one_block(
            memory_bytes,
            block_bytes=lightest_block(profile, source.num_blocks),
            activation_bytes=profile.activation_bytes,
            token_bytes=profile.token_bytes,
            slot_tokens=SLOT_TOKENS,
        )
    return Prepared(source, pinned, device, dtype, profile, memory_bytes, block_bytes)
