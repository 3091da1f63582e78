"""The same products, whichever library computes them."""

import pytest
import torch
from torch import nn

from chainserve.models.linear import FEW_ROWS, BlasLinear, speed_up


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 2), (1, FEW_ROWS - 1), (1, FEW_ROWS), (1, 300), (3,), (), (0,)])
def test_a_product_is_the_same_either_way(shape: tuple[int, ...], *, bias: bool) -> None:
    linear = nn.Linear(24, 41, bias=bias).requires_grad_(False)
    inputs = torch.randn(*shape, 24)
    expected = linear(inputs)
    speed_up(nn.ModuleList([linear]))
    assert type(linear) is BlasLinear
    with torch.inference_mode():
        outputs = linear(inputs)
    assert outputs.shape == expected.shape
    assert outputs.is_contiguous()
    torch.testing.assert_close(outputs, expected)


def test_rows_that_do_not_stand_one_after_another_are_taken_too() -> None:
    linear = nn.Linear(24, 41).requires_grad_(False)
    inputs = torch.randn(24, 7).t()
    expected = linear(inputs)
    speed_up(nn.ModuleList([linear]))
    torch.testing.assert_close(linear(inputs), expected)


def test_other_layers_stay_as_they_are() -> None:
    class Odd(nn.Linear):
        pass

    layers = nn.ModuleList([Odd(2, 2), nn.Linear(2, 2, dtype=torch.bfloat16), nn.Linear(2, 2, device="meta")])
    before = [type(layer) for layer in layers]
    speed_up(layers)
    assert [type(layer) for layer in layers] == before


def test_what_overflows_does_so_without_a_word() -> None:
    linear = nn.Linear(2, 2, bias=False).requires_grad_(False)
    inputs = torch.tensor([[torch.inf, -torch.inf], [1e38, torch.nan]])
    linear.weight.fill_(3.0)
    expected = linear(inputs)
    speed_up(nn.ModuleList([linear]))
    torch.testing.assert_close(linear(inputs), expected, equal_nan=True)
