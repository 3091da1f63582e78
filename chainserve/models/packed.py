"""Weights that a checkpoint stores in several tensors: integers in groups (GPTQ, AWQ), or float8 in blocks (FP8).

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
from chainserve.models.names import AWQ, FP8, GPTQ
from chainserve.models.source import TensorInfo

WORD_BITS = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight columns lies in the lowest four bits of a word of AWQ's, in the next four, and so on."""
PARTS = {
    GPTQ: ("qweight", "qzeros", "scales", "g_idx"),
    AWQ: ("qweight", "qzeros", "scales"),
    FP8: ("weight", "weight_scale_inv"),
}
"""By method the tensors of a weight, the one that has its shape first."""
PACKED = tuple(PARTS)
OPTIONAL = {"g_idx"}


@dataclass(frozen=True, slots=True)
class Packing:
    """How the linear layers of a checkpoint are stored, as its config says."""

    method: str  # GPTQ, AWQ or FP8
    bits: int
    group_size: int  # of columns that share their scales; -1: all do. 0 for FP8
    is_ordered: bool  # columns of a group lie anywhere (GPTQ's desc_act)
    added_to_zeros: int  # 1 in GPTQ's first format, which stores them less one
    block: tuple[int, int] = (0, 0)  # rows and columns that share a scale of FP8

    def weights(self, tensors: Mapping[str, TensorInfo]) -> dict[str, dict[str, TensorInfo]]:
        """The parts of each packed weight, by the weight's name."""
        main, *others = PARTS[self.method]
        found = {}
        for name in tensors:
            layer, _, leaf = name.rpartition(".")
            parts = {part: tensors[f"{layer}.{part}"] for part in (main, *others) if f"{layer}.{part}" in tensors}
            if leaf == main and parts.keys() - OPTIONAL > {main}:
                found[f"{layer}.weight"] = parts
        return found

    def info(self, name: str, parts: Mapping[str, TensorInfo]) -> TensorInfo:
        """What to say of a packed weight: bytes are those of its parts together."""
        first, scales = (parts[PARTS[self.method][at]] for at in (0, -1 if self.method == FP8 else 2))
        rows, columns = first.shape
        per_word = WORD_BITS // self.bits
        shape = {GPTQ: (columns, rows * per_word), AWQ: (columns * per_word, rows), FP8: (rows, columns)}[self.method]
        return replace(
            first, name=name, shape=shape, dtype=scales.dtype, nbytes=sum(part.nbytes for part in parts.values())
        )

    def grouped(self, name: str, parts: Mapping[str, Tensor]) -> Grouped:
        """The integers of GPTQ or AWQ; WeightsError if the parts do not fit together."""
        words, zero_words, scales = parts["qweight"], parts["qzeros"], parts["scales"].float()
        if self.method == GPTQ:
            values = _unpacked(words.t().contiguous(), self.bits)
            zeros = _unpacked(zero_words, self.bits)
        else:
            values = _unpacked(words, self.bits, AWQ_ORDER).t().contiguous()
            zeros = _unpacked(zero_words, self.bits, AWQ_ORDER)
        num_columns = values.shape[1]
        size = num_columns if self.group_size == -1 else self.group_size
        group_of = parts.get("g_idx", torch.arange(num_columns) // size).long()
        if (
            scales.shape != zeros.shape
            or scales.shape[1] != values.shape[0]
            or len(group_of) != num_columns
            or not 0 <= int(group_of.min()) <= int(group_of.max()) < len(scales)
        ):
            raise _misfit(name, parts)
        offsets = -(zeros.float() + self.added_to_zeros) * scales
        return Grouped(values, scales.t().contiguous(), offsets.t().contiguous(), group_of)

    def dense(self, name: str, parts: Mapping[str, Tensor]) -> Tensor:
        """The weight in float32; WeightsError if the parts do not fit together."""
        if self.method != FP8:
            return self.grouped(name, parts).dense()
        weight, scales = (parts[part].float() for part in PARTS[FP8])
        (num_rows, num_columns), (rows, columns) = weight.shape, self.block
        if scales.shape != (-(-num_rows // rows), -(-num_columns // columns)):
            raise _misfit(name, parts)
        spread = scales.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        return weight.mul_(spread[:num_rows, :num_columns])


ROUNDED = Packing("", 4, 32, is_ordered=False, added_to_zeros=0)
"""How weights are kept that are rounded when they are loaded, or come from a GGUF file."""


def packing_of(fields: Mapping[str, Any]) -> Packing | str:
    """How a checkpoint with such a `quantization_config` stores its weights, or why we cannot read that."""
    method = str(fields.get("quant_method"))
    if method == FP8:
        rows, columns = fields.get("weight_block_size") or (0, 0)
        if not rows or not columns:
            return "only weights with scales by blocks are read"
        return Packing(FP8, 8, 0, is_ordered=False, added_to_zeros=0, block=(rows, columns))
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
    return Packing(method, bits, group_size, bool(fields.get("desc_act")), added_to_zeros=int(is_first))


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
