"""Matrix products on the CPU by oneDNN, which torch has but seldom asks.

torch computes `x @ W.T` of float32 by MKL, which makes no use of AVX-512 on AMD's processors and takes twice as long
for one row as for two. oneDNN is faster for all numbers of rows, most of all with the weights in an order of its own,
which it would have to bring them into at every product otherwise (docs/decisions/linear-layers.md).
"""

import platform
from functools import cache

import torch
from torch import Tensor, nn

from chainserve.runtime.freed import return_freed_memory

SMALL = 300_000
"""Weights of a layer below which it stays as it is: oneDNN takes all threads, which such layers do not repay."""
MOST_EXCHANGED = 4
"""Rows of which the sides are exchanged where weights are not packed: these take two thirds of oneDNN's time so."""
SUMS_TRIED = 64
"""Of one row, to see in which order they are added up."""
HAS_ONEDNN = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()


def computes_bfloat16() -> bool:
    """Whether this processor has instructions for products of bfloat16, so that these are faster than of float32."""
    has = torch.cpu.get_capabilities()
    return HAS_ONEDNN and any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def default_dtype(device: torch.device) -> torch.dtype:
    """What a device computes fastest: bfloat16, unless it is a processor without it."""
    return torch.bfloat16 if device.type != "cpu" or computes_bfloat16() else torch.float32


def pack(layers: nn.Module) -> None:
    """Let oneDNN compute the linear layers on the CPU, with their weights in its own order.

    Parameters stay parameters, but of another layout; nothing else may use them.
    """
    for module in _large_layers(layers):
        packed = torch.ops.mkldnn._reorder_linear_weight.default(module.weight)
        module.weight = nn.Parameter(packed, requires_grad=False)
        module.__class__ = PackedLinear
        assert isinstance(module, PackedLinear)
        module.takes_one_row = _takes_one_row(module.in_features, module.weight.dtype)
    return_freed_memory()  # of the weights as they were


def speed_up(layers: nn.Module) -> None:
    """Let layers take the faster way though others share their weights, which stay as they are."""
    for module in _large_layers(layers):
        module.__class__ = SharedLinear
        assert isinstance(module, SharedLinear)
        module.takes_one_row = _takes_one_row(module.in_features, module.weight.dtype)


def _large_layers(layers: nn.Module) -> list[nn.Linear]:
    """Those on the CPU that oneDNN computes, and is worth its threads for."""
    dtypes = torch.float32, default_dtype(torch.device("cpu"))
    return [
        module
        for module in layers.modules()
        if type(module) is nn.Linear
        and HAS_ONEDNN
        and module.weight.device.type == "cpu"
        and module.weight.dtype in dtypes
        and module.weight.numel() >= SMALL
    ]


class PackedLinear(nn.Linear):
    """A linear layer whose weights are in oneDNN's order. A row gives the same whatever rows are beside it."""

    takes_one_row: bool

    def forward(self, input: Tensor) -> Tensor:
        return _even_product(input, self)


@cache
def _takes_one_row(num_columns: int, dtype: torch.dtype) -> bool:
    """Whether one row gives what it gives beside another: if it is long, oneDNN adds up in another order then.

    Sums that would be zero are tried. What is left of them is what was lost on the way, so that another order shows in
    nearly all of them, in 16 bits as well.
    """
    rng = torch.Generator().manual_seed(0)
    order = torch.randperm(num_columns, generator=rng)
    weights, row = (torch.randn(num, num_columns // 2, generator=rng) for num in (SUMS_TRIED, 1))
    odd = torch.zeros(SUMS_TRIED, num_columns % 2)
    weight = torch.cat((weights, -weights, odd), dim=1)[:, order].to(dtype)
    rows = torch.cat((row, row, odd[:1]), dim=1)[:, order].to(dtype).repeat(2, 1)
    packed = torch.ops.mkldnn._reorder_linear_weight.default(weight)
    return torch.equal(_product(rows[:1], packed, None), _product(rows, packed, None)[:1])


class SharedLinear(nn.Linear):
    """A linear layer whose weights are as everyone knows them."""

    takes_one_row: bool

    def forward(self, input: Tensor) -> Tensor:
        num_rows = input.numel() // self.in_features
        if num_rows > MOST_EXCHANGED or self.weight.dtype != torch.float32:
            return _even_product(input, self)
        rows = input.reshape(num_rows, self.in_features)
        if num_rows in (1, 3):  # odd numbers take longer than the next power of two
            rows = torch.cat((rows, rows[:1]))
        if self.bias is None:
            out = torch.mm(self.weight, rows.t())
        else:
            out = torch.addmm(self.bias.unsqueeze(1), self.weight, rows.t())
        return out.t()[:num_rows].contiguous().view(*input.shape[:-1], self.out_features)


def _even_product(input: Tensor, layer: PackedLinear | SharedLinear) -> Tensor:
    """By oneDNN, in the same order of adding up however many rows there are."""
    if input.numel() == layer.in_features and not layer.takes_one_row:
        row = input.view(1, layer.in_features)
        return _product(torch.cat((row, row)), layer.weight, layer.bias)[:1].view(*input.shape[:-1], -1)
    return _product(input, layer.weight, layer.bias)


def _product(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise.default(input, weight, bias, "none", [], "")
    return out
