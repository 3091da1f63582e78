"""A linear layer that keeps its weight in integers of four bits, multiplied by the kernels that torch has for them.

These take a scale and an offset for each 32, 64, 128 or 256 neighbouring columns, and compute in bfloat16. That is what
checkpoints of GPTQ, AWQ and compressed-tensors and the usual GGUF files hold, once columns of a group lie side by side.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chainserve.errors import WeightsError

INT4_BITS = 4
GROUP_SIZES = (256, 128, 64, 32)
MULTIPLE = 32
"""Numbers of rows and of columns that the kernels take are multiples of it."""
MIDDLE = 8
"""What the kernels subtract from every integer."""
CAPABILITY = (8, 0)
"""Of the first GPUs with bfloat16, which is what the kernel for GPUs computes in."""


@dataclass(frozen=True, slots=True)
class Grouped:
    """A weight (out, in) of small integers: `values * scales + offsets`, by rows and groups of columns."""

    values: Tensor  # (out, in), uint8
    scales: Tensor  # (out, groups), float32
    offsets: Tensor  # (out, groups), float32
    group_of: Tensor  # (in,), int64, on the CPU: the group of each column

    def dense(self) -> Tensor:
        """The weight in float32."""
        return self.scales[:, self.group_of].mul_(self.values).add_(self.offsets[:, self.group_of])


class Int4Linear(nn.Module):
    """A linear layer of four-bit integers; `weight` is as the device's kernel has them once it is loaded."""

    scales_and_offsets: Tensor  # (groups, out_features, 2), bfloat16
    order: Tensor | None  # (in_features,): which input each column of the weight is for

    def __init__(self, linear: nn.Linear, group_size: int, *, is_ordered: bool) -> None:
        """In the place of `linear`; `group_size` is one that `kernel_group` gives."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.group_size = group_size
        self.is_ordered = is_ordered
        self.weight = nn.Parameter(torch.empty_like(linear.weight, device="meta"), requires_grad=False)
        self.bias = linear.bias
        self.register_buffer("scales_and_offsets", None, persistent=False)
        self.register_buffer("order", None, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, self.in_features).bfloat16()
        if self.order is not None:
            rows = rows[:, self.order]
        multiply = torch._weight_int4pack_mm if inputs.is_cuda else torch._weight_int4pack_mm_for_cpu
        output = multiply(rows, self.weight, self.group_size, self.scales_and_offsets).to(inputs.dtype)
        if self.bias is not None:
            output = output + self.bias
        return output.view(*inputs.shape[:-1], self.out_features)

    @property
    def nbytes(self) -> int:
        """Memory that it takes, but for its bias."""
        num_weights = self.out_features * self.in_features
        return num_weights // 2 + 4 * (num_weights // self.group_size) + 8 * self.in_features * self.is_ordered

    def quantize(self, weight: Tensor, *, device: torch.device) -> None:
        """Take a weight (out_features, in_features) of plain numbers."""
        self.fill(rounded(weight.to(device), self.group_size), device=device)

    def fill(self, grouped: Grouped, *, device: torch.device) -> None:
        """Take a weight; WeightsError if it has another shape, or groups of unlike sizes."""
        values, scales, offsets = grouped.values, grouped.scales, grouped.offsets
        if values.shape != (self.out_features, self.in_features):
            raise WeightsError(f"{tuple(values.shape)} integers, {self.out_features, self.in_features} by the config")
        order = grouped.group_of.argsort(stable=True)
        size = self.in_features // scales.shape[1]
        if not torch.equal(grouped.group_of[order], torch.arange(self.in_features) // size):
            raise WeightsError("its groups are of unlike sizes")
        if torch.equal(order, torch.arange(self.in_features)):
            self.order = None
        elif self.is_ordered:
            self.order = order.to(device)
            values = values[:, order]
        else:
            raise WeightsError("its columns are in another order, of which its config says nothing")
        num_equal = size // self.group_size
        pairs = torch.stack((scales, offsets + MIDDLE * scales), dim=-1)  # (out, groups, 2)
        pairs = pairs.repeat_interleave(num_equal, 1).transpose(0, 1).contiguous()
        self.scales_and_offsets = pairs.to(device, torch.bfloat16)
        self.weight = nn.Parameter(packed_for(device, values.to(device)), requires_grad=False)


def packed_for(device: torch.device, values: Tensor) -> Tensor:
    """Integers (out, in), uint8, as the device's kernel has them."""
    if device.type == "cpu":
        return torch._convert_weight_to_int4pack_for_cpu(values.int(), 1)
    columns = values.shape[1]
    inner = next(num for num in (8, 4, 2) if columns % (16 * num) == 0)
    return torch._convert_weight_to_int4pack((values[:, ::2] << 4) | values[:, 1::2], inner)


def kernel_group(linear: nn.Linear, group_size: int) -> int | None:
    """In which groups a kernel takes what is stored in groups of `group_size` (-1: whole rows); None: in none."""
    size = linear.in_features if group_size == -1 else group_size
    if linear.in_features % size or linear.in_features % MULTIPLE or linear.out_features % MULTIPLE:
        return None
    return next((group for group in GROUP_SIZES if size % group == 0), None)


def reason_against(device: torch.device) -> str | None:
    """Why this device does not multiply such integers; None: it does."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} has no bfloat16"
    size = GROUP_SIZES[0]
    weight = torch.linspace(-1, 1, size * size, device=device).view(size, size)
    inputs = torch.linspace(1, -1, size, device=device).view(1, size)
    grouped = rounded(weight, size)
    layer = Int4Linear(nn.Linear(size, size, bias=False, device="meta"), size, is_ordered=False)
    try:
        layer.fill(grouped, device=device)
        made = layer(inputs)
    except RuntimeError as error:  # also if no kernel is there
        return f"torch {torch.__version__} cannot ({str(error).partition(chr(10))[0]})"
    expected = inputs @ grouped.dense().t()
    if (made - expected).abs().max() > 0.05 * expected.abs().max():
        return f"torch {torch.__version__} multiplies them wrongly"
    return None


def rounded(weight: Tensor, group_size: int) -> Grouped:
    """Numbers (out, in) as the nearest of sixteen between the least and the most of their group."""
    by_group = weight.float().unflatten(1, (-1, group_size))
    least, most = by_group.amin(-1), by_group.amax(-1)
    scales = ((most - least) / 15).clamp(min=1e-12)
    values = ((by_group - least.unsqueeze(-1)) / scales.unsqueeze(-1)).round_().to(torch.uint8).flatten(1)
    return Grouped(values, scales, least, torch.arange(weight.shape[1]) // group_size)
