"""A folder with config.json and a tokenizer, and the safetensors files that belong to it."""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from chainserve.errors import ModelNotFoundError, UnsupportedModelError, WeightsError
from chainserve.models.headers import LENGTH_BYTES, parse_header, read_header
from chainserve.models.int4 import INT4_BITS, Grouped
from chainserve.models.packed import Packing
from chainserve.models.quantize import PLAIN_LAYERS, check_readable, stored_packing
from chainserve.models.source import TensorInfo, Traffic, digest_of, read_tensor

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILES = ("*tok*", "vocab*", "*.model", "tekken.json")


class Shards(Protocol):
    """The safetensors files of one model, wherever they are."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    @property
    def traffic(self) -> Traffic:
        """Counts up as bytes move."""

    def fetch(self, infos: Iterable[TensorInfo], *, progress: bool) -> None:
        """Bring these tensors to this disk."""

    def locate(self, info: TensorInfo) -> tuple[Path, int]:
        """File on this disk, and where in it the tensor begins; it has been fetched."""


class SafetensorsSource:
    """A `ModelSource` over a folder and its shards."""

    def __init__(self, name: str, folder: Path, shards: Shards) -> None:
        self.name = name
        self.config = read_config(name, folder)
        self.num_blocks: int = self.config.num_hidden_layers
        self.digest = digest_of(
            json.loads((folder / "config.json").read_text()),
            ((info.name, str(info.dtype), info.shape) for info in shards.tensors.values()),
        )
        self._folder = folder
        self._shards = shards
        self._packing = stored_packing(self.config)
        self._parts = self._packing.weights(shards.tensors) if self._packing else {}
        self.tensors = self._as_weights()
        if self._packing:
            self._settle(self._packing)

    def fetch(self, names: Collection[str], *, progress: bool = False) -> None:
        infos = (info for name in names for info in self._parts.get(name, {"": self.tensors[name]}).values())
        self._shards.fetch(infos, progress=progress)

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        if self._packing and name in self._parts:
            return self._packing.dense(name, self._read_parts(name)).to(dtype or self.tensors[name].dtype)
        return self._read(self.tensors[name], dtype)

    def grouped(self, name: str) -> Grouped | None:
        if self._packing is None or name not in self._parts:
            return None
        return self._packing.grouped(name, self._read_parts(name))

    def take_traffic(self) -> Traffic:
        traffic = self._shards.traffic
        taken = Traffic(read=traffic.read, downloaded=traffic.downloaded)
        traffic.read = traffic.downloaded = 0
        return taken

    def tokenizer(self) -> PreTrainedTokenizerBase:
        # The first 5.x of transformers make up a tokenizer without words where there is none.
        if not any(any(self._folder.glob(pattern)) for pattern in TOKENIZER_FILES):
            raise ModelNotFoundError(f"{self.name} has no tokenizer that loads: none of its files belong to one")
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self._folder)
        except (OSError, ValueError) as error:
            raise ModelNotFoundError(f"{self.name} has no tokenizer that loads: {first_line(error)}") from error
        return tokenizer

    def generation_config(self) -> GenerationConfig | None:
        if not (self._folder / "generation_config.json").is_file():
            return None
        return GenerationConfig.from_pretrained(self._folder)

    def _as_weights(self) -> Mapping[str, TensorInfo]:
        """The tensors of the checkpoint, with those that make a weight together seen as that weight."""
        if self._packing is None:
            return self._shards.tensors
        hidden = {info.name for parts in self._parts.values() for info in parts.values()}
        plain = {name: info for name, info in self._shards.tensors.items() if name not in hidden}
        return plain | {name: self._packing.info(name, parts) for name, parts in self._parts.items()}

    def _settle(self, packing: Packing) -> None:
        """Have the config say which layers stay integers: none, if no kernel takes them."""
        if packing.bits != INT4_BITS:
            del self.config.quantization_config
            return
        plain = [
            f"layers.{name.removesuffix('.weight').partition('layers.')[2]}"  # what comes before is not always the same
            for name, info in self.tensors.items()
            if name not in self._parts and "layers." in name and name.endswith(".weight") and len(info.shape) == 2
        ]
        self.config.quantization_config = {**self.config.quantization_config, PLAIN_LAYERS: sorted(plain)}

    def _read(self, info: TensorInfo, dtype: torch.dtype | None = None) -> Tensor:
        path, offset = self._shards.locate(info)
        tensor = read_tensor(path, offset, info, dtype=dtype)
        self._shards.traffic.read += info.nbytes
        return tensor

    def _read_parts(self, name: str) -> dict[str, Tensor]:
        return {part: self._read(info) for part, info in self._parts[name].items()}


class LocalShards:
    """Safetensors files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.traffic = Traffic()
        self._folder = folder
        self.tensors = {info.name: info for file in shard_files(folder) for info in self._read_header(file)}

    def fetch(self, infos: Iterable[TensorInfo], *, progress: bool) -> None:
        """Nothing to do: they are here."""

    def locate(self, info: TensorInfo) -> tuple[Path, int]:
        return self._folder / info.file, info.offset

    def _read_header(self, file: str) -> list[TensorInfo]:
        path = self._folder / file
        if not path.is_file():
            raise ModelNotFoundError(f"{self._folder} lacks {file}: only models saved as safetensors can be read")
        header = read_header(path)
        self.traffic.read += LENGTH_BYTES + len(header)
        return parse_header(header, file=file, file_bytes=path.stat().st_size)


def open_folder(folder: Path) -> SafetensorsSource:
    """A model saved in a local folder; ModelNotFoundError if it is not complete."""
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(
            f"{folder} holds no config.json: give the folder of a model in the format of transformers"
        )
    return SafetensorsSource(str(folder.resolve()), folder, LocalShards(folder))


def shard_files(folder: Path) -> list[str]:
    """Names of a model's safetensors files, from its index if there is one."""
    index = folder / INDEX_FILE
    if not index.is_file():
        return [SINGLE_FILE]
    try:
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index} is damaged ({error!r}): get the file again") from error
    if any(not isinstance(file, str) or Path(file).name != file for file in files):
        raise WeightsError(f"{index} names files outside its folder: it is damaged or malicious")
    return files


def read_config(name: str, folder: Path) -> PretrainedConfig:
    """Config of the text decoder in `folder`; UnsupportedModelError if transformers does not know the family."""
    try:
        whole = AutoConfig.from_pretrained(folder)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise UnsupportedModelError(f"{name}: its config.json does not load: {first_line(error)}") from error
    config: PretrainedConfig = whole.get_text_config(decoder=True)
    # Whether a model that also sees ties its embeddings is decided by its config as a whole.
    config.tie_word_embeddings = getattr(whole, "tie_word_embeddings", config.tie_word_embeddings)
    if quantization := getattr(whole, "quantization_config", None):
        config.quantization_config = quantization
    check_readable(name, getattr(config, "quantization_config", None))
    return config


def first_line(error: Exception) -> str:
    """What an error of a library says, cut to one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
