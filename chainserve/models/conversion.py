"""Which tensors of a checkpoint make which parameters of a skeleton, by transformers' own rules for the family."""

import re
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from chainserve.errors import WeightsError
from chainserve.models.quantize import quantized_layer


@dataclass(slots=True)
class Group:
    """Tensors of the checkpoint that make one parameter (experts are fused), or a few (a projection is split)."""

    target: str
    transform: Any
    """A WeightRenaming or WeightConverter; both take tensors where they are annotated to take futures."""
    sources: list[tuple[str, str]]
    """Name in the checkpoint, and which of the transform's patterns it matches."""

    def makes(self) -> set[str]:
        """Names of the parameters that come out."""
        first = self.transform.target_patterns[0]
        return {self.target.replace(first, pattern) for pattern in self.transform.target_patterns}


def plan_loading(model: PreTrainedModel, checkpoint: Iterable[str]) -> list[Group]:
    """What to read for the parameters of `model` that have no memory yet, and for its persistent buffers.

    Of tied weights that `model` holds both, one is read; where it holds one, that one is read, whichever of
    their names `checkpoint` knows. WeightsError, naming the parameters, if the checkpoint lacks some.
    """
    state = model.state_dict()
    tied = model.all_tied_weights_keys
    empty = {name for name, tensor in state.items() if tensor.is_meta}
    wanted = (empty | {name for name, _ in model.named_buffers() if name in state}) - set(tied_pairs(model))
    known = {**state, **dict.fromkeys(tied.values(), True)}

    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    matched: dict[str, list[tuple[str, str | None]]] = {}
    for name in sorted(checkpoint, key=dot_natural_key):
        # Models that also see or hear keep their text decoder one level deeper than a decoder by itself.
        inner = re.sub(r"^(model\.)?language_model\.", r"\1", name)
        target, pattern = rename_source_key(inner, renamings, converters, model.base_model_prefix, known)
        if target not in known and inner in known:
            target, pattern = inner, None
        matched.setdefault(target, []).append((name, pattern))

    for target, source in tied.items():
        for name, twin in ((target, source), (source, target)):
            if name in wanted and name not in matched and twin in matched:
                matched[name] = matched[twin]
    groups = [_group(target, matched[target], by_pattern) for target in matched if target in wanted]
    missing = (wanted & empty).difference(*(group.makes() for group in groups))
    if missing:
        raise WeightsError(f"the checkpoint lacks {len(missing)} tensors of these blocks: {', '.join(sorted(missing))}")
    return groups


def tied_pairs(model: PreTrainedModel) -> dict[str, str]:
    """Parameters that `model` holds twice: {name: name of the one it shares}."""
    state = model.state_dict()
    return {
        target: source for target, source in model.all_tied_weights_keys.items() if target in state and source in state
    }


def weight_dtypes(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Dtype of each parameter and persistent buffer when floating-point weights become `dtype`.

    Some families keep a few of them in float32, and integers stay what they are.
    """
    kept: set[str] = set()
    if dtype in (torch.float16, torch.bfloat16):
        kept |= set(model._keep_in_fp32_modules_strict or ())
    if dtype == torch.float16:
        kept |= set(model._keep_in_fp32_modules or ())
    kept_pattern = re.compile("|".join(pattern.replace("*", ".*") for pattern in kept) or r"\Z.")

    def dtype_of(name: str, tensor: torch.Tensor) -> torch.dtype:
        if not tensor.is_floating_point():
            return tensor.dtype
        return torch.float32 if kept_pattern.search(name) else dtype

    return {name: dtype_of(name, tensor) for name, tensor in model.state_dict().items()}


def weight_bytes(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, int]:
    """Memory of each parameter and persistent buffer of a skeleton once loaded as `dtype`; scales count as weights."""
    dtypes = weight_dtypes(model, dtype)
    layers = {f"{name}.weight": quantized_layer(module) for name, module in model.named_modules()}
    return {
        name: layer.nbytes if (layer := layers.get(name)) else tensor.numel() * dtypes[name].itemsize
        for name, tensor in model.state_dict().items()
    }


def _group(target: str, sources: list[tuple[str, str | None]], by_pattern: dict[str, WeightConverter]) -> Group:
    """The tensors that make `target`, with a transform of their own to collect them in."""
    first, pattern = sources[0]
    transform = WeightRenaming(first, target) if pattern is None else deepcopy(by_pattern[pattern])
    return Group(target, transform, [(name, pattern or name) for name, pattern in sources])
