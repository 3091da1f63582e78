"""Build a model's modules without its weights, and without the blocks that others hold.

What is left is still the family's own class, and its own `forward` drives it: rotary embeddings, layer types and
windows stay whatever the family made them. Blocks keep their positions, since families index their config by them.
"""

import copy
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from chainserve.errors import SpanError, UnsupportedModelError
from chainserve.models.attention import ATTENTION
from chainserve.models.quantize import kept_modules, replace_linears
from chainserve.types import Span


class Skip(nn.Module):
    """Stands where a block is that others hold: returns the hidden states as they came."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.attention_type = getattr(block, "attention_type", None)  # some families choose masks by it

    def forward(self, hidden_states: Tensor, *_args: object, **_kwargs: object) -> Tensor:
        return hidden_states


def build_skeleton(
    config: PretrainedConfig, span: Span | None, *, embed: bool = False, head: bool = False
) -> PreTrainedModel:
    """The family's causal language model, holding the blocks of `span` and no weights.

    Parameters are on the meta device, for the loader to fill; buffers that no checkpoint holds (rotary
    frequencies, scale of the embedding) are computed, on the CPU. `embed` keeps the token embedding, `head` the
    final norm and the head. Where the config says so, linear layers are quantized ones. Call `check_supported` first.
    SpanError if `span` is not within the model.
    """
    num_blocks = config.num_hidden_layers
    if span is not None and span.end > num_blocks:
        raise SpanError(f"blocks {span} are not in this model, which has blocks 0:{num_blocks}")
    with no_init_weights(), init_empty_weights(include_buffers=False), _EmptyOnMeta():
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=ATTENTION)
    is_quantized = getattr(config, "quantization_config", None) is not None
    kept = kept_modules(model) if is_quantized else []
    base = model.base_model
    base.layers = with_skips(blocks_of(base), span)
    if not embed:
        model.set_input_embeddings(None)
    if not head:
        setattr(base, final_norm(base), nn.Identity())
        model.set_output_embeddings(None)
    if is_quantized:
        replace_linears(model, kept)
    for module in model.modules():  # checkpoints hold persistent buffers, so they are the loader's to fill
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                module._buffers[name] = buffer.to("meta")
    return cast(PreTrainedModel, model.requires_grad_(False).eval())


def blocks_of(base: nn.Module) -> nn.ModuleList:
    """The list of blocks of a base model; UnsupportedModelError if it has none."""
    blocks = getattr(base, "layers", None)
    if not isinstance(blocks, nn.ModuleList):
        raise UnsupportedModelError(f"{type(base).__name__} has no list of blocks to split")
    return blocks


def with_skips(blocks: nn.ModuleList, span: Span | None) -> nn.ModuleList:
    """The same blocks, with those outside `span` skipped."""
    return nn.ModuleList(
        block if span is not None and index in span else Skip(block) for index, block in enumerate(blocks)
    )


def final_norm(base: nn.Module) -> str:
    """Name of the norm between the last block and the head; UnsupportedModelError if there is none we know."""
    for name in ("norm", "final_layernorm", "final_layer_norm"):
        if hasattr(base, name):
            return name
    raise UnsupportedModelError(f"{type(base).__name__} has no final norm where one is expected")


class _EmptyOnMeta(TorchFunctionMode):
    """Make uninitialized tensors, as large parameters are at first, take no memory.

    `init_empty_weights` moves parameters to the meta device only once they are made, which for a block of a large
    mixture of experts can be more than the machine has.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            kwargs = kwargs | {"device": "meta"}
        return func(*args, **kwargs)
