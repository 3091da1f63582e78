"""The same products, whichever way they are computed."""

import pytest
import torch
from torch import nn

from chainserve.models.few_rows import FewRowsLinear, speed_up_few_rows


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 3), (1, 4), (2, 2), (1, 5), (3,)])
def test_a_product_is_the_same_either_way(shape: tuple[int, ...], *, bias: bool) -> None:
    linear = nn.Linear(24, 40, bias=bias).requires_grad_(False)
    inputs = torch.randn(*shape, 24)
    expected = linear(inputs)
    speed_up_few_rows(nn.ModuleList([linear]))
    assert isinstance(linear, FewRowsLinear)
    outputs = linear(inputs)
    assert outputs.shape == expected.shape
    assert outputs.is_contiguous()
    torch.testing.assert_close(outputs, expected)


def test_other_layers_stay_as_they_are() -> None:
    class Odd(nn.Linear):
        pass

    layers = nn.ModuleList([Odd(2, 2), nn.Linear(2, 2, dtype=torch.bfloat16), nn.Linear(2, 2, device="meta")])
    before = [type(layer) for layer in layers]
    speed_up_few_rows(layers)
    assert [type(layer) for layer in layers] == before
