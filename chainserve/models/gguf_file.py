"""A model in one GGUF file, seen as the transformers model it was made from.

Names, config and tokenizer are mapped by transformers; a tensor is dequantized when it is read.
"""

import importlib.util
import struct
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
    load_gguf_checkpoint,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from chainserve.errors import ModelNotFoundError, UnsupportedModelError, WeightsError
from chainserve.models.int4 import Grouped
from chainserve.models.source import CONVERT_ELEMENTS, TensorInfo, Traffic, digest_of

TABLES = {"token_embd.weight", "output.weight"}
"""By far the largest tensors, which no family permutes: they may be dequantized a few rows at a time."""

VOCABULARY_APART = importlib.util.find_spec("transformers.integrations.gguf") is not None
"""Newer transformers read a vocabulary by quicker means than the directory."""

LONG_ARRAY = 4096
"""Arrays of metadata with more items are vocabularies."""
TOKENS = "tokenizer.ggml.tokens"


GROUP_COLUMNS = 32
GROUPED = {gguf.GGMLQuantizationType.Q4_0: 1, gguf.GGMLQuantizationType.Q4_1: 2}
"""Types that are integers of four bits in groups of so many columns, and how many float16 numbers come with a group:
a scale, or a scale and an offset."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor as the file stores it; `stored` is the shape and dtype of its quantized bytes."""

    name: str
    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    stored_shape: tuple[int, ...]
    stored_dtype: np.dtype[Any]
    offset: int
    nbytes: int


