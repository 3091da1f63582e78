"""Attention over packed sequences, in the place transformers gives to attention implementations.

A batch is packed: queries of all sequences stand one after another, (1, heads, total, dim), without padding. Keys and
values come from `PackedCache.update` as one view per sequence, so that no sequence sees another and nothing is
copied. No mask reaches us: transformers builds none for an implementation that registers no mask function. What
a sequence may see follows from positions alone: new tokens are the last ones, and a window drops old keys.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from chainserve.models.linear import computes_bfloat16
from chainserve.models.rows import Rows

ATTENTION = "chainserve"
"""Name under which transformers finds `packed_attention`."""

HAS_BFLOAT16 = computes_bfloat16()
TILE_SCORES = 2**20
"""Scores of one tile: what is made of them stays in a processor's cache."""
LEAST_TILE = 16

ATTENTION_ARGUMENTS = frozenset({"scaling", "sliding_window", "softcap", "s_aux"})
"""What families pass to attention that changes its result, and that we compute."""


class Masks:
    """What the chunks of a forward may see, made once for blocks in a row that have the same window.

    Those of another window are dropped first, so that blocks of two kinds take no more memory than one kind alone.
    """

    def __init__(self) -> None:
        self._window: int | None = None
        self._made: dict[tuple[int, ...], Tensor] = {}

    def visible(self, num_new: int, length: int, *, window: int | None, device: torch.device) -> Tensor:
        """Which of `length` keys each of the last `num_new` positions sees: bool (num_new, length)."""

        def make() -> Tensor:
            keys = torch.arange(length, device=device)
            queries = keys[length - num_new :, None]
            visible = keys <= queries
            return visible if window is None else visible & (keys > queries - window)

        return self._get((num_new, length), window, make)

    def added(self, num_groups: int, num_new: int, length: int, *, window: int | None, like: Tensor) -> Tensor:
        """The same as numbers to add to scores, 0 or -inf, for `num_groups` heads: (num_groups * num_new, length)."""

        def make() -> Tensor:
            past, hidden = length - num_new, float("-inf")
            mask = like.new_full((num_groups, num_new, length), hidden).triu_(past + 1)
            if window is not None:
                mask.add_(like.new_full((num_new, length), hidden).tril_(past - window))
            return mask.view(num_groups * num_new, length)

        return self._get((num_groups, num_new, length), window, make)

    def _get(self, shape: tuple[int, ...], window: int | None, make: Callable[[], Tensor]) -> Tensor:
        if window != self._window:
            self._window = window
            self._made.clear()
        if shape not in self._made:
            self._made[shape] = make()
        return self._made[shape]


@dataclass(frozen=True, slots=True)
class Ragged:
    """Keys, or values, of each sequence of a packed batch.

    Each part is (1, kv_heads, length, dim): all the sequence has cached, its `num_new` new tokens last.
    """

    parts: Sequence[Tensor]
    num_new: list[int]
    masks: Masks = field(default_factory=Masks)


def split_packed(packed: Tensor, num_new: list[int]) -> Sequence[Tensor]:
    """Views (1, heads, num_new[i], dim) of the sequences in (1, heads, total, dim)."""
    return (packed,) if len(num_new) == 1 else packed.split_with_sizes(num_new, dim=2)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Ragged | Rows,
    value: Ragged | Rows,
    attention_mask: None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Causal attention of queries (1, heads, total, dim) to their own sequences: (1, total, heads, value dim).

    `sliding_window` counts the keys a query sees, itself included; `softcap` bounds the scores (Gemma 2); `s_aux`
    (heads,) are scores of a sink that takes weight and gives nothing (gpt-oss).
    """
    if isinstance(key, Rows):
        assert isinstance(value, Rows)
        from chainserve.models.row_kernels import row_attention  # needs Triton, which only devices that run it have

        return row_attention(
            query, key, value, scaling=scaling, window=sliding_window, softcap=softcap, sinks=s_aux
        ), None
    assert isinstance(value, Ragged)
    if max(key.num_new) == 1 and softcap is None and s_aux is None:
        return _decode(query, key.parts, value.parts, scaling=scaling, window=sliding_window), None
    outputs = []
    for q, k, v in zip(split_packed(query, key.num_new), key.parts, value.parts, strict=True):
        num_new, length = q.shape[2], k.shape[2]
        if sliding_window is not None and (unseen := length - num_new - sliding_window + 1) > 0:
            k, v = k[:, :, unseen:], v[:, :, unseen:]
        if softcap is not None or s_aux is not None:
            out = _plain(q, k, v, key.masks, scaling=scaling, window=sliding_window, softcap=softcap, sinks=s_aux)
        elif num_new == 1:
            out = _decode(q, [k], [v], scaling=scaling, window=None)
        else:
            out = _fused(q, k, v, key.masks, scaling=scaling, window=sliding_window)
        outputs.append(out)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), None


def _decode(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], *, scaling: float | None, window: int | None
) -> Tensor:
    """Attention of one token per sequence by torch's kernel: (1, sequences, heads, value dim).

    Heads that share keys become queries of one head, so that keys are neither repeated nor masked.
    """
    num_heads, num_sequences, dim = query.shape[1:]
    num_kv_heads = keys[0].shape[1]
    grouped = query.transpose(1, 2).reshape(num_sequences, num_kv_heads, num_heads // num_kv_heads, dim)
    if window is not None:
        keys, values = [k[:, :, -window:] for k in keys], [v[:, :, -window:] for v in values]
    outputs = [
        scaled_dot_product_attention(q, k, v, scale=scaling)
        for q, k, v in zip(grouped.split(1), keys, values, strict=True)
    ]
    out = outputs[0] if num_sequences == 1 else torch.cat(outputs)
    return out.reshape(1, num_sequences, num_heads, -1)


def _fused(q: Tensor, k: Tensor, v: Tensor, masks: Masks, *, scaling: float | None, window: int | None) -> Tensor:
    """Attention of one sequence by torch's kernel: (1, num_new, heads, value dim)."""
    num_heads, num_new = q.shape[1:3]
    num_kv_heads, length = k.shape[1:3]
    num_groups = num_heads // num_kv_heads
    sees_all = window is None or window >= length
    causal = num_new == length and sees_all
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and sees_all and HAS_BFLOAT16:
        return _in_tiles(q, k, v, masks, scaling=scaling)
    if q.device.type == "cpu" and not causal and sees_all and k.shape[3] == v.shape[3]:
        out = _in_two(q, k, v, scaling=scaling)
    elif q.device.type == "cpu" and not causal:  # as in `_decode`; the more queries of a head, the better the kernel is
        grouped = q.reshape(1, num_kv_heads, num_groups * num_new, -1)
        mask = masks.added(num_groups, num_new, length, window=window, like=q)
        out = scaled_dot_product_attention(grouped, k, v, mask, scale=scaling).reshape(1, num_heads, num_new, -1)
    else:
        seen = None if causal else masks.visible(num_new, length, window=window, device=q.device)
        shared = num_groups != 1
        out = scaled_dot_product_attention(q, k, v, seen, is_causal=causal, scale=scaling, enable_gqa=shared)
    return out.transpose(1, 2).contiguous()


