"""Embedding and head on the client's side, and tensors on the wire."""

import warnings

import pytest
import torch
from tiny_models import FAMILIES, A, TinyChain, filled, random_ids, random_model
from transformers import CohereConfig, PretrainedConfig

from chainserve.errors import FrameError
from chainserve.models.ends import Ends
from chainserve.models.skeleton import build_skeleton
from chainserve.models.wire import from_wire, to_wire
from chainserve.protocol.messages import WireTensor

SCALED_LOGITS = CohereConfig(**{**FAMILIES["llama"].to_dict(), "model_type": "cohere"}, logit_scale=0.125)
CPU = torch.device("cpu")


@pytest.mark.parametrize("config", [*FAMILIES.values(), SCALED_LOGITS], ids=lambda config: config.model_type)
def test_ends_around_remote_blocks_give_the_logits_of_the_whole_model(config: PretrainedConfig) -> None:
    model = random_model(config)
    ends = Ends(filled(build_skeleton(config, None, embed=True, head=True), model))
    chain = TinyChain(model)
    chain.open(A)
    ids = random_ids(11, seed=1)
    (outputs,) = chain.run((A, 0, ends.embed(ids)))
    expected = model(ids.unsqueeze(0)).logits[0]
    assert (ends.logits(outputs) - expected).abs().max() <= 1e-4
    assert (ends.logits(outputs[-1:]) - expected[-1:]).abs().max() <= 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 8), (0, 8), (1, 1)])
def test_tensors_survive_the_wire(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    tensor = torch.randn(shape).to(dtype)
    wire = to_wire(tensor)
    assert len(wire.data) == tensor.numel() * dtype.itemsize
    received = WireTensor(wire.dtype, wire.shape, bytes(wire.data))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(from_wire(received, dtype=dtype, device=CPU), tensor)


def test_views_travel_as_what_they_show() -> None:
    tensor = torch.arange(12.0).view(3, 4).T
    received = from_wire(to_wire(tensor), dtype=torch.float32, device=CPU)
    assert torch.equal(received, tensor)


def test_received_tensors_take_the_dtype_asked_for() -> None:
    wire = to_wire(torch.ones(2, 3, dtype=torch.bfloat16))
    assert from_wire(wire, dtype=torch.float32, device=CPU).dtype == torch.float32


@pytest.mark.parametrize(
    "wire",
    [
        WireTensor("float32", (2, 2), bytes(15)),
        WireTensor("float32", (2, 2), bytes(17)),
        WireTensor("bfloat16", (2, 2), b""),
        WireTensor("float64", (1, 1), bytes(8)),
        WireTensor("float32", (-1, -1), bytes(4)),
    ],
)
def test_bytes_that_do_not_fit_their_shape_are_refused(wire: WireTensor) -> None:
    with pytest.raises(FrameError):
        from_wire(wire, dtype=torch.float32, device=CPU)


def test_only_types_that_travel_are_sent() -> None:
    with pytest.raises(ValueError, match="not as float64"):
        to_wire(torch.ones(1, 1, dtype=torch.float64))
