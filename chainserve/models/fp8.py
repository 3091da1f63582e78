"""A linear layer of float8 weights, multiplied by the kernel that torch has for GPUs made for it."""

import torch
from torch import Tensor, nn
from torch.nn.functional import ScalingType, scaled_mm

from chainserve.errors import DeviceError

FP8_MAX = torch.finfo(torch.float8_e4m3fn).max
FP8_MULTIPLE = 16
"""Sizes that float8 kernels take are multiples of it; layers of other sizes stay as they are."""


class Fp8Linear(nn.Module):
    """A linear layer with float8 weights and a scale for each row of them; its inputs get one for each token.

    No token changes another's result. Products are added up in float32 and come out as bfloat16, which is what
    torch's kernel gives with such scales.
    """

    scale: Tensor  # (1, out_features)

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty_like(linear.weight, device="meta"), requires_grad=False)
        self.bias = linear.bias
        self.register_buffer("scale", None, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, inputs.shape[-1])
        scaled, scale = _to_fp8(rows)
        output = scaled_mm(
            scaled,
            self.weight.t(),
            scale,
            ScalingType.RowWise,
            self.scale,
            ScalingType.RowWise,
            output_dtype=torch.bfloat16,
        ).to(inputs.dtype)
        if self.bias is not None:
            output += self.bias
        return output.view(*inputs.shape[:-1], -1)

    @property
    def nbytes(self) -> int:
        """Memory that it takes, but for its bias."""
        return self.weight.numel() + 4 * self.weight.shape[0]

    def quantize(self, weight: Tensor, *, device: torch.device) -> None:
        """Take a weight (out_features, in_features) of plain numbers."""
        quantized, scale = _to_fp8(weight.to(device))
        self.weight = nn.Parameter(quantized, requires_grad=False)
        self.scale = scale.view(1, -1)


def takes_fp8(linear: nn.Linear) -> bool:
    """Whether float8 kernels take a layer of this size."""
    return not (linear.in_features % FP8_MULTIPLE or linear.out_features % FP8_MULTIPLE)


def check_fp8(device: torch.device) -> None:
    """DeviceError, with the reason, unless the device multiplies float8 numbers."""
    reason = None
    if device.type != "cuda":
        reason = f"{device} would only emulate it"
    elif torch.version.hip:
        reason = f"{torch.cuda.get_device_name(device)} is not made by NVIDIA, and its float8 is another"
    elif (capability := torch.cuda.get_device_capability(device)) < (8, 9):
        reason = f"{torch.cuda.get_device_name(device)} has {'.'.join(map(str, capability))}"
    else:
        try:
            layer = Fp8Linear(nn.Linear(FP8_MULTIPLE, FP8_MULTIPLE, bias=False))
            layer.quantize(torch.ones(FP8_MULTIPLE, FP8_MULTIPLE), device=device)
            layer(torch.ones(1, FP8_MULTIPLE, dtype=torch.bfloat16, device=device))
        except RuntimeError as error:
            reason = f"torch {torch.__version__} cannot here: {str(error).partition(chr(10))[0]}"
    if reason:
        raise DeviceError(
            f"--quant fp8 multiplies float8 numbers, for which a GPU of compute capability 8.9 or newer (RTX 40, L4, "
            f"H100) is needed, and {reason}: take int8 or nf4"
        )


def _to_fp8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as float8, and the scale of each (rows, 1)."""
    scale = rows.abs().amax(dim=-1, keepdim=True).float().clamp(min=1e-12) / FP8_MAX
    return (rows / scale).to(torch.float8_e4m3fn), scale
