"""Fill a skeleton with its weights, reading only the tensors it needs and holding one of them at a time."""

import time
from collections.abc import Callable
from dataclasses import astuple, dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from chainserve.errors import WeightsError
from chainserve.models.bits import BitsLayer
from chainserve.models.conversion import Group, plan_loading, tied_pairs, weight_bytes, weight_dtypes
from chainserve.models.int4 import Int4Linear
from chainserve.models.quantize import QuantizedLayer, quantized_layer
from chainserve.models.skeleton import build_skeleton
from chainserve.models.source import ModelSource, progress_bar
from chainserve.runtime.freed import return_freed_memory
from chainserve.types import Span


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What loading took; headers count as read with the first load from a source."""

    bytes_read: int
    bytes_downloaded: int
    bytes_of_blocks: int
    """As stored in the checkpoint."""
    num_tensors: int
    seconds: float

    def __add__(self, other: "LoadReport") -> "LoadReport":
        """What one took and then another."""
        return LoadReport(*map(sum, zip(astuple(self), astuple(other), strict=True)))


def load_weights(
    model: PreTrainedModel,
    source: ModelSource,
    *,
    dtype: torch.dtype,
    device: torch.device,
    progress: bool = True,
    on_share: Callable[[float], None] = lambda _share: None,
) -> LoadReport:
    """Fill the parameters of `model` that are on the meta device, and its persistent buffers, from `source`.

    Floating-point weights become `dtype` (float32 where the family insists on it), everything moves to `device`,
    tied weights share one tensor. Weights of quantized layers are quantized from `dtype` as they come, or taken as they
    are where the checkpoint holds them quantized. `on_share` is told which share has been read. WeightsError, naming
    the tensors, if some are missing or have another shape.
    """
    began = time.perf_counter()
    groups = plan_loading(model, source.tensors)
    layers = {group.target: _layer_of(model, group.target) for group in groups}
    beside = {group.target: _beside(layers[group.target], group, source) for group in groups}
    num_loaded = 0

    def count(num_bytes: int) -> None:
        nonlocal num_loaded
        num_loaded += num_bytes
        bar.update(num_bytes)
        on_share(num_loaded / total_bytes)

    names = [name for group in groups for name in (*dict(group.sources), *beside[group.target])]
    total_bytes = sum(source.tensors[name].nbytes for name in names)
    dtypes = weight_dtypes(model, dtype)
    source.fetch(names, progress=progress)
    with torch.no_grad(), progress_bar(total_bytes, doing="Loading", progress=progress) as bar:
        for group in groups:
            layer = layers[group.target]
            if layer is not None and _take_as_stored(layer, group, source, beside[group.target], device=device):
                count(sum(source.tensors[name].nbytes for name in (*dict(group.sources), *beside[group.target])))
                return_freed_memory()
                continue
            for name, pattern in group.sources:
                group.transform.add_tensor(group.target, name, pattern, source.read(name, dtypes[group.target]))
                count(source.tensors[name].nbytes)
            try:
                made = group.transform.convert(group.target, model=model, config=model.config)
            except (RuntimeError, ValueError) as error:
                raise WeightsError(f"the tensors of {group.target} do not fit together: {error}") from error
            if isinstance(made, tuple):  # transformers 5.0 adds the errors it would rather collect than raise
                made = made[0]
            for name, value in made.items():
                assign(model, name, value[0] if isinstance(value, list) else value, device=device)
            if len(group.sources) > 1 or layer is not None:
                return_freed_memory()
    for name, twin in tied_pairs(model).items():
        assign(model, name, model.get_parameter(twin), device=device)
    nn.Module.to(model, device)
    traffic = source.take_traffic()
    return LoadReport(
        bytes_read=traffic.read,
        bytes_downloaded=traffic.downloaded,
        bytes_of_blocks=total_bytes,
        num_tensors=len(names),
        seconds=time.perf_counter() - began,
    )


def memory_bytes(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """Memory the weights of a skeleton will take once loaded as `dtype`; tied weights count once."""
    twins = tied_pairs(model)
    return sum(num_bytes for name, num_bytes in weight_bytes(model, dtype).items() if name not in twins)


def bytes_by_block(config: PretrainedConfig, dtype: torch.dtype) -> tuple[int, ...]:
    """Memory that the weights of each block of a model will take once loaded as `dtype`."""
    model = build_skeleton(config, Span(0, config.num_hidden_layers))
    sizes = [0] * config.num_hidden_layers
    for name, num_bytes in weight_bytes(model, dtype).items():
        block = int(name.removeprefix(f"{model.base_model_prefix}.layers.").partition(".")[0])
        sizes[block] += num_bytes
    return tuple(sizes)


def assign(model: PreTrainedModel, name: str, value: Tensor, *, device: torch.device) -> None:
    """Put `value` in the place of the parameter or buffer `name`, quantized if its layer is."""
    module, leaf = _module_of(model, name), name.rpartition(".")[2]
    shape = getattr(module, leaf).shape
    if value.shape != shape:
        raise WeightsError(f"{name} has shape {tuple(value.shape)} in the checkpoint, {tuple(shape)} by its config")
    if leaf == "weight" and (layer := quantized_layer(module)):
        layer.quantize(value, device=device)
        return
    if leaf in module._parameters and not isinstance(value, nn.Parameter):
        value = nn.Parameter(value.to(device), requires_grad=False)
    setattr(module, leaf, value.to(device) if leaf in module._buffers else value)


def _beside(layer: QuantizedLayer | None, group: Group, source: ModelSource) -> list[str]:
    """Tensors that the checkpoint holds beside the group's weight, if that is stored as its layer keeps it."""
    return layer.beside(group.sources[0][0], source.tensors) if isinstance(layer, BitsLayer) else []


def _take_as_stored(
    layer: QuantizedLayer, group: Group, source: ModelSource, beside: list[str], *, device: torch.device
) -> bool:
    """Give a layer its weight as the checkpoint holds it; False if it is not held as the layer keeps it."""
    if len(names := dict(group.sources)) > 1:
        return False
    [name] = names
    try:
        match layer:
            case BitsLayer() if beside:
                layer.restore(source.read(name), {other: source.read(other) for other in beside}, device=device)
            case Int4Linear() if (grouped := source.grouped(name)) is not None:
                layer.fill(grouped, device=device)
            case _:
                return False
    except (RuntimeError, ValueError, KeyError, WeightsError) as error:
        raise WeightsError(f"the quantized tensors of {group.target} do not fit: {error}") from error
    return True


def _layer_of(model: PreTrainedModel, name: str) -> QuantizedLayer | None:
    """The quantized layer that the weight `name` is of, if it is of one."""
    return quantized_layer(_module_of(model, name)) if name.rpartition(".")[2] == "weight" else None


def _module_of(model: PreTrainedModel, name: str) -> nn.Module:
    """What has the parameter or buffer `name`."""
    return model.get_submodule(name.rpartition(".")[0])
