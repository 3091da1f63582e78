"""Attention of a chunk in bfloat16, tile by tile, against the same in float32 in one piece."""

import pytest
import torch

from chainserve.models import attention
from chainserve.models.attention import Masks, Ragged, packed_attention

HEADS, KV_HEADS, DIM, VALUE_DIM = 6, 2, 32, 16


@pytest.fixture(autouse=True)
def _in_small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "HAS_BFLOAT16", True)
    monkeypatch.setattr(attention, "TILE_SCORES", 1)
    monkeypatch.setattr(attention, "LEAST_TILE", 8)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize(("past", "num_new"), [(0, 2), (0, 8), (0, 21), (5, 8), (70, 3), (70, 37)])
def test_tiles_give_what_one_piece_gives(
    monkeypatch: pytest.MonkeyPatch, past: int, num_new: int, scaling: float | None
) -> None:
    query = drawn(num_new, HEADS, DIM).transpose(0, 1).unsqueeze(0)  # as the lean forward has it
    keys, values = (drawn(1, KV_HEADS, past + num_new + 4, dim)[:, :, :-4] for dim in (DIM, VALUE_DIM))

    def attend(dtype: torch.dtype) -> torch.Tensor:
        ragged = [Ragged([each.to(dtype)], [num_new], Masks()) for each in (keys, values)]
        out, _ = packed_attention(torch.nn.Module(), query.to(dtype), *ragged, None, scaling=scaling)
        return out.float()

    whole = attend(torch.float32)
    monkeypatch.setattr(attention, "scaled_dot_product_attention", None)  # torch's kernel, which tiles do without
    tiles = attend(torch.bfloat16)
    assert tiles.shape == (1, num_new, HEADS, VALUE_DIM)
    torch.testing.assert_close(tiles, whole, rtol=0.02, atol=0.03)
