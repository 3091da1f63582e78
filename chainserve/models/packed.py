"""Weights that a checkpoint stores in several tensors: integers in groups, or numbers of 8 bits and their scales.

A source shows each of them as one tensor under the weight's usual name. It can be read as plain numbers, and where the
integers are of four bits as they are, for `int4.Int4Linear`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from chainserve.errors import WeightsError
from chainserve.models.int4 import Grouped
from chainserve.models.names import AWQ, COMPRESSED, FP8, GPTQ
from chainserve.models.source import TensorInfo

WORD_BITS = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight columns lies in the lowest four bits of a word of AWQ's, in the next four, and so on."""
PACKED = (GPTQ, AWQ, FP8, COMPRESSED)
"""Methods of which checkpoints are read."""
WORDS, SCALED = "pack-quantized", "scaled"
"""How compressed-tensors stores integers in words of 32 bits, and numbers of 8 bits, as they are."""
PARTS = {
    GPTQ: ("qweight", "scales", "qzeros", "g_idx"),
    AWQ: ("qweight", "scales", "qzeros"),
    FP8: ("weight", "weight_scale_inv"),
    WORDS: ("weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape"),
    SCALED: ("weight", "weight_scale"),
}
"""By layout the tensors of a weight: the numbers, their scales, and what may be there besides."""
COMPRESSED_LAYOUTS = {
    "pack-quantized": WORDS,
    "float-quantized": SCALED,
    "int-quantized": SCALED,
    "naive-quantized": SCALED,
}
COMPRESSED_BITS = (4, 8)


