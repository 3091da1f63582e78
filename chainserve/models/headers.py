"""Read the header of a safetensors file: what tensors it holds, and where their bytes are."""

import json
from pathlib import Path
from typing import Any

import torch

from chainserve.errors import WeightsError
from chainserve.models.source import TensorInfo

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def header_length(prefix: bytes, *, file: str) -> int:
    """Bytes of the JSON header, from the file's first 8 bytes; WeightsError if that cannot be one."""
    length = int.from_bytes(prefix, "little")
    if len(prefix) != LENGTH_BYTES or not 2 <= length <= MAX_HEADER_BYTES:
        raise WeightsError(f"{file} is not a safetensors file: its header would take {length} bytes")
    return length


def read_header(path: Path) -> bytes:
    """The JSON header of a file on this disk; WeightsError if it has none."""
    with path.open("rb", buffering=0) as file:
        return file.read(header_length(file.read(LENGTH_BYTES), file=str(path)))


def parse_header(header: bytes, *, file: str, file_bytes: int | None = None) -> list[TensorInfo]:
    """Tensors in the order of their bytes, which must follow each other without holes, up to the file's end.

    `header` is the JSON that follows the length. Give `file_bytes` where the file's size is known.
    WeightsError if anything does not fit.
    """
    try:
        fields = json.loads(header)
        fields.pop("__metadata__", None)
        start = LENGTH_BYTES + len(header)
        tensors = [_parse_tensor(name, entry, file=file, start=start) for name, entry in fields.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{file} has a damaged header ({error!r}): get the file again") from error
    tensors.sort(key=lambda info: (info.offset, info.end))
    end = start
    for info in tensors:
        if info.offset != end:
            raise WeightsError(f"{file} has a damaged header ({info.name} is misplaced): get the file again")
        end = info.end
    if file_bytes not in (None, end):
        raise WeightsError(f"{file} has {file_bytes} bytes, its header speaks of {end}: get the file again")
    return tensors


def _parse_tensor(name: str, entry: dict[str, Any], *, file: str, start: int) -> TensorInfo:
    """One entry, its offsets counted from the beginning of the file; ValueError and others if it is malformed."""
    dtype = DTYPES[entry["dtype"]]
    shape = tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    num_elements = 1
    for size in (*shape, begin):
        if type(size) is not int or size < 0:
            raise ValueError(f"{name}: not a size: {size!r}")
    for size in shape:
        num_elements *= size
    if end - begin != num_elements * dtype.itemsize:
        raise ValueError(f"{name}: {end - begin} bytes for a tensor of shape {shape} and dtype {dtype}")
    return TensorInfo(name, dtype, shape, end - begin, file, start + begin)
