"""Matrix products of float32 on the CPU that take less time than torch's own, for the few rows of decode steps.

torch computes `x @ W.T` of float32 by MKL. For two rows that takes 1.7 times as long as for one, though both read the
same weights and do little else; `W @ x.T`, the same product with its sides exchanged, takes for up to four rows hardly
longer than for one. Large layers are two to three times as fast by oneDNN, which torch has but uses for other types.
"""

import platform

import torch
from torch import Tensor, nn

EXCHANGED_ROWS = (None, None, 2, 4, 4, 5, 6, 8, 8, *(16,) * 8)
"""By rows, with how many the sides are exchanged: odd numbers take longer than the next power of two. From 17 rows on
neither side is always the better one to exchange, and for one row it hardly matters."""
LARGE = 4_000_000
"""Weights of a layer from which on oneDNN is faster: it takes all threads, which smaller layers do not repay."""
MOST_EXCHANGED = 5
"""Rows of a large layer of which the sides are exchanged all the same: two to four take two thirds of oneDNN's time so,
six take as long."""
HAS_ONEDNN = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()


def speed_up(layers: nn.Module) -> None:
    """Let the linear layers that hold float32 on the CPU take the faster way; weights stay as they are."""
    for module in layers.modules():
        if type(module) is nn.Linear and module.weight.dtype == torch.float32 and module.weight.device.type == "cpu":
            module.__class__ = LargeLinear if HAS_ONEDNN and module.weight.numel() >= LARGE else FewRowsLinear


class FewRowsLinear(nn.Linear):
    """A linear layer that exchanges the sides of the product where that is faster."""

    def forward(self, input: Tensor) -> Tensor:
        num_rows = input.numel() // self.in_features
        size = EXCHANGED_ROWS[num_rows] if num_rows < len(EXCHANGED_ROWS) else None
        if size is None:
            return super().forward(input)
        rows = input.reshape(num_rows, self.in_features)
        if size > num_rows:
            rows = torch.cat((rows, rows[: size - num_rows]))
        if self.bias is None:
            out = torch.mm(self.weight, rows.t())
        else:
            out = torch.addmm(self.bias.unsqueeze(1), self.weight, rows.t())
        return out.t()[:num_rows].contiguous().view(*input.shape[:-1], self.out_features)


class LargeLinear(FewRowsLinear):
    """A linear layer computed by oneDNN, but for the few rows of which exchanging the sides is faster still."""

    def forward(self, input: Tensor) -> Tensor:
        if 1 < input.numel() // self.in_features <= MOST_EXCHANGED:
            return super().forward(input)
        out: Tensor = torch.ops.mkldnn._linear_pointwise.default(input, self.weight, self.bias, "none", [], "")
        return out
