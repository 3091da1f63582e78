"""Linear layers of float32 on x86 processors through oneDNN, which comes with torch.

torch itself computes `x @ W.T` of float32 by MKL, which takes up to three times as long for the few rows of a decode
step (docs/benchmarks.md), though what takes the time is to read the weights once.
"""

import platform

import torch
from torch import Tensor, nn

IS_THERE = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()


def use_onednn(layers: nn.Module, *, pack: bool) -> None:
    """Let the linear layers among `layers` that hold float32 on the CPU compute by oneDNN, if that is there.

    With `pack` weights are laid out as it likes best, which is faster still; nothing else can read them then, and one
    layer at a time is held twice meanwhile.
    """
    for module in layers.modules():
        if type(module) is nn.Linear and module.weight.dtype == torch.float32 and module.weight.device.type == "cpu":
            if not IS_THERE:
                return
            module.__class__ = OneDnnLinear
            if pack:
                packed = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach())
                module.weight = nn.Parameter(packed, requires_grad=False)


class OneDnnLinear(nn.Linear):
    """A linear layer, computed by oneDNN."""

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise.default(input, self.weight, self.bias, "none", [], "")
        return out
