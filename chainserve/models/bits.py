"""The quantized linear layers of bitsandbytes, int8 and four-bit types, as the loader sees them."""

import importlib.util
import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from chainserve.errors import UsageError

BITSANDBYTES = "bitsandbytes"

CODE_BYTES = 16 * 4
"""The sixteen numbers of a 4-bit type, in float32, which each weight has of its own."""
NESTED_BYTES = 256 * 4 + 4
"""Those of 8 bits that scales are quantized to, and their mean, where scales are quantized too."""
NESTED_BLOCK = 256
REORDERED_ROWS = 32
"""How many rows bitsandbytes weaves into each other where the CPU multiplies bfloat16."""


class BitsLayer(ABC):
    """A layer that bitsandbytes computes."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Memory that its weight will take with its scales, while it is still without."""

    @abstractmethod
    def quantize(self, weight: Tensor, *, device: torch.device) -> None:
        """Take a weight (out_features, in_features) of plain numbers."""

    @abstractmethod
    def beside(self, name: str, checkpoint: Collection[str]) -> list[str]:
        """What a checkpoint holds beside the weight `name` if that is stored as this layer keeps it, else nothing."""

    def restore(self, weight: Tensor, statistics: Mapping[str, Tensor], *, device: torch.device) -> None:
        """Take a weight as the checkpoint holds it, with what `beside` named; ValueError, or others, if it misfits."""
        shape = tuple(self.module.weight.shape)
        restored, found = self._restored(weight, statistics, device)
        if found != shape:
            raise ValueError(f"its shape is {found}, {shape} by the config")
        self.module.weight = restored

    @abstractmethod
    def _restored(
        self, weight: Tensor, statistics: Mapping[str, Tensor], device: torch.device
    ) -> tuple[Tensor, tuple[int, ...]]:
        """The layer's weight, and the shape of the numbers that it stands for."""


class Int8Layer(BitsLayer):
    """Integers of eight bits, and a scale for each row."""

    @property
    def nbytes(self) -> int:
        return int(self.module.weight.numel()) + 4 * int(self.module.weight.shape[0])

    def quantize(self, weight: Tensor, *, device: torch.device) -> None:
        integers = load_bitsandbytes().nn.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
        self.module.weight = integers.to(device)

    def beside(self, name: str, checkpoint: Collection[str]) -> list[str]:
        scales = f"{name.removesuffix('weight')}SCB"
        return [scales] if scales in checkpoint else []

    def _restored(
        self, weight: Tensor, statistics: Mapping[str, Tensor], device: torch.device
    ) -> tuple[Tensor, tuple[int, ...]]:
        [scales] = statistics.values()
        kept = (
            load_bitsandbytes()
            .nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False, SCB=scales)
            .to(device)
        )
        return kept, tuple(kept.shape)


class FourBitLayer(BitsLayer):
    """Numbers of a type of four bits, with a scale for each block of some neighbours."""

    @property
    def nbytes(self) -> int:
        weight = self.module.weight
        num_weights = int(weight.numel())
        num_scales = -(-num_weights // int(weight.blocksize))
        half = -(-num_weights // 2) + CODE_BYTES
        if not weight.compress_statistics:
            return half + 4 * num_scales
        return half + num_scales + 4 * -(-num_scales // NESTED_BLOCK) + NESTED_BYTES

    def quantize(self, weight: Tensor, *, device: torch.device) -> None:
        empty = self.module.weight
        self.module.weight = (
            load_bitsandbytes()
            .nn.Params4bit(
                weight,
                requires_grad=False,
                compress_statistics=empty.compress_statistics,
                quant_type=empty.quant_type,
                quant_storage=empty.quant_storage,
                module=self.module,
            )
            .to(device)
        )

    def beside(self, name: str, checkpoint: Collection[str]) -> list[str]:
        return [other for other in checkpoint if other.startswith(f"{name}.")]

    def _restored(
        self, weight: Tensor, statistics: Mapping[str, Tensor], device: torch.device
    ) -> tuple[Tensor, tuple[int, ...]]:
        kept = load_bitsandbytes().nn.Params4bit.from_prequantized(
            weight, dict(statistics), device=device, module=self.module
        )
        return kept, tuple(kept.quant_state.shape)


KINDS: dict[str, type[BitsLayer]] = {"Linear8bitLt": Int8Layer, "Linear4bit": FourBitLayer}
"""By what bitsandbytes calls them: to know them it need not be there."""


def bits_layer(module: nn.Module) -> BitsLayer | None:
    """The layer, if it is one of these."""
    kind = KINDS.get(type(module).__name__)
    return kind(module) if kind is not None else None


def prevent_failing_reordering(model: nn.Module) -> None:
    """Have four-bit layers keep their layout that bitsandbytes (0.50.2) fails to reorder at their first product.

    It tries to on every CPU that multiplies bfloat16, though it can only if rows are whole blocks, 32 of them together.
    """
    for layer in map(bits_layer, model.modules()):
        if isinstance(layer, FourBitLayer):
            linear = layer.module
            if linear.in_features % linear.weight.blocksize or linear.out_features % REORDERED_ROWS:
                linear.support_avx512bf16_for_cpu = False


def load_bitsandbytes() -> ModuleType:
    """The package; UsageError if it is not installed."""
    if importlib.util.find_spec(BITSANDBYTES) is None:
        raise UsageError('int8 and nf4 need bitsandbytes, which is not installed: pip install "chainserve[quant]"')
    import bitsandbytes

    # It says for every product that inputs become float16, which int8 always has them be.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    module: ModuleType = bitsandbytes
    return module