class GgufSource:
    """A `ModelSource` over one GGUF file.

    Tensors bear the names of transformers' parameters; one that the file holds in several parts (gate and up
    projections of experts) counts as one tensor of their bytes together.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self._parsed: dict[str, Any]
        try:
            directory = _Directory(path)
            architecture, fields, stored = _read_directory(directory)
            self._parsed = _parse(path, directory)
            del directory  # which keeps the file in memory
        except (ValueError, KeyError, IndexError) as error:
            raise UnsupportedModelError(f"{name}: transformers cannot read this GGUF file ({error})") from error
        config_class = CONFIG_MAPPING[self._parsed["model_type"]]
        self.config: PretrainedConfig = config_class.from_dict(dict(self._parsed))
        self.num_blocks: int = self.config.num_hidden_layers
        self.digest = digest_of(fields, ((tensor.name, tensor.kind.name, tensor.shape) for tensor in stored))
        processor_class: type[TensorProcessor] = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
        processor = processor_class(config=self._parsed)
        self._process: Callable[..., Any] = processor.process
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self.config)
        self._names: dict[str, str] = _name_map(model, processor)
        self._parts: dict[str, list[GgufTensor]] = {}
        for tensor in stored:
            if hf_name := self._names.get(tensor.name) or self._names.get(tensor.name.removesuffix(".weight")):
                self._parts.setdefault(hf_name, []).append(tensor)
        shapes = {hf_name: tuple(parameter.shape) for hf_name, parameter in model.state_dict().items()}
        self.tensors = {
            hf_name: _info(hf_name, parts, shape=shapes.get(hf_name, parts[0].shape), file=path.name)
            for hf_name, parts in self._parts.items()
        }
        self._traffic = Traffic(read=min(tensor.offset for tensor in stored))

    def fetch(self, names: Collection[str], *, progress: bool = False) -> None:
        """Nothing to do: the file is here."""

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        parts = self._parts[name]
        self._traffic.read += sum(part.nbytes for part in parts)
        if len(parts) == 1 and parts[0].name in TABLES:
            return self._read_table(parts[0], dtype or torch.float32)
        gathered: dict[str, Tensor] = {}
        for part in parts:
            weights = gguf.dequantize(self._stored(part), part.kind)
            # A processor either returns the weights, or puts them under our name itself and returns no name.
            result = self._process(
                weights=weights,
                name=part.name,
                tensor_key_mapping=self._names,
                parsed_parameters={"tensors": gathered, "config": self._parsed},
            )
            if result.name is not None:
                gathered[name] = torch.from_numpy(np.require(result.weights, requirements=["C", "W", "O"]))
        return gathered[name].to(dtype or torch.float32)

    def grouped(self, name: str) -> Grouped | None:
        """The integers of a tensor of type Q4_0 or Q4_1; None for every other."""
        if name not in self._parts or len(parts := self._parts[name]) > 1 or parts[0].kind not in GROUPED:
            return None
        [part] = parts
        if (rows := self._rows_of(part)) is None:
            return None
        self._traffic.read += part.nbytes
        values, scales, offsets = _integers(self._stored(part), part.kind)
        group_of = torch.arange(values.shape[1]) // GROUP_COLUMNS
        return Grouped(values[rows], scales[rows], offsets[rows], group_of)

    def take_traffic(self) -> Traffic:
        taken, self._traffic = self._traffic, Traffic()
        return taken

    def tokenizer(self) -> PreTrainedTokenizerBase:
        stated = _Directory(self.path).fields.get("tokenizer.ggml.add_bos_token")
        options = {"add_bos_token": stated.contents()} if stated else {}  # the first 5.x of transformers overlook it
        with _read_by(_Directory) if VOCABULARY_APART else nullcontext():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                self.path.parent, gguf_file=self.path.name, **options
            )
        tokenizer.clean_up_tokenization_spaces = False  # they would also take spaces before punctuation away
        return tokenizer

    def generation_config(self) -> GenerationConfig | None:
        """None: the format has no place for it."""
        return None

    def _rows_of(self, part: GgufTensor) -> Tensor | None:
        """Which row of the file each row of the weight is; None if the weight is not made of whole rows."""
        numbers = np.broadcast_to(np.arange(part.shape[0])[:, None], part.shape)
        moved = self._process(weights=numbers, name=part.name, tensor_key_mapping=self._names, parsed_parameters={})
        rows = moved.weights[:, :1]
        if moved.weights.shape != part.shape or not (moved.weights == rows).all():
            return None
        return torch.from_numpy(rows[:, 0].copy())

    def _read_table(self, table: GgufTensor, dtype: torch.dtype) -> Tensor:
        tensor = torch.empty(table.shape, dtype=dtype)
        num_rows = max(1, CONVERT_ELEMENTS // table.shape[-1])
        stored = self._stored(table)
        for start in range(0, len(tensor), num_rows):
            rows = gguf.dequantize(stored[start : start + num_rows], table.kind)
            tensor[start : start + num_rows] = torch.from_numpy(rows)
        return tensor

    def _stored(self, tensor: GgufTensor) -> np.ndarray[Any, Any]:
        count = tensor.nbytes // tensor.stored_dtype.itemsize
        stored = np.fromfile(self.path, dtype=tensor.stored_dtype, count=count, offset=tensor.offset)
        if len(stored) != count:
            raise WeightsError(f"{self.path} ends in the middle of a tensor: get the file again")
        return stored.reshape(tensor.stored_shape)


def _integers(stored: np.ndarray[Any, Any], kind: gguf.GGMLQuantizationType) -> tuple[Tensor, Tensor, Tensor]:
    """Values (out, in), scales and offsets (out, groups) of rows of bytes; the lower half of bits comes first."""
    num_numbers = GROUPED[kind]
    blocks = torch.from_numpy(stored).unflatten(1, (-1, 2 * num_numbers + GROUP_COLUMNS // 2))
    numbers = blocks[..., : 2 * num_numbers].contiguous().view(torch.float16).float()
    halves = blocks[..., 2 * num_numbers :]
    values = torch.cat((halves & 0xF, halves >> 4), dim=-1).flatten(1)
    scales = numbers[..., 0]
    return values, scales, numbers[..., 1] if num_numbers == 2 else -8 * scales


def open_gguf(path: Path, *, name: str | None = None) -> GgufSource:
    """A model in a GGUF file; `name` is what to tell others instead of the path."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelNotFoundError(f"{path} is not a GGUF file: its first four bytes should be GGUF")
    return GgufSource(name or str(path.resolve()), path)


