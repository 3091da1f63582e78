"""The same products, whichever way they are computed."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from chainserve.models import linear as linear_module
from chainserve.models.linear import (
    HAS_ONEDNN,
    PackedLinear,
    SharedLinear,
    computes_bfloat16,
    default_dtype,
    pack,
    speed_up,
)

pytestmark = pytest.mark.skipif(not HAS_ONEDNN, reason="torch has no oneDNN on this processor")
HAS_BFLOAT16 = pytest.mark.skipif(not computes_bfloat16(), reason="this processor has no bfloat16")
DTYPES = [torch.float32, pytest.param(torch.bfloat16, marks=HAS_BFLOAT16)]
SHAPES = [(1, 1), (1, 2), (1, 3), (1, 4), (2, 2), (5,), (1, 6), (7,), (2, 4), (1, 9), (16,), (17,), (1, 300)]


@pytest.fixture(autouse=True)
def small_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_module, "SMALL", 24 * 41)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_weights_give_the_same_product(shape: tuple[int, ...], dtype: torch.dtype, *, bias: bool) -> None:
    check_same(pack, PackedLinear, shape, dtype, bias=bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_shared_weights_give_the_same_product(shape: tuple[int, ...], dtype: torch.dtype, *, bias: bool) -> None:
    check_same(speed_up, SharedLinear, shape, dtype, bias=bias)


def check_same(
    way: Callable[[nn.Module], None], made: type[nn.Module], shape: tuple[int, ...], dtype: torch.dtype, *, bias: bool
) -> None:
    linear = nn.Linear(24, 41, bias=bias, dtype=dtype).requires_grad_(False)
    inputs = torch.randn(*shape, 24, dtype=dtype)
    expected = linear(inputs)
    way(nn.ModuleList([linear]))
    assert type(linear) is made
    outputs = linear(inputs)
    assert outputs.shape == expected.shape
    assert outputs.is_contiguous()
    torch.testing.assert_close(outputs, expected)


@pytest.mark.parametrize(
    ("way", "dtype"),
    [(pack, torch.float32), *(pytest.param(way, torch.bfloat16, marks=HAS_BFLOAT16) for way in (pack, speed_up))],
)
@pytest.mark.parametrize("shape", [(576, 192), (576, 3072), (1536, 576), (1025, 64), (1056, 64), (4096, 128)])
def test_a_row_gives_the_same_whatever_rows_are_beside_it(
    shape: tuple[int, int], way: Callable[[nn.Module], None], dtype: torch.dtype
) -> None:
    """Where sums cancel out, another order of adding up shows, though in 16 bits it mostly does not elsewhere."""
    num_columns, num_sums = shape
    linear = nn.Linear(*shape, bias=False, dtype=dtype).requires_grad_(False)
    order, even = torch.randperm(num_columns), num_columns // 2 * 2
    linear.weight[:, order[: even // 2]] = -linear.weight[:, order[even // 2 : even]]
    inputs = torch.randn(300, num_columns, dtype=dtype)
    inputs[:, order[: even // 2]] = inputs[:, order[even // 2 : even]]
    inputs[:, order[even:]] = 0
    way(linear)
    outputs = linear(inputs)
    assert outputs.abs().max() < 1e-3
    assert outputs.count_nonzero() > 200 * num_sums
    assert all(torch.equal(linear(inputs[:num_rows]), outputs[:num_rows]) for num_rows in (1, 2, 3, 5, 8, 16, 17, 64))


def test_what_is_packed_keeps_its_parameters() -> None:
    linear = nn.Linear(24, 41).requires_grad_(False)
    weight = linear.weight.clone()
    pack(linear)
    assert [(name, part.shape, part.dtype) for name, part in linear.named_parameters()] == [
        ("weight", weight.shape, weight.dtype),
        ("bias", (41,), weight.dtype),
    ]
    assert torch.equal(linear.weight.to_dense(), weight)
    again = linear.weight
    pack(linear)
    assert linear.weight is again


@pytest.mark.parametrize("way", [pack, speed_up])
def test_other_layers_stay_as_they_are(way: Callable[[nn.Module], None]) -> None:
    class Odd(nn.Linear):
        pass

    layers = nn.ModuleList(
        [
            Odd(24, 41),
            nn.Linear(24, 40),
            nn.Linear(24, 41, dtype=torch.float16),
            nn.Linear(24, 41, device="meta"),
        ]
    )
    before = [type(layer) for layer in layers]
    way(layers)
    assert [type(layer) for layer in layers] == before


@pytest.mark.parametrize(
    ("device", "instructions", "dtype"),
    [
        ("cpu", {"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ("cpu", {"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ("cpu", {"avx512_f": True, "avx512_bf16": False}, torch.float32),
        ("cuda", {}, torch.bfloat16),
        ("mps", {}, torch.bfloat16),
    ],
)
def test_a_device_computes_in_what_it_has_instructions_for(
    device: str, instructions: dict[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    assert default_dtype(torch.device(device)) == dtype
