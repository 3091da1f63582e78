"""What a model on disk or on the hub offers, whatever its format: a config, a tokenizer, tensors by name."""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from chainserve.errors import WeightsError
from chainserve.models.int4 import Grouped

CONVERT_ELEMENTS = 1 << 18
"""Tensors of another dtype are converted this many elements at a time, so that both never exist whole."""

VOLATILE = {"_name_or_path", "_commit_hash", "transformers_version", "torch_dtype", "dtype", "use_cache"}
"""Fields of a config.json that differ between copies of one model; tensors carry their own dtype."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor's bytes are: at [offset, offset + nbytes) of a file, in C order."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    nbytes: int
    file: str
    offset: int

    @property
    def end(self) -> int:
        return self.offset + self.nbytes


@dataclass(slots=True)
class Traffic:
    """Bytes moved, headers included: `read` from this disk, `downloaded` from the network."""

    read: int = 0
    downloaded: int = 0


class ModelSource(Protocol):
    """A model that can be read tensor by tensor."""

    @property
    def name(self) -> str:
        """What to tell others: the bundled name, the hub id, or an absolute path."""

    @property
    def config(self) -> PretrainedConfig:
        """Config of the text decoder."""

    @property
    def num_blocks(self) -> int: ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor of the checkpoint by its name there; `nbytes` as stored."""

    @property
    def digest(self) -> str:
        """16 hex digits, equal wherever config and names, shapes and dtypes of all tensors are equal."""

    def fetch(self, names: Collection[str], *, progress: bool = False) -> None:
        """Bring these tensors' bytes to this disk, where they are not there yet."""

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Read one tensor and nothing else, as `dtype` (its own if None); WeightsError if the file is damaged."""

    def grouped(self, name: str) -> Grouped | None:
        """The weight as the integers in groups that the checkpoint holds of it; None if it does not."""

    def take_traffic(self) -> Traffic:
        """Bytes moved since the source was opened or since the last call."""

    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    def generation_config(self) -> GenerationConfig | None:
        """Defaults for sampling that came with the model, if any did."""


def digest_of(architecture: Mapping[str, Any], tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> str:
    """Digest of a raw config and of (name, dtype, shape) of all tensors, in whatever order they come."""
    canonical = json.dumps([_without_volatile(architecture), sorted(tensors)], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def read_tensor(path: Path, offset: int, info: TensorInfo, *, dtype: torch.dtype | None) -> Tensor:
    """Read a tensor whose bytes begin at `offset` of `path`, as `dtype` (its own if None)."""
    tensor = torch.empty(info.shape, dtype=dtype or info.dtype)
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        if tensor.dtype == info.dtype:
            _fill(tensor, file)
        else:
            buffer = torch.empty(min(tensor.numel(), CONVERT_ELEMENTS), dtype=info.dtype)
            for part in tensor.view(-1).split(CONVERT_ELEMENTS):
                _fill(buffer[: len(part)], file)
                part.copy_(buffer[: len(part)])
    return tensor


def progress_bar(num_bytes: int, *, doing: str, progress: bool) -> "tqdm[Any]":
    """A bar over bytes on stderr, silent if that is no terminal."""
    return tqdm(total=num_bytes, desc=doing, unit="B", unit_scale=True, disable=None if progress else True, leave=False)


def _fill(tensor: Tensor, file: FileIO) -> None:
    view = tensor.view(-1).view(torch.uint8).numpy().data
    while view:
        num_read = file.readinto(view)
        if not num_read:
            raise WeightsError(f"{file.name} ends in the middle of a tensor: get the file again")
        view = view[num_read:]


def _without_volatile(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_volatile(item) for key, item in value.items() if key not in VOLATILE}
    return value
