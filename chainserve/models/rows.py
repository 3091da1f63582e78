"""A batch of single tokens as a table on the device, for forwards that are captured once and replayed.

A CUDA graph replays the same kernels on the same tensors. What changes from step to step is in the table: for each
row, which is one token, its position and where the keys and values of its sequence are. Tokens of one sequence may be
several rows: all of them are stored before any is attended to.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

POSITION, ADDRESSES = 0, 2
"""Lines of a table (2 + 2 * blocks, rows) of int64: position, tokens that the sequence has room for, and from the third
on, block by block, the addresses of its keys and of its values, each (kv_heads, room, dim). A row whose addresses are 0
is not there."""


def table_of(positions: Sequence[int], rooms: Sequence[int], addresses: Sequence[Tensor]) -> Tensor:
    """The table, on the CPU, of rows at `positions` of sequences with `addresses` (2 * blocks,) each."""
    table = torch.empty(ADDRESSES + len(addresses[0]), len(positions), dtype=torch.int64)
    table[:ADDRESSES] = torch.tensor((positions, rooms))
    torch.stack(tuple(addresses), dim=1, out=table[ADDRESSES:])
    return table


@dataclass(frozen=True, slots=True)
class Rows:
    """Keys, or values, (1, kv_heads, rows, dim) of new tokens, and where those of their sequences are."""

    new: Tensor
    table: Tensor
    block: int  # within the table


class RowCache:
    """What the blocks see as their cache in a forward over a table."""

    def __init__(self, table: Tensor, *, first_block: int) -> None:
        self._table = table
        self._first_block = first_block

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_args: object, **_kwargs: object
    ) -> tuple[Rows, Rows]:
        """What `row_attention` stores and attends to."""
        block = layer_idx - self._first_block
        return Rows(keys, self._table, block), Rows(values, self._table, block)

    def get_seq_length(self, _layer_idx: int = 0) -> int:
        """As `PackedCache` says."""
        return 0
