"""The same products, whichever way they are computed."""

import pytest
import torch
from torch import nn

from chainserve.models.onednn import IS_THERE, OneDnnLinear, use_onednn


@pytest.mark.skipif(not IS_THERE, reason="no oneDNN here")
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 7), (2, 8), (1, 300), (3,)])
def test_a_product_is_the_same_either_way(shape: tuple[int, ...], *, bias: bool, pack: bool) -> None:
    linear = nn.Linear(24, 41, bias=bias).requires_grad_(False)
    inputs = torch.randn(*shape, 24)
    expected = linear(inputs)
    for _ in range(2):  # what computes so already stays as it is
        use_onednn(nn.ModuleList([linear]), pack=pack)
        assert isinstance(linear, OneDnnLinear)
        outputs = linear(inputs)
        assert outputs.shape == expected.shape
        assert outputs.is_contiguous()
        torch.testing.assert_close(outputs, expected)


def test_what_others_read_stays_readable_unless_it_is_packed() -> None:
    linear = nn.Linear(24, 40).requires_grad_(False)
    weight = linear.weight
    use_onednn(linear, pack=False)
    assert linear.weight is weight


def test_other_layers_stay_as_they_are() -> None:
    class Odd(nn.Linear):
        pass

    layers = nn.ModuleList([Odd(2, 2), nn.Linear(2, 2, dtype=torch.bfloat16), nn.Linear(2, 2, device="meta")])
    before = [type(layer) for layer in layers]
    use_onednn(layers, pack=True)
    assert [type(layer) for layer in layers] == before
