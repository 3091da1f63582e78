"""Matrix products of float32 on the CPU that take less time than torch's own.

torch computes `x @ W.T` of float32 by MKL. For one row that takes twice as long as for two if the sides are exchanged,
`W @ x.T`, which is the same product and for up to four rows reads the weights and does little else (AMD's Zen 5, out of
memory; on older processors one row hardly gains). oneDNN, which torch has but uses for other types, is two to three
times as fast for large layers; where there is AVX-512 for all but the smallest, prompts included: MKL makes no use of
it on AMD's processors.
"""

import platform

import torch
from torch import Tensor, nn

EXCHANGED_ROWS = (None, 2, 2, 4, 4, 5, 6, 8, 8, *(16,) * 8)
"""By rows, with how many the sides are exchanged: odd numbers take longer than the next power of two. From 17 rows on
neither side is always the better one to exchange."""
PAIRED = 200_000
"""Weights of a layer from which on one row is computed as two; for fewer MKL takes one thread, and less time so."""
MOST_EXCHANGED = 4
"""Rows of which the sides are exchanged where oneDNN computes more of them: these take two thirds of its time so."""
HAS_ONEDNN = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()
LARGE = 100_000 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 4_000_000
"""Weights of a layer from which on oneDNN is faster: it takes all threads, which smaller layers do not repay."""


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
        if size is None or (num_rows == 1 and self.weight.numel() < PAIRED):
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
    """A linear layer that oneDNN computes, but for the few rows for which exchanging the sides is faster still."""

    def forward(self, input: Tensor) -> Tensor:
        if input.numel() // self.in_features <= MOST_EXCHANGED:
            return super().forward(input)
        out: Tensor = torch.ops.mkldnn._linear_pointwise.default(input, self.weight, self.bias, "none", [], "")
        return out
