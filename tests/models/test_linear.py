"""The same products, whichever way they are computed."""

import pytest
import torch
from torch import nn

from chainserve.models import linear as linear_module
from chainserve.models.linear import HAS_ONEDNN, FewRowsLinear, LargeLinear, speed_up


@pytest.mark.parametrize(
    "is_large",
    [
        False,
        pytest.param(True, marks=pytest.mark.skipif(not HAS_ONEDNN, reason="torch has no oneDNN on this processor")),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 2), (1, 3), (1, 4), (2, 2), (5,), (1, 6), (7,), (2, 4), (1, 9), (16,), (17,), (1, 300)]
)
def test_a_product_is_the_same_either_way(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, *, bias: bool, is_large: bool
) -> None:
    monkeypatch.setattr(linear_module, "PAIRED", 0)
    monkeypatch.setattr(linear_module, "LARGE", 24 * 41 if is_large else 24 * 41 + 1)
    linear = nn.Linear(24, 41, bias=bias).requires_grad_(False)
    inputs = torch.randn(*shape, 24)
    expected = linear(inputs)
    speed_up(nn.ModuleList([linear]))
    assert type(linear) is (LargeLinear if is_large else FewRowsLinear)
    outputs = linear(inputs)
    assert outputs.shape == expected.shape
    assert outputs.is_contiguous()
    torch.testing.assert_close(outputs, expected)


def test_other_layers_stay_as_they_are() -> None:
    class Odd(nn.Linear):
        pass

    layers = nn.ModuleList([Odd(2, 2), nn.Linear(2, 2, dtype=torch.bfloat16), nn.Linear(2, 2, device="meta")])
    before = [type(layer) for layer in layers]
    speed_up(layers)
    assert [type(layer) for layer in layers] == before