def _in_tiles(q: Tensor, k: Tensor, v: Tensor, masks: Masks, *, scaling: float | None) -> Tensor:
    """The same in bfloat16, some queries at a time, by products that some CPUs have instructions for: torch's kernel
    takes twice as long. Scores are rounded to 16 bits, as in transformers' own attention."""
    num_heads, num_new, dim = q.shape[1:]
    num_kv_heads, length = k.shape[1:3]
    past = length - num_new
    grouped = (q * (dim**-0.5 if scaling is None else scaling)).view(num_kv_heads, -1, num_new, dim)
    out = q.new_empty(1, num_new, num_heads, v.shape[3])
    size = max(LEAST_TILE, TILE_SCORES // (num_heads * length))
    for start in range(0, num_new, size):
        end = min(start + size, num_new)
        keys, values = k[0, :, : past + end], v[0, :, : past + end]
        scores = torch.bmm(grouped[:, :, start:end].reshape(num_kv_heads, -1, dim), keys.mT)
        new = scores.view(num_heads, end - start, -1)[:, :, past + start :]
        new += masks.added(1, end - start, end - start, window=None, like=q)
        given = torch.bmm(torch.softmax(scores, dim=-1), values)
        out[0, start:end] = given.view(num_heads, end - start, -1).transpose(0, 1)
    return out


def _in_two(q: Tensor, k: Tensor, v: Tensor, *, scaling: float | None) -> Tensor:
    """The same on the CPU, what was cached before and what is new each by itself, neither of which needs a mask.

    Each part's scores sum up to exp(lse), which is its weight.
    """
    num_heads, num_new, dim = q.shape[1:]
    num_kv_heads, past = k.shape[1], k.shape[2] - num_new
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    before, before_lse = attend(q.reshape(1, num_kv_heads, -1, dim), k[:, :, :past], v[:, :, :past], scale=scaling)
    new, new_lse = attend(q, k[:, :, past:], v[:, :, past:], is_causal=True, scale=scaling)  # shares keys by itself
    share = torch.sigmoid(before_lse.reshape(1, num_heads, num_new, 1) - new_lse.unsqueeze(-1))
    return torch.lerp(new.float(), before.reshape_as(new).float(), share).to(q.dtype)


def _plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    masks: Masks,
    *,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention of one sequence spelled out, for what torch's kernel cannot do: (1, num_new, heads, value dim)."""
    num_heads, num_new, dim = q.shape[1:]
    num_kv_heads, length = k.shape[1:3]
    grouped = q.reshape(num_kv_heads, -1, dim) * (dim**-0.5 if scaling is None else scaling)
    scores = (grouped @ k[0].mT).view(num_heads, num_new, length)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if num_new > 1:
        hidden = ~masks.visible(num_new, length, window=window, device=q.device)
        scores = scores.masked_fill(hidden, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype).view(-1, 1, 1).expand(-1, num_new, 1)], dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.float32)[..., :length].to(v.dtype)
    out = weights.view(num_kv_heads, -1, length) @ v[0]
    return out.view(1, num_heads, num_new, -1).transpose(1, 2).contiguous()


AttentionInterface.register(ATTENTION, packed_attention)
