"""Find out before any weights are read whether the runner computes a family rightly, and what its cache takes.

Nothing here knows families by name. The family's own forward is run on the meta device, where tensors have shapes
but no numbers, and what its blocks ask of cache, mask and attention is noted and compared to what we do.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AttentionInterface,
    AttentionMaskInterface,
    PretrainedConfig,
)
from transformers.integrations.moe import ExpertsInterface

from chainserve.errors import UnsupportedModelError
from chainserve.models.attention import ATTENTION_ARGUMENTS
from chainserve.models.cache_name import CACHE
from chainserve.models.quantize import check_readable, unquantized
from chainserve.models.skeleton import build_skeleton, final_norm
from chainserve.types import Span

PROBE = "chainserve-probe"
"""Name under which transformers finds the attention, mask and experts of the probe."""

IGNORED_ARGUMENTS = frozenset({"dropout", "position_ids", "use_cache", "cache_position", "output_attentions"})
"""What families pass to attention that changes nothing in inference with our cache."""

BLOCK_TYPES = frozenset({"full_attention", "sliding_attention"})
"""Of the types that configs name; others mix tokens in another way."""

LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})
"""Rotary embeddings that would let the sessions of a batch change each other."""


def check_supported(config: PretrainedConfig) -> None:
    """UnsupportedModelError, naming what is unsupported, unless the runner can run this model's blocks."""
    name = config.model_type
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        remote = getattr(config, "auto_map", None)
        remote = " (it would need code from its repository, which is never run)" if remote else ""
        raise UnsupportedModelError(f"{name}: transformers has no causal language model of this type{remote}")
    if config.is_encoder_decoder or config.sub_configs:
        raise UnsupportedModelError(f"{name}: only decoder-only text models can be split into blocks")
    check_readable(name, getattr(config, "quantization_config", None))
    if unknown := set(getattr(config, "layer_types", None) or ()) - BLOCK_TYPES:
        raise UnsupportedModelError(f"{name}: blocks of type {', '.join(sorted(unknown))} cannot be run")
    if rope := LENGTH_DEPENDENT_ROPE & _rope_types(config):
        raise UnsupportedModelError(
            f"{name}: rotary embeddings of type {', '.join(rope)} change with the longest sequence of a batch"
        )
    try:
        problem = _problem_around_blocks(config) or _problem_in_blocks(config)
    except UnsupportedModelError:
        raise
    except Exception as error:  # whatever a family's code raises here, it would raise when serving
        reason = str(error).partition("\n")[0]
        raise UnsupportedModelError(
            f"{name}: its blocks do not run on their own ({type(error).__name__}: {reason})"
        ) from error
    if problem:
        raise UnsupportedModelError(f"{name}: {problem}")


def cache_bytes_per_token(config: PretrainedConfig, span: Span, *, dtype: torch.dtype) -> int:
    """Bytes that keys and values of one token take in all blocks of `span`."""
    return sum(call.num_cached for call in _probe_blocks(config, span)) * dtype.itemsize


@dataclass(frozen=True, slots=True)
class _Call:
    """What one block asked of attention."""

    block: int
    num_cached: int  # elements of keys and values per token
    mask: object
    arguments: dict[str, object]


@dataclass(frozen=True, slots=True)
class _Noted:
    """Keys on their way from the probe's cache to its attention function."""

    cache: "_ProbeCache"
    num_cached: int

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"they use {name} of cached keys outside of attention")


class _ProbeCache:
    """Stands where the cache is during a probe, and collects what is asked for."""

    def __init__(self) -> None:
        self.calls: list[_Call] = []

    def update(
        self, keys: Tensor, values: Tensor, _layer_idx: int, *_args: object, **_kwargs: object
    ) -> tuple[_Noted, Tensor]:
        return _Noted(self, keys[0, :, 0].numel() + values[0, :, 0].numel()), values

    def get_seq_length(self, _layer_idx: int = 0) -> int:
        return 0

    def get_query_offset(self, _layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, _layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"they ask their cache for {name}")


def _probe_attention(
    module: nn.Module, query: Tensor, key: _Noted, value: Tensor, attention_mask: object, **arguments: object
) -> tuple[Tensor, None]:
    block = cast(int, module.layer_idx)
    key.cache.calls.append(_Call(block, key.num_cached, attention_mask, arguments))
    return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3]), None


