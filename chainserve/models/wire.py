"""Tensors to bytes and back."""

import math

import torch
from torch import Tensor

from chainserve.errors import FrameError
from chainserve.protocol.messages import DTYPES, WireTensor


def to_wire(tensor: Tensor) -> WireTensor:
    """The tensor as raw bytes; without a copy if it is contiguous and on the CPU."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ValueError(f"activations travel as {', '.join(DTYPES)}, not as {dtype}")
    flat = tensor.detach().cpu().contiguous().view(-1)
    return WireTensor(dtype, tuple(tensor.shape), flat.view(torch.uint8).numpy().data)


def from_wire(wire: WireTensor, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The tensor on `device`, converted to `dtype`. FrameError if its bytes do not fit its type and shape."""
    if wire.dtype not in DTYPES or min(wire.shape, default=0) < 0:
        raise FrameError(f"not a tensor: {wire.dtype} {wire.shape}")
    needed = math.prod(wire.shape) * DTYPES[wire.dtype]
    if len(wire.data) != needed:
        raise FrameError(f"{wire.dtype} {wire.shape} takes {needed} bytes, got {len(wire.data)}")
    # A bytearray can be written to, which torch asks of the memory it shares.
    flat = torch.frombuffer(bytearray(wire.data), dtype=getattr(torch, wire.dtype)) if needed else torch.empty(0)
    return flat.view(wire.shape).to(device=device, dtype=dtype)
