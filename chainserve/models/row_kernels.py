"""Attention of a few tokens, each to its own sequence, by kernels that a CUDA graph can replay.

What changes from step to step they read from a table (`rows.py`). They are written in Triton, which comes with torch's
builds for CUDA.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from chainserve.models.rows import Rows

TILE = 32
"""Positions that a kernel reads at once."""
MOST_SPLITS = 16
"""Parts of a sequence that are read side by side, where there are too few rows to keep the device busy."""


def row_attention(
    query: Tensor,
    keys: Rows,
    values: Rows,
    *,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Store the new keys and values, and let queries (1, heads, rows, dim) attend: (1, rows, heads, value dim)."""
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    out: Tensor = attend_rows(
        query, keys.new, values.new, keys.table, keys.block, scale, window or 0, softcap or 0.0, sinks
    )
    return out


@torch.library.custom_op("chainserve::attend_rows", mutates_args=())
def attend_rows(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    block: int,
    scale: float,
    window: int,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    """What `row_attention` does, as one operator that a compiler leaves alone; 0 is no window and no cap."""
    num_heads, num_rows, key_dim = query.shape[1:]
    num_kv_heads, value_dim = keys.shape[1], values.shape[3]
    query, keys, values = (each if each.stride(3) == 1 else each.contiguous() for each in (query, keys, values))
    dims = {
        "KEY_DIM": key_dim,
        "KEY_PAD": triton.next_power_of_2(max(16, key_dim)),
        "VALUE_DIM": value_dim,
        "VALUE_PAD": triton.next_power_of_2(max(16, value_dim)),
    }
    _store[(num_rows, num_kv_heads)](
        keys, values, table, block, num_rows, keys.stride(1), keys.stride(2), values.stride(1), values.stride(2), **dims
    )
    splits = _num_splits(num_rows * num_kv_heads, query.device)
    out = query.new_empty(1, num_rows, num_heads, value_dim)
    sums = query.new_empty(splits, num_rows, num_heads, value_dim, dtype=torch.float32)
    weights = query.new_empty(2, splits, num_rows, num_heads, dtype=torch.float32)
    group = num_heads // num_kv_heads
    _attend[(num_rows, num_kv_heads, splits)](
        query,
        sums,
        weights,
        table,
        block,
        num_rows,
        query.stride(1),
        query.stride(2),
        scale,
        window,
        softcap,
        GROUP=group,
        GROUP_PAD=triton.next_power_of_2(max(16, group)),
        TILE=TILE,
        HAS_WINDOW=window > 0,
        HAS_CAP=softcap > 0,
        **dims,
    )
    _combine[(num_rows, num_heads)](
        sums,
        weights,
        out if sinks is None else sinks,
        out,
        SPLITS=splits,
        VALUE_DIM=value_dim,
        VALUE_PAD=dims["VALUE_PAD"],
        HAS_SINKS=sinks is not None,
    )
    return out


@attend_rows.register_fake
def _(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    block: int,
    scale: float,
    window: int,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    return query.new_empty(1, query.shape[2], query.shape[1], values.shape[3])


def _num_splits(num_programs: int, device: torch.device) -> int:
    """A power of two, so that there are about two programs for each multiprocessor."""
    wanted = 2 * _num_multiprocessors(device) // num_programs
    return min(MOST_SPLITS, 1 << max(0, wanted.bit_length() - 1))


@cache
def _num_multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":  # the interpreter of the tests
        return 4
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@triton.jit
def _store(
    keys,
    values,
    table,
    block,
    num_rows,
    key_head_stride,
    key_row_stride,
    value_head_stride,
    value_row_stride,
    KEY_DIM: tl.constexpr,
    KEY_PAD: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_PAD: tl.constexpr,
):
    """Write the key and value of one row and head to their place."""
    row, head = tl.program_id(0), tl.program_id(1)
    line = table + row
    place = head * tl.load(line + num_rows) + tl.load(line)
    key_address = tl.load(line + (2 + 2 * block) * num_rows)
    value_address = tl.load(line + (3 + 2 * block) * num_rows)
    if key_address != 0:
        dims = tl.arange(0, KEY_PAD)
        new = tl.load(keys + head * key_head_stride + row * key_row_stride + dims, mask=dims < KEY_DIM)
        into = key_address.to(tl.pointer_type(keys.dtype.element_ty)) + place * KEY_DIM
        tl.store(into + dims, new, mask=dims < KEY_DIM)
        dims = tl.arange(0, VALUE_PAD)
        new = tl.load(values + head * value_head_stride + row * value_row_stride + dims, mask=dims < VALUE_DIM)
        into = value_address.to(tl.pointer_type(values.dtype.element_ty)) + place * VALUE_DIM
        tl.store(into + dims, new, mask=dims < VALUE_DIM)


@triton.jit
def _attend(
    query,
    sums,
    weights,
    table,
    block,
    num_rows,
    head_stride,
    row_stride,
    scale,
    window,
    softcap,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    KEY_DIM: tl.constexpr,
    KEY_PAD: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    TILE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
):
    """One part of a row's sequence, for the heads that share keys: weighted sum, its greatest score, sum of weights.

    Sums are kept relative to the greatest score so far, as in FlashAttention (Dao et al. 2022).
    """
    row, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_kv_heads, splits = tl.num_programs(1), tl.num_programs(2)
    line = table + row
    room = tl.load(line + num_rows)
    key_address = tl.load(line + (2 + 2 * block) * num_rows)
    value_address = tl.load(line + (3 + 2 * block) * num_rows)
    length = tl.where(key_address != 0, tl.load(line) + 1, 0)
    first = length * 0
    if HAS_WINDOW:
        first = tl.maximum(length - window, 0)
    part = tl.cdiv(tl.cdiv(length - first, splits), TILE) * TILE
    begin = first + split * part
    end = tl.minimum(begin + part, length)

    members = tl.arange(0, GROUP_PAD)
    heads = kv_head * GROUP + members
    key_dims, value_dims = tl.arange(0, KEY_PAD), tl.arange(0, VALUE_PAD)
    q = tl.load(
        query + heads[:, None] * head_stride + row * row_stride + key_dims[None, :],
        mask=(members < GROUP)[:, None] & (key_dims < KEY_DIM)[None, :],
        other=0.0,
    )
    keys = key_address.to(tl.pointer_type(query.dtype.element_ty)) + kv_head * room * KEY_DIM
    values = value_address.to(tl.pointer_type(query.dtype.element_ty)) + kv_head * room * VALUE_DIM
    greatest = tl.full((GROUP_PAD,), -1e30, tl.float32)  # of no score at all, and yet a number
    total = tl.zeros((GROUP_PAD,), tl.float32)
    acc = tl.zeros((GROUP_PAD, VALUE_PAD), tl.float32)
    for at in range(begin, end, TILE):
        positions = at + tl.arange(0, TILE)
        seen = positions < end
        k = tl.load(
            keys + positions[None, :] * KEY_DIM + key_dims[:, None],
            mask=seen[None, :] & (key_dims < KEY_DIM)[:, None],
            other=0.0,
        )
        scores = tl.dot(q, k, input_precision="ieee") * scale
        if HAS_CAP:
            scores = softcap * (2 * tl.sigmoid(2 * scores / softcap) - 1)  # the hyperbolic tangent
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(greatest, tl.max(scores, 1))
        shrink = tl.exp(greatest - higher)
        p = tl.exp(scores - higher[:, None])
        v = tl.load(
            values + positions[:, None] * VALUE_DIM + value_dims[None, :],
            mask=seen[:, None] & (value_dims < VALUE_DIM)[None, :],
            other=0.0,
        )
        acc = acc * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        total = total * shrink + tl.sum(p, 1)
        greatest = higher
    at = (split * num_rows + row) * (num_kv_heads * GROUP) + heads
    tl.store(
        sums + at[:, None] * VALUE_DIM + value_dims[None, :],
        acc,
        mask=(members < GROUP)[:, None] & (value_dims < VALUE_DIM)[None, :],
    )
    tl.store(weights + at, greatest, mask=members < GROUP)
    tl.store(weights + splits * num_rows * num_kv_heads * GROUP + at, total, mask=members < GROUP)


@triton.jit
def _combine(
    sums,
    weights,
    sinks,
    out,
    SPLITS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):
    """Join the parts of one row and head. A row that is not there gives zeros."""
    row, head = tl.program_id(0), tl.program_id(1)
    num_rows, num_heads = tl.num_programs(0), tl.num_programs(1)
    parts = (tl.arange(0, SPLITS) * num_rows + row) * num_heads + head
    greatest = tl.load(weights + parts)
    totals = tl.load(weights + SPLITS * num_rows * num_heads + parts)
    highest = tl.max(greatest, 0)
    if HAS_SINKS:
        sink = tl.load(sinks + head).to(tl.float32)
        highest = tl.maximum(highest, sink)
    shrink = tl.exp(greatest - highest)
    total = tl.sum(totals * shrink, 0)
    if HAS_SINKS:
        total += tl.exp(sink - highest)
    total = tl.where(total > 0, total, 1.0)
    dims = tl.arange(0, VALUE_PAD)
    parts_of_sums = tl.load(
        sums + parts[:, None] * VALUE_DIM + dims[None, :], mask=(dims < VALUE_DIM)[None, :], other=0.0
    )
    joined = tl.sum(parts_of_sums * shrink[:, None], 0) / total
    tl.store(out + (row * num_heads + head) * VALUE_DIM + dims, joined.to(out.dtype.element_ty), mask=dims < VALUE_DIM)