class _Directory(gguf.GGUFReader):
    """A reader that skips long arrays: vocabularies, which take it seconds and say nothing about tensors.

    A skipped array keeps its length, with one and the same empty item.
    """

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
        if raw_type == gguf.GGUFValueType.ARRAY and self.byte_order == "I":
            header = struct.Struct("<IQ")
            item_type, count = header.unpack_from(self.data, orig_offs)
            if count > LONG_ARRAY:
                size = header.size + self._size_of_items(orig_offs + header.size, item_type, count)
                types = [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType(item_type)]
                return size, [np.zeros(1, np.uint8)], [0] * count, types
        parts: tuple[int, list[Any], list[int], list[Any]] = super()._get_field_parts(orig_offs, raw_type)
        return parts

    def _size_of_items(self, start: int, item_type: int, count: int) -> int:
        if item_type != gguf.GGUFValueType.STRING:
            return count * int(np.dtype(self.gguf_scalar_to_np[gguf.GGUFValueType(item_type)]).itemsize)
        length, end = struct.Struct("<Q"), start
        for _ in range(count):
            end += length.size + length.unpack_from(self.data, end)[0]
        return end - start


@contextmanager
def _read_by(make: Callable[..., gguf.GGUFReader]) -> Iterator[None]:
    """Have transformers read with what this makes: it takes its reader from this name."""
    usual, gguf.GGUFReader = gguf.GGUFReader, make
    try:
        yield
    finally:
        gguf.GGUFReader = usual


def _parse(path: Path, directory: _Directory) -> dict[str, Any]:
    """transformers' view of the file's metadata as a config; vocabularies are taken out of `directory`.

    transformers goes through every token for nothing but, where the size of the vocabulary is not given, their number.
    """
    architecture = directory.fields["general.architecture"].contents()
    needed = set() if f"{architecture}.vocab_size" in directory.fields else {TOKENS}
    for key in [key for key in directory.fields if key.startswith("tokenizer.") and key not in needed]:
        if len(directory.fields[key].data) > LONG_ARRAY:
            del directory.fields[key]
    with _read_by(lambda *_: directory):
        parsed: dict[str, Any] = load_gguf_checkpoint(str(path), return_tensors=False)["config"]
    return parsed


def _read_directory(reader: _Directory) -> tuple[str, dict[str, Any], list[GgufTensor]]:
    """Architecture, the fields that describe it, and where the tensors are."""
    architecture: str = reader.fields["general.architecture"].contents()
    fields = {
        key: field.contents()
        for key, field in reader.fields.items()
        if key == "general.architecture" or key.startswith(f"{architecture}.")
    }
    tensors = [
        GgufTensor(
            name=tensor.name,
            kind=tensor.tensor_type,
            shape=tuple(int(size) for size in reversed(tensor.shape)),
            stored_shape=tensor.data.shape,
            stored_dtype=tensor.data.dtype,
            offset=int(tensor.data_offset),
            nbytes=int(tensor.n_bytes),
        )
        for tensor in reader.tensors
    ]
    return architecture, fields, tensors


def _name_map(model: nn.Module, processor: TensorProcessor) -> dict[str, str]:
    """transformers' parameter name for each name in the file.

    transformers asks every module of the model, which takes seconds; names depend on the model as a whole or,
    for families converted without their head, on its base.
    """

    def view(module: nn.Module, children: list[tuple[str, SimpleNamespace]]) -> SimpleNamespace:
        return SimpleNamespace(config=model.config, state_dict=module.state_dict, named_children=lambda: children)

    base = [(name, view(child, [])) for name, child in model.named_children()]
    names: dict[str, str] = get_gguf_hf_weights_map(view(model, base), processor)
    return names


def _info(name: str, parts: list[GgufTensor], *, shape: tuple[int, ...], file: str) -> TensorInfo:
    return TensorInfo(
        name=name,
        dtype=torch.float32,
        shape=shape,
        nbytes=sum(part.nbytes for part in parts),
        file=file,
        offset=min(part.offset for part in parts),
    )
