"""Matrix products of two to four rows on the CPU, as batches of few decode steps need.

torch computes `x @ W.T` of float32 by MKL, which for two rows takes 1.7 times as long as for one, though both read the
same weights and do little else. `W @ x.T`, the same product with its sides exchanged, takes for up to four rows hardly
longer than for one. From five rows on neither is always the faster.
"""

import torch
from torch import Tensor, nn

MOST_ROWS = 4


def speed_up_few_rows(blocks: nn.Module) -> None:
    """Let the linear layers of `blocks` that hold float32 on the CPU take the faster way; weights stay as they are."""
    for module in blocks.modules():
        if type(module) is nn.Linear and module.weight.dtype == torch.float32 and module.weight.device.type == "cpu":
            module.__class__ = FewRowsLinear


class FewRowsLinear(nn.Linear):
    """A linear layer that exchanges the sides of the product where that is faster."""

    def forward(self, input: Tensor) -> Tensor:
        num_rows = input.numel() // self.in_features
        if not 2 <= num_rows <= MOST_ROWS:
            return super().forward(input)
        rows = input.reshape(num_rows, self.in_features)
        if num_rows == 3:  # takes longer than four
            rows = nn.functional.pad(rows, (0, 0, 0, 1))
        if self.bias is None:
            out = torch.mm(self.weight, rows.t())
        else:
            out = torch.addmm(self.bias.unsqueeze(1), self.weight, rows.t())
        return out.t()[:num_rows].contiguous().view(*input.shape[:-1], self.out_features)
