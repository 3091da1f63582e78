"""Matrix products of float32 on the CPU by numpy's BLAS, which for what decoding multiplies is faster than torch's.

torch computes `x @ W.T` of float32 by MKL, which does not do its best on every processor; numpy brings OpenBLAS, or on
a Mac Accelerate. docs/decisions/linear-layers.md has the figures.
"""

import numpy as np
import torch
from torch import Tensor, nn

FEW_ROWS = 64
"""Of fewer, `W @ x.T`, the same product with its sides exchanged, is the faster one."""


def speed_up(layers: nn.Module) -> None:
    """Let the linear layers that hold float32 on the CPU take the faster way; weights stay as they are."""
    for module in layers.modules():
        if type(module) is nn.Linear and module.weight.dtype == torch.float32 and module.weight.device.type == "cpu":
            module.__class__ = BlasLinear


class BlasLinear(nn.Linear):
    """A linear layer of float32 on the CPU, computed by numpy; it keeps no gradients."""

    def forward(self, input: Tensor) -> Tensor:
        rows, weight = input.detach().reshape(-1, self.in_features), self.weight.detach()
        out = _product(weight, rows.t()).t().contiguous() if len(rows) < FEW_ROWS else _product(rows, weight.t())
        if self.bias is not None:
            out.add_(self.bias)
        return out.view(*input.shape[:-1], self.out_features)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """The product, in memory of torch's, which counts it; what overflows does so without a word, as in torch."""
    out = torch.empty(left.shape[0], right.shape[1])
    with np.errstate(all="ignore"):
        np.dot(left.numpy(), right.numpy(), out=out.numpy())
    return out
