"""Activations in 8 bits: how far off they may be, and what is no such message."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chainserve.errors import FrameError
from chainserve.models.wire import Int8Wire, from_wire, to_wire
from chainserve.protocol.messages import INT8, INT8_GROUP, WireTensor, row_bytes
from chainserve.protocol.session import rows_of

CPU = torch.device("cpu")


def back(wire: WireTensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return from_wire(wire, dtype=dtype, device=CPU)


@given(st.integers(1, 5), st.integers(1, 200), st.floats(1e-3, 1e3), st.integers(0, 100))
@settings(deadline=None)
def test_no_element_is_off_by_more_than_half_a_step_of_its_group(rows: int, width: int, size: float, seed: int) -> None:
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * size
    wire = Int8Wire()(values)
    assert len(wire.data) == rows * row_bytes(INT8, width)
    for first in range(0, width, INT8_GROUP):
        group = values[:, first : first + INT8_GROUP]
        off = (back(wire)[:, first : first + INT8_GROUP] - group).abs()
        assert (off <= group.abs().amax(dim=1, keepdim=True) / 254 * 1.001).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_takes_what_a_model_computes_with_and_says_how_far_off_it_is(dtype: torch.dtype) -> None:
    values = torch.randn(7, 576, generator=torch.Generator().manual_seed(1)).to(dtype)
    sending = Int8Wire()
    assert sending.error == 0
    arrived = back(sending(values))
    lost = (arrived - values.float()).square().mean().sqrt() / values.float().square().mean().sqrt()
    assert sending.error == pytest.approx(float(lost), rel=1e-4)
    assert 0.001 < sending.error < 0.01
    assert len(sending(values).data) < len(to_wire(values).data) * 0.54


def test_zeros_stay_zeros_and_what_is_no_number_arrives_as_none() -> None:
    sending = Int8Wire()
    assert not back(sending(torch.zeros(2, 70))).any()
    values = torch.ones(1, 128)
    values[0, 5] = float("inf")
    arrived = back(sending(values))
    assert not arrived[0, :64].isfinite().any()
    assert torch.equal(arrived[0, 64:], torch.ones(64))


def test_rows_can_be_cut_out() -> None:
    values = torch.randn(5, 100)
    wire = Int8Wire()(values)
    assert torch.equal(back(rows_of(wire, 1, 2)), back(wire)[1:3])


def test_bytes_that_do_not_fit_are_refused() -> None:
    assert back(WireTensor(INT8, (0, 3), b"")).shape == (0, 3)
    for shape, data in (((1, 3), b"123456"), ((2, 3), b"1234567"), ((3,), b"1234567"), ((-1, 3), b"")):
        with pytest.raises(FrameError):
            back(WireTensor(INT8, shape, data))
