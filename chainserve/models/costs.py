"""What a model costs in bytes and computation, found out from its config alone: no weights are read."""

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

from chainserve.models.conversion import weight_bytes
from chainserve.models.load import memory_bytes
from chainserve.models.skeleton import build_skeleton
from chainserve.models.source import ModelSource
from chainserve.models.support import cache_bytes_per_token, check_supported
from chainserve.types import Span


@dataclass(frozen=True, slots=True)
class EndCosts:
    """What stands before and after the blocks of a model, in one dtype."""

    embedding_bytes: int
    head_bytes: int  # with the final norm
    is_tied: bool  # they share their weights


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCosts:
    """One model in one dtype. Where blocks differ, the figures of a block are those of the largest."""

    num_blocks: int
    block_bytes: int
    active_bytes: int  # of a block's weights, what one token goes through: not all experts
    flop_per_token: float  # of one block, attention to earlier tokens apart
    token_bytes: int  # keys and values of one token in one block, on average over blocks
    embedding_bytes: int
    head_bytes: int  # with the final norm
    is_tied: bool  # embedding and head share their weights


def model_costs(source: ModelSource, dtype: torch.dtype) -> ModelCosts:
    """Costs of a model whose weights and cache become `dtype`; UnsupportedModelError if it cannot be run."""
    config, whole = source.config, Span(0, source.num_blocks)
    check_supported(config)
    blocks = build_skeleton(config, whole)
    sizes = weight_bytes(blocks, dtype)
    block_bytes, active_bytes, active_weights = Counter[int](), Counter[int](), Counter[int]()
    for name, tensor in blocks.state_dict().items():
        block = int(name.removeprefix(f"{blocks.base_model_prefix}.layers.").partition(".")[0])
        share = _active_share(name, tensor, config)
        block_bytes[block] += sizes[name]
        active_bytes[block] += round(sizes[name] * share)
        active_weights[block] += round(tensor.numel() * share)
    ends = end_costs(config, dtype)
    return ModelCosts(
        num_blocks=source.num_blocks,
        block_bytes=max(block_bytes.values()),
        active_bytes=max(active_bytes.values()),
        flop_per_token=2 * max(active_weights.values()),  # each weight is multiplied once and added once
        token_bytes=math.ceil(cache_bytes_per_token(config, whole, dtype=dtype) / source.num_blocks),
        embedding_bytes=ends.embedding_bytes,
        head_bytes=ends.head_bytes,
        is_tied=ends.is_tied,
    )


def end_costs(config: PretrainedConfig, dtype: torch.dtype) -> EndCosts:
    """Costs of both ends of a model whose weights become `dtype`."""
    embedding_bytes, head_bytes, both_bytes = (
        memory_bytes(build_skeleton(config, None, embed=embed, head=head), dtype)
        for embed, head in ((True, False), (False, True), (True, True))
    )
    return EndCosts(embedding_bytes, head_bytes, is_tied=both_bytes < embedding_bytes + head_bytes)


def _active_share(name: str, tensor: Tensor, config: PretrainedConfig) -> float:
    """How much of a weight one token uses: of experts, which lie along the first dimension, those chosen for it."""
    num_chosen = getattr(config, "num_experts_per_tok", None)
    return min(1.0, num_chosen / len(tensor)) if num_chosen and "experts" in name.split(".") else 1.0
