"""Tensors to bytes and back."""

import math

import torch
from torch import Tensor, nn

from chainserve.errors import FrameError
from chainserve.protocol.messages import DTYPES, INT8, INT8_GROUP, WireTensor, row_bytes


def to_wire(tensor: Tensor) -> WireTensor:
    """The tensor as raw bytes; without a copy if it is contiguous and on the CPU."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ValueError(f"activations travel as {', '.join(DTYPES)}, not as {dtype}")
    flat = tensor.detach().cpu().contiguous().view(-1)
    return WireTensor(dtype, tuple(tensor.shape), flat.view(torch.uint8).numpy().data)


class Int8Wire:
    """Sends activations as integers of 8 bits, and keeps count of what that loses. Call it from one thread only."""

    def __init__(self) -> None:
        self._lost = self._sent = 0.0  # sums of squares

    @property
    def error(self) -> float:
        """Root mean square of what was lost so far, over that of what was sent; 0 if nothing was."""
        return math.sqrt(self._lost / self._sent) if self._sent else 0.0

    def __call__(self, tensor: Tensor) -> WireTensor:
        """The rows (n, width) as `INT8`: in each group the largest magnitude becomes 127."""
        rows, width = tensor.shape
        values = tensor.detach().float().cpu()
        padded = nn.functional.pad(values, (0, -width % INT8_GROUP)).view(rows, -1, INT8_GROUP)
        scales = padded.abs().amax(dim=-1, keepdim=True) / 127
        # A group of zeros has no scale, and one that overflowed none that is a number: that has to arrive as none.
        integers = (padded / scales.where(scales > 0, 1.0)).nan_to_num().round()
        lost = (integers * scales - padded).square().sum()
        if lost.isfinite():
            self._lost += float(lost)
            self._sent += float(padded.square().sum())
        elements = integers.to(torch.int8).view(rows, -1)[:, :width]
        packed = torch.cat([scales.view(rows, -1).view(torch.uint8), elements.view(torch.uint8)], dim=1)
        return WireTensor(INT8, (rows, width), packed.view(-1).numpy().data)


def from_wire(wire: WireTensor, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The tensor on `device`, converted to `dtype`. FrameError if its bytes do not fit its type and shape."""
    if wire.dtype == INT8 and len(wire.shape) == 2 and min(wire.shape) >= 0:
        return _from_int8(wire).to(device=device, dtype=dtype)
    if wire.dtype not in DTYPES or min(wire.shape, default=0) < 0:
        raise FrameError(f"not a tensor: {wire.dtype} {wire.shape}")
    needed = math.prod(wire.shape) * DTYPES[wire.dtype]
    if len(wire.data) != needed:
        raise FrameError(f"{wire.dtype} {wire.shape} takes {needed} bytes, got {len(wire.data)}")
    # A bytearray can be written to, which torch asks of the memory it shares.
    flat = torch.frombuffer(bytearray(wire.data), dtype=getattr(torch, wire.dtype)) if needed else torch.empty(0)
    return flat.view(wire.shape).to(device=device, dtype=dtype)


def _from_int8(wire: WireTensor) -> Tensor:
    rows, width = wire.shape
    size = row_bytes(INT8, width)
    if len(wire.data) != rows * size:
        raise FrameError(f"{wire.dtype} {wire.shape} takes {rows * size} bytes, got {len(wire.data)}")
    if not rows * width:
        return torch.empty(wire.shape)
    packed = torch.frombuffer(bytearray(wire.data), dtype=torch.uint8).view(rows, size)
    scales = packed[:, : size - width].flatten().view(torch.float32).view(rows, -1)
    integers = packed[:, size - width :].view(torch.int8)
    return integers * scales.repeat_interleave(INT8_GROUP, dim=1)[:, :width]