@dataclass(frozen=True, slots=True)
class Packing:
    """How the linear layers of a checkpoint are stored, as its config says."""

    method: str  # one of PACKED
    layout: str  # one of PARTS
    bits: int
    group_size: int = -1  # columns of integers that share their scales; -1: all do
    is_ordered: bool = False  # columns of a group lie anywhere (GPTQ's act-order)
    added_to_zeros: int = 0  # 1 in GPTQ's first format, which stores them less one
    block: tuple[int, int] | None = None  # rows and columns of 8-bit numbers that share a scale; None: rows do, or all

    def weights(self, tensors: Mapping[str, TensorInfo]) -> dict[str, dict[str, TensorInfo]]:
        """The parts of each packed weight, by the weight's name."""
        numbers, scales, *others = PARTS[self.layout]
        found = {}
        for name in tensors:
            layer, _, leaf = name.rpartition(".")
            if leaf == numbers and f"{layer}.{scales}" in tensors:
                parts = {part: tensors.get(f"{layer}.{part}") for part in (numbers, scales, *others)}
                found[f"{layer}.weight"] = {part: info for part, info in parts.items() if info is not None}
        return found

    def info(self, name: str, parts: Mapping[str, TensorInfo]) -> TensorInfo:
        """What to say of a packed weight: bytes are those of its parts together."""
        numbers, scales = (parts[part] for part in PARTS[self.layout][:2])
        rows, columns = numbers.shape
        per_word = WORD_BITS // self.bits
        shape = {
            GPTQ: (columns, rows * per_word),
            AWQ: (columns * per_word, rows),
            WORDS: (rows, columns * per_word),
        }.get(self.layout, (rows, columns))
        nbytes = sum(part.nbytes for part in parts.values())
        return replace(numbers, name=name, shape=shape, dtype=scales.dtype, nbytes=nbytes)

    def grouped(self, name: str, parts: Mapping[str, Tensor]) -> Grouped:
        """Integers that lie in words; WeightsError if the parts do not fit together."""
        values, scales, zeros, groups = self._integers(parts)
        num_rows, num_columns = values.shape
        size = num_columns if self.group_size == -1 else self.group_size
        group_of = torch.arange(num_columns) // size if groups is None else groups.long()
        if (
            scales.shape != zeros.shape
            or len(scales) != num_rows
            or len(group_of) != num_columns
            or not 0 <= int(group_of.min()) <= int(group_of.max()) < scales.shape[1]
        ):
            raise _misfit(name, parts)
        scales = scales.float().contiguous()
        return Grouped(values, scales, -(zeros.float() + self.added_to_zeros) * scales, group_of)

    def _integers(self, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Values (out, in), scales and zeros (out, groups), and the group of each column where that is stored."""
        if self.layout == WORDS:
            values, scales = _unpacked(parts["weight_packed"], self.bits), parts["weight_scale"]
            zeros = torch.full(scales.shape, 1 << (self.bits - 1))  # what is added to make integers unsigned
            if (words := parts.get("weight_zero_point")) is not None:
                zeros = _unpacked(words.t().contiguous(), self.bits).t()[: len(values)]
            return values, scales, zeros, parts.get("weight_g_idx")
        words, zero_words, scales = parts["qweight"], parts["qzeros"], parts["scales"].t()
        if self.layout == GPTQ:
            values = _unpacked(words.t().contiguous(), self.bits)
            return values, scales, _unpacked(zero_words, self.bits).t(), parts.get("g_idx")
        values = _unpacked(words, self.bits, AWQ_ORDER).t().contiguous()
        return values, scales, _unpacked(zero_words, self.bits, AWQ_ORDER).t(), None

    def dense(self, name: str, parts: Mapping[str, Tensor]) -> Tensor:
        """The weight in float32; WeightsError if the parts do not fit together."""
        if self.layout not in (FP8, SCALED):
            return self.grouped(name, parts).dense()
        weight, scales = (parts[part].float() for part in PARTS[self.layout])
        if self.block is None:
            if scales.numel() not in (1, len(weight)):
                raise _misfit(name, parts)
            return weight.mul_(scales.view(-1, 1))
        (num_rows, num_columns), (rows, columns) = weight.shape, self.block
        if scales.shape != (-(-num_rows // rows), -(-num_columns // columns)):
            raise _misfit(name, parts)
        spread = scales.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        return weight.mul_(spread[:num_rows, :num_columns])


ROUNDED = Packing("", "", 4, 32)
"""How weights are kept that are rounded when they are loaded, or come from a GGUF file."""


def packing_of(fields: Mapping[str, Any]) -> Packing | str:
    """How a checkpoint with such a `quantization_config` stores its weights, or why we cannot read that."""
    method = str(fields.get("quant_method"))
    if method == FP8:
        rows, columns = fields.get("weight_block_size") or (0, 0)
        if not rows or not columns:
            return "only weights with scales by blocks are read"
        return Packing(FP8, FP8, 8, block=(rows, columns))
    if method == COMPRESSED:
        return _compressed(fields)
    if method not in (GPTQ, AWQ):
        return "nothing is known of it here"
    bits = int(fields.get("bits", fields.get("w_bit", 4)))
    group_size = int(fields.get("group_size", fields.get("q_group_size", 128)))
    stored = str(fields.get("checkpoint_format") or fields.get("version") or fields.get("format") or "").lower()
    known = {GPTQ: ("", "gptq", "gptq_v2"), AWQ: ("", "gemm")}[method]
    if stored not in known:
        return f"of its formats {' and '.join(filter(None, known))} are read, not {stored}"
    if bits not in {GPTQ: (2, 4, 8), AWQ: (4,)}[method]:
        return f"weights of {bits} bits are not read"
    if fields.get("dynamic"):
        return "its layers differ from one another (dynamic)"
    is_first = method == GPTQ and stored != "gptq_v2"
    return Packing(method, method, bits, group_size, bool(fields.get("desc_act")), added_to_zeros=int(is_first))


def _compressed(fields: Mapping[str, Any]) -> Packing | str:
    """The same for compressed-tensors, whose layers come in groups, each quantized in its own way."""
    groups = list((fields.get("config_groups") or {}).values())
    stored = {str(group.get("format") or fields.get("format")) for group in groups}
    ways = {
        (
            how.get("num_bits"),
            how.get("group_size") or -1,
            how.get("symmetric", True),
            how.get("actorder") in ("group", True),
            tuple(how.get("block_structure") or ()),
        )
        for how in (group.get("weights") or {} for group in groups)
    }
    if len(ways) != 1 or len(stored) != 1:
        return "its layers differ from one another"
    [(bits, group_size, is_symmetric, is_ordered, block)], [name] = ways, stored
    if fields.get("transform_config") or (fields.get("sparsity_config") or {}).get("format", "dense") != "dense":
        return "its weights are transformed, or sparse"
    if (layout := COMPRESSED_LAYOUTS.get(name)) is None:
        return f"of its formats {', '.join(COMPRESSED_LAYOUTS)} are read, not {name}"
    if bits not in COMPRESSED_BITS or (layout == SCALED and (bits != 8 or group_size != -1 or not is_symmetric)):
        return f"weights of {bits} bits in groups of {group_size} are not read in the format {name}"
    return Packing(COMPRESSED, layout, int(bits), group_size, is_ordered, block=block or None)


def _misfit(name: str, parts: Mapping[str, Tensor]) -> WeightsError:
    shapes = ", ".join(f"{part} {tuple(tensor.shape)}" for part, tensor in parts.items())
    return WeightsError(f"the tensors of {name} do not fit together: {shapes}")


def _unpacked(words: Tensor, bits: int, order: Iterable[int] = ()) -> Tensor:
    """Integers (rows, columns * per word) of words (rows, columns) of 32 bits; lowest bits first, or in `order`."""
    places = torch.arange(WORD_BITS // bits) * bits
    if order := list(order):
        places = places[torch.tensor(order).argsort()]
    values = torch.empty(*words.shape, len(places), dtype=torch.uint8)
    for at, place in enumerate(places.tolist()):  # one at a time, as each is as large as all values
        values[..., at] = words.bitwise_right_shift(place).bitwise_and_((1 << bits) - 1)
    return values.flatten(-2)
