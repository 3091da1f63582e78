"""Embedding and head, both as a client has them or each on its server, and tensors on the wire."""

import warnings

import pytest
import torch
from tiny_models import FAMILIES, HIDDEN, A, TinyChain, filled, random_ids, random_model
from transformers import CohereConfig, GraniteConfig, PretrainedConfig, PreTrainedModel

from chainserve.errors import FrameError
from chainserve.models import linear
from chainserve.models.ends import End, Ends, end_skeleton, ends_of
from chainserve.models.linear import default_dtype
from chainserve.models.skeleton import build_skeleton
from chainserve.models.wire import from_wire, to_wire
from chainserve.protocol.messages import WireTensor
from chainserve.types import Span

SCALED_LOGITS = CohereConfig(**{**FAMILIES["llama"].to_dict(), "model_type": "cohere"}, logit_scale=0.125)
DIVIDED_LOGITS = GraniteConfig(**{**FAMILIES["llama"].to_dict(), "model_type": "granite"}, logits_scaling=8.0)
CPU = torch.device("cpu")


def end_of(model: PreTrainedModel, end: End) -> Ends:
    return Ends(filled(end_skeleton(model.config, end), model))


@pytest.mark.parametrize(
    "config", [*FAMILIES.values(), SCALED_LOGITS, DIVIDED_LOGITS], ids=lambda config: config.model_type
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ends_on_two_servers_do_what_the_family_does(config: PretrainedConfig, dtype: torch.dtype) -> None:
    model = random_model(config).to(dtype)
    hidden, ids = torch.randn(20, HIDDEN).to(dtype), random_ids(7, seed=1)
    model.base_model.layers = torch.nn.ModuleList()
    assert torch.equal(end_of(model, End.EMBEDDING).embed(ids), model.get_input_embeddings()(ids))
    expected = model(inputs_embeds=hidden.unsqueeze(0), use_cache=False).logits[0]
    assert torch.equal(end_of(model, End.HEAD).logits(hidden), expected)


@pytest.mark.parametrize(
    ("config", "is_plain"),
    [
        *((config, not getattr(config, "final_logit_softcapping", None)) for config in FAMILIES.values()),
        (SCALED_LOGITS, False),
        (DIVIDED_LOGITS, False),
        (GraniteConfig(**{**FAMILIES["llama"].to_dict(), "model_type": "granite"}, logits_scaling=1.0), True),
    ],
    ids=lambda value: getattr(value, "model_type", str(value)),
)
def test_norm_and_head_run_alone_where_the_family_does_no_more(config: PretrainedConfig, is_plain: bool) -> None:
    ends = end_of(random_model(config), End.HEAD)
    assert ends._head is not None
    whole = ends._head._model
    calls = []
    whole.register_forward_pre_hook(lambda *_: calls.append(1))
    ends.logits(torch.randn(2, HIDDEN))
    assert bool(calls) == (not is_plain)


def test_ends_that_are_in_use_are_joined_to_others_without_a_touch() -> None:
    model = random_model(SCALED_LOGITS)
    head, embedding = end_of(model, End.HEAD), end_of(model, End.EMBEDDING)
    whole = head.models[0]
    whole.register_forward_pre_hook(lambda *_: pytest.fail("its own forward ran, with who knows what for a head"))
    both = Ends.joined([head, embedding])
    assert (both.has_embedding, both.has_head, len(both.models)) == (True, True, 2)
    assert both._head is head._head
    assert not Ends.joined([embedding]).has_head


@pytest.mark.parametrize(
    ("span", "ends"),
    [(Span(0, 2), [End.EMBEDDING]), (Span(1, 5), []), (Span(5, 6), [End.HEAD]), (Span(0, 6), [*End])],
)
def test_ends_come_with_the_first_and_the_last_block(span: Span, ends: list[End]) -> None:
    assert ends_of(span, 6) == ends


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("first", End)
def test_what_tied_ends_share_is_one_tensor(first: End, tied: bool) -> None:
    config = type(FAMILIES["llama"])(**{**FAMILIES["llama"].to_dict(), "tie_word_embeddings": tied})
    loaded = end_of(random_model(config), first)
    [second] = set(End) - {first}
    other = end_skeleton(config, second, beside=[loaded])
    weights = {weight.data_ptr() for model in loaded.models for weight in model.parameters()}
    shared = [weight for weight in other.parameters() if not weight.is_meta]
    assert len(shared) == tied
    assert all(weight.data_ptr() in weights for weight in shared)


@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="only oneDNN packs heads, and this torch is without"
)
@pytest.mark.parametrize("dtype", [torch.float32, default_dtype(CPU)])
def test_a_tied_head_by_itself_is_packed_and_its_weights_come_out_as_they_were(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "SMALL", 0)
    monkeypatch.setattr(linear, "HAS_ONEDNN", True)
    config = type(FAMILIES["llama"])(**{**FAMILIES["llama"].to_dict(), "tie_word_embeddings": True})
    model = random_model(config).to(dtype)
    hidden, ids, project = torch.randn(20, HIDDEN).to(dtype), random_ids(7, seed=1), model.get_output_embeddings()
    weights, expected = project.weight, project(hidden)
    alone = end_of(model, End.HEAD)
    embedding = Ends(end_skeleton(config, End.EMBEDDING, beside=[alone]))
    assert (alone.is_packed, end_of(random_model(config), End.EMBEDDING).is_packed) == (True, False)
    assert torch.equal(embedding.embed(ids), weights[ids])
    assert alone._head is not None
    torch.testing.assert_close(alone._head._project(hidden), expected)


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