def _probe_mask(*, mask_function: Callable[..., Tensor], **_: object) -> Callable[..., Tensor]:
    """Hand the rule of who sees whom to the attention function, in place of a mask made of it."""
    return mask_function


def _probe_experts(_experts: nn.Module, hidden: Tensor, *_: object) -> Tensor:
    """No experts: which of them run, and how many times, is decided by numbers."""
    return torch.empty_like(hidden)


AttentionInterface.register(PROBE, _probe_attention)
AttentionMaskInterface.register(PROBE, _probe_mask)
ExpertsInterface.register(PROBE, _probe_experts)


def _probe_blocks(config: PretrainedConfig, span: Span) -> list[_Call]:
    """Run the blocks of `span` on the meta device and note what they ask for."""
    model = build_skeleton(unquantized(config), span)
    nn.Module.to(model, "meta")
    model.config._attn_implementation = PROBE
    model.config._experts_implementation = PROBE
    cache = _ProbeCache()
    hidden = torch.empty(1, 3, config.hidden_size, device="meta", dtype=model.dtype)
    with _autocast_off_on_meta():
        output = model.base_model(
            inputs_embeds=hidden,
            position_ids=torch.arange(3, device="meta").unsqueeze(0),
            use_cache=True,
            **{CACHE: cache},
        ).last_hidden_state
    if output.shape != hidden.shape:
        raise ValueError(f"blocks turn hidden states of shape {tuple(hidden.shape)} into {tuple(output.shape)}")
    return cache.calls


@contextmanager
def _autocast_off_on_meta() -> Iterator[None]:
    """Let families ask whether autocast is on for the meta device, as before transformers 5.4; torch would raise."""
    known = torch.is_autocast_enabled
    torch.is_autocast_enabled = lambda *device: device != ("meta",) and known(*device)
    try:
        yield
    finally:
        torch.is_autocast_enabled = known


def _problem_around_blocks(config: PretrainedConfig) -> str | None:
    """What else than embedding, blocks, final norm and head changes the hidden states."""
    model = build_skeleton(unquantized(config), None)
    base = model.base_model
    holders = [name for name, module in base.named_children() if any(True for _ in module.parameters())]
    if holders:
        return f"{', '.join(holders)} is outside of embedding, blocks and head"
    hidden = torch.linspace(-2, 2, 3 * config.hidden_size).view(1, 3, -1)
    norm = base.get_submodule(final_norm(base))
    norm.register_forward_hook(lambda _module, _inputs, output: 2 * output)  # to see that it is used once
    output = base(inputs_embeds=hidden, use_cache=False).last_hidden_state
    if not torch.equal(output, 2 * hidden):
        return "hidden states are changed outside of blocks and final norm"
    return None


def _problem_in_blocks(config: PretrainedConfig) -> str | None:
    """What the blocks ask for that cache and attention do not do."""
    calls = _probe_blocks(config, Span(0, config.num_hidden_layers))
    counts = Counter(call.block for call in calls)
    for block in range(config.num_hidden_layers):
        if counts[block] != 1:
            return f"block {block} is not one causal self-attention with a cache ({counts[block]} found)"
    for call in calls:
        given = {name for name, value in call.arguments.items() if value is not None}
        if unknown := given - ATTENTION_ARGUMENTS - IGNORED_ARGUMENTS:
            return f"block {call.block} passes {', '.join(sorted(unknown))} to attention"
        if not _is_plain(call.mask, window=call.arguments.get("sliding_window")):
            return f"block {call.block} has an attention mask that is neither causal nor a sliding window"
    return None


def _is_plain(mask: object, *, window: object) -> bool:
    """Whether `mask` is what our attention computes: all earlier keys, or the last `window` of them."""
    if mask is None:
        return True
    if not callable(mask):
        return False
    for position in (5, 100_003):
        query, keys = torch.tensor(position), torch.arange(position + 3)
        seen: Any = mask(0, 0, query, keys)
        expected = keys <= query
        if isinstance(window, int):
            expected &= keys > query - window
        if seen.is_meta or not torch.equal(seen.expand(keys.shape), expected):
            return False
    return True


def _rope_types(config: PretrainedConfig) -> set[str]:
    """Types of rotary embedding in use; families with several keep one set of parameters per layer type."""
    parameters = getattr(config, "rope_parameters", None) or {}
    each = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    return {part["rope_type"] for part in each if "rope_type" in part}
