"""Checkpoints by GPTQ, AWQ and FP8: their blocks against transformers' model with the same numbers written out."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_checkpoints import CPU, load, save, tiny_llama, tiny_mixtral
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from chainserve.errors import UnsupportedModelError, UsageError, WeightsError
from chainserve.models import quantize
from chainserve.models.cache import KVCache
from chainserve.models.checkpoint import open_folder
from chainserve.models.ends import Ends
from chainserve.models.int4 import Grouped, Int4Linear, kernel_group, reason_against, rounded
from chainserve.models.load import bytes_by_block
from chainserve.models.names import INT4
from chainserve.models.quantize import quantization_of, quantize_blocks, settle_quantized
from chainserve.models.resolve import resolve
from chainserve.models.runner import Runner
from chainserve.models.skeleton import build_skeleton
from chainserve.models.support import check_supported
from chainserve.protocol.messages import Step
from chainserve.types import SessionId, Span

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SPLITS = ([Span(0, 6)], [Span(0, 2), Span(2, 5), Span(5, 6)])
GROUP_SIZE = 32
NUM_NEW = 12
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)

Weights = dict[str, Tensor]


def words(values: Tensor, bits: int, columns: Sequence[int] | None = None) -> Tensor:
    """Integers (rows, n) as words of 32 bits (rows, n * bits / 32), those of `columns` from the lowest bits on."""
    per_word = 32 // bits
    by_word = values.long().unflatten(1, (-1, per_word))[..., list(columns or range(per_word))]
    summed = (by_word << (torch.arange(per_word) * bits)).sum(-1)
    return torch.where(summed >= 1 << 31, summed - (1 << 32), summed).int()


class Layer:
    """A random layer in integers, and what they stand for."""

    def __init__(
        self,
        weight: Tensor,
        generator: torch.Generator,
        *,
        bits: int = 4,
        shuffled: bool = False,
        zero: int | None = None,  # of all groups
    ) -> None:
        num_out, num_in = weight.shape
        self.bits, num_groups = bits, num_in // GROUP_SIZE
        self.values = torch.randint(1 << bits, weight.shape, generator=generator)
        self.zeros = torch.randint(1, 1 << bits, (num_groups, num_out), generator=generator)
        if zero is not None:
            self.zeros.fill_(zero)
        self.scales = (torch.rand(num_groups, num_out, generator=generator) * 0.6 / (1 << bits) + 0.01).half()
        self.group_of = torch.arange(num_in) // GROUP_SIZE
        if shuffled:
            self.group_of = self.group_of[torch.randperm(num_in, generator=generator)]
        by_column = (self.zeros.t()[:, self.group_of], self.scales.float().t()[:, self.group_of])
        self.dense = (self.values - by_column[0]) * by_column[1]

    def gptq(self, *, first_format: bool = True) -> Weights:
        return {
            "qweight": words(self.values, self.bits).t().contiguous(),
            "qzeros": words(self.zeros - int(first_format), self.bits),
            "scales": self.scales,
            "g_idx": self.group_of.int(),
        }

    def awq(self) -> Weights:
        return {
            "qweight": words(self.values.t().contiguous(), 4, AWQ_COLUMNS),
            "qzeros": words(self.zeros, 4, AWQ_COLUMNS),
            "scales": self.scales,
        }

    def compressed(self, *, is_symmetric: bool) -> Weights:
        groups = {"weight_g_idx": self.group_of.int()} if not is_symmetric else {}
        zeros = {"weight_zero_point": words(self.zeros, self.bits).t().contiguous()} if not is_symmetric else {}
        return {
            "weight_packed": words(self.values, self.bits),
            "weight_scale": self.scales.t().contiguous(),
            "weight_shape": torch.tensor(self.values.shape),
            **zeros,
            **groups,
        }


def by_rows(weight: Tensor, generator: torch.Generator, dtype: torch.dtype) -> tuple[Weights, Tensor]:
    stored = (torch.randn(weight.shape, generator=generator) * 40).clamp(-127, 127).to(dtype)
    scales = (torch.rand(len(weight), 1, generator=generator) * 0.004).bfloat16()
    return {"weight": stored, "weight_scale": scales}, stored.float() * scales.float()


def fp8(weight: Tensor, generator: torch.Generator) -> tuple[Weights, Tensor]:
    stored = (torch.randn(weight.shape, generator=generator) * 100).to(torch.float8_e4m3fn)
    rows, columns = (-(-size // 48) for size in weight.shape)
    scales = torch.rand(rows, columns, generator=generator) * 0.002
    spread = scales.repeat_interleave(48, 0).repeat_interleave(48, 1)[: weight.shape[0], : weight.shape[1]]
    return {"weight": stored, "weight_scale_inv": scales}, stored.float() * spread


def packed_by(way: str, weight: Tensor, generator: torch.Generator) -> tuple[Weights, Tensor]:
    """The tensors of a random weight of this shape, and the weight itself."""
    if way == "fp8":
        return fp8(weight, generator)
    if way == "float8 by rows, compressed":
        return by_rows(weight, generator, torch.float8_e4m3fn)
    if way == "int8 by rows, compressed":
        return by_rows(weight, generator, torch.int8)
    is_symmetric = way == "symmetric, compressed"
    layer = Layer(
        weight,
        generator,
        bits=8 if way == "gptq of 8 bits" else 4,
        shuffled=way in ("gptq by act order", "by act order, compressed"),
        zero=8 if is_symmetric else None,
    )
    if way == "awq":
        return layer.awq(), layer.dense
    if "compressed" in way:
        return layer.compressed(is_symmetric=is_symmetric), layer.dense
    return layer.gptq(first_format=way != "gptq of the second format"), layer.dense


def compressed_config(stored: str, **weights: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": stored,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP_SIZE, "desc_act": False},
    "gptq of the second format": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": GROUP_SIZE,
        "desc_act": False,
        "checkpoint_format": "gptq_v2",
    },
    "gptq by act order": {"quant_method": "gptq", "bits": 4, "group_size": GROUP_SIZE, "desc_act": True},
    "gptq of 8 bits": {"quant_method": "gptq", "bits": 8, "group_size": GROUP_SIZE},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP_SIZE, "zero_point": True, "version": "gemm"},
    "symmetric, compressed": compressed_config("pack-quantized", num_bits=4, group_size=GROUP_SIZE, symmetric=True),
    "by act order, compressed": compressed_config(
        "pack-quantized", num_bits=4, group_size=GROUP_SIZE, symmetric=False, actorder="group"
    ),
    "float8 by rows, compressed": compressed_config("float-quantized", num_bits=8, symmetric=True, strategy="channel"),
    "int8 by rows, compressed": compressed_config("int-quantized", num_bits=8, symmetric=True, strategy="channel"),
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [48, 48]},
}
KEPT = tuple(way for way in CONFIGS if way not in ("gptq of 8 bits", "fp8") and "by rows" not in way)
"""Ways of which the integers stay what they are."""


class Checkpoint:
    """A folder of a quantized model, and transformers' model with the same numbers written out."""

    def __init__(self, folder: Path, way: str, model: PreTrainedModel, *, plain: str = "no layer") -> None:
        self.way = way
        generator = torch.Generator().manual_seed(7)
        for parameter in model.parameters():  # large enough that tokens differ
            parameter.data.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.1, generator=generator)
        save(model, folder / "dense")
        tensors: Weights = {}
        dense: Weights = {}
        for name, weight in load_file(folder / "dense" / "model.safetensors").items():
            if "layers." not in name or weight.ndim != 2 or plain in name or ".gate.weight" in name:
                tensors[name] = dense[name] = weight
                continue
            parts, dense[name] = packed_by(way, weight, generator)
            tensors |= {f"{name.removesuffix('.weight')}.{part}": tensor for part, tensor in parts.items()}
        save_file(dense, folder / "dense" / "model.safetensors", metadata={"format": "pt"})
        self.folder = folder / "packed"
        self.folder.mkdir()
        save_file(tensors, self.folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((folder / "dense" / "config.json").read_text())
        (self.folder / "config.json").write_text(json.dumps(config | {"quantization_config": CONFIGS[way]}))
        self.whole = AutoModelForCausalLM.from_pretrained(folder / "dense", dtype=torch.float32).eval()


@pytest.fixture(scope="module", params=CONFIGS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(tmp_path_factory.mktemp("checkpoint"), request.param, tiny_llama())


def logits_of(folder: Path, spans: Sequence[Span], ids: Sequence[int]) -> Tensor:
    """Logits behind each token, over runners one after another as servers would be."""
    hidden = Ends(load(open_folder(folder), None, embed=True)[0]).embed(torch.tensor(ids))
    session = SessionId(bytes(16))
    for span in spans:
        source = open_folder(folder)
        settle_quantized(source.config, CPU)
        runner = Runner(load(source, span)[0], span, KVCache(span, budget_tokens=100))
        runner.cache.reserve(session, span, num_lanes=1, max_tokens=100)
        hidden = runner.forward(hidden, [Step(session, 0, 0, len(ids), len(ids))], span)
    return Ends(load(open_folder(folder), None, head=True)[0]).logits(hidden)


def assert_close(made: Tensor, expected: Tensor, *, apart: float) -> None:
    assert (made - expected).norm() <= apart * expected.norm()


@pytest.fixture
def no_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the device multiply none."""
    monkeypatch.setattr(quantize, "reason_against", lambda _device: "a GPU has no bfloat16")


def prompt(length: int) -> list[int]:
    return torch.randint(96, (length,), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.mark.parametrize("is_kept", [True, False])
def test_blocks_compute_what_the_same_numbers_written_out_do(
    checkpoint: Checkpoint, is_kept: bool, request: pytest.FixtureRequest
) -> None:
    """In integers as far as bfloat16 goes."""
    if not is_kept:
        request.getfixturevalue("no_integers")
    check_supported(open_folder(checkpoint.folder).config)
    for num_tokens, spans in zip((1, 20), SPLITS, strict=True):
        ids = prompt(num_tokens)
        with torch.no_grad():
            expected = checkpoint.whole(torch.tensor([ids])).logits[0]
        assert_close(logits_of(checkpoint.folder, spans, ids), expected, apart=0.06 if is_kept else 1e-4)


def test_integers_of_four_bits_stay_so_in_memory_and_others_become_plain(checkpoint: Checkpoint) -> None:
    way, source = checkpoint.way, open_folder(checkpoint.folder)
    settle_quantized(source.config, CPU)
    foretold = bytes_by_block(source.config, torch.float32)[2]
    part, report = load(source, Span(2, 3))
    kept = [module for module in part.modules() if isinstance(module, Int4Linear)]
    assert len(kept) == 7 * (way in KEPT)
    assert quantization_of(source.config) == (CONFIGS[way]["quant_method"] if kept else None)
    held = sum(tensor.nbytes for tensor in part.state_dict().values())
    held += sum(scales.nbytes for scales in (layer.scales_and_offsets for layer in kept))
    held += sum(layer.order.nbytes for layer in kept if layer.order is not None)
    assert held == foretold
    stored = load_file(source._folder / "model.safetensors")  # type: ignore[attr-defined]
    assert report.bytes_of_blocks == sum(tensor.nbytes for name, tensor in stored.items() if ".layers.2." in name)


@pytest.mark.parametrize("way", ["gptq", "awq", "fp8"])
def test_experts_are_written_out_and_the_rest_is_kept(tmp_path: Path, way: str) -> None:
    made = Checkpoint(tmp_path, way, tiny_mixtral(intermediate_size=64))
    ids = prompt(9)
    with torch.no_grad():
        expected = made.whole(torch.tensor([ids])).logits[0]
    assert_close(logits_of(made.folder, [Span(0, 2), Span(2, 3)], ids), expected, apart=0.06)


def test_layers_that_a_checkpoint_leaves_out_are_plain(tmp_path: Path) -> None:
    made = Checkpoint(tmp_path, "gptq", tiny_llama(), plain="layers.1.mlp.up_proj")
    part, _ = load(open_folder(made.folder), Span(0, 2))
    kinds = [type(block.mlp.up_proj) for block in part.model.layers[:2]]
    assert kinds == [Int4Linear, nn.Linear]
    ids = prompt(5)
    with torch.no_grad():
        expected = made.whole(torch.tensor([ids])).logits[0]
    assert_close(logits_of(made.folder, SPLITS[1], ids), expected, apart=0.06)


@pytest.mark.usefixtures("no_integers")
def test_where_a_device_multiplies_no_integers_they_are_written_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = Checkpoint(tmp_path, "gptq by act order", tiny_llama())
    source = open_folder(made.folder)
    settle_quantized(source.config, CPU)
    assert "weights quantized by gptq become plain numbers here: a GPU has no bfloat16" in caplog.text
    part, _ = load(source, Span(1, 2))
    expected = made.whole.state_dict()["model.layers.1.mlp.down_proj.weight"]
    torch.testing.assert_close(part.model.layers[1].mlp.down_proj.weight, expected)
    quantize_blocks(source.config, "int8", dtype=torch.float32, device=CPU)  # as any plain model's


def test_integers_are_not_quantized_again(tmp_path: Path) -> None:
    source = open_folder(Checkpoint(tmp_path, "awq", tiny_llama()).folder)
    with pytest.raises(UsageError, match=r"quantized already \(awq\): leave --quant out"):
        quantize_blocks(source.config, "int8", dtype=torch.float32, device=CPU)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"quant_method": "gptq", "bits": 3}, "weights of 3 bits are not read"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"+:x": {"bits": 8}}}, "its layers differ"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "gptq and gptq_v2 are read, not marlin"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "gemm are read, not gemv"),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "only weights with scales by blocks"),
        (compressed_config("nvfp4-pack-quantized", num_bits=4), "int-quantized, naive-quantized are read, not nvfp4"),
        (compressed_config("pack-quantized", num_bits=3, group_size=128), "weights of 3 bits in groups of 128 are not"),
        (
            compressed_config("pack-quantized", num_bits=4) | {"transform_config": {"u": 1}},
            "are transformed, or sparse",
        ),
        ({"quant_method": "compressed-tensors", "format": "dense", "config_groups": {}}, "its layers differ"),
    ],
)
def test_what_is_stored_in_another_way_is_refused(tmp_path: Path, fields: dict[str, Any], reason: str) -> None:
    folder = save(tiny_llama(), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": fields}))
    with pytest.raises(UnsupportedModelError, match=rf"quantized by {fields['quant_method']}, and.*{reason}.*--quant"):
        open_folder(folder)


def damaged(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Weights], None]:
    def damage(tensors: Weights) -> None:
        full = f"model.layers.1.mlp.up_proj.{name}"
        tensors[full] = change(tensors[full]).contiguous()

    return damage


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damaged("scales", lambda scales: scales[:-1]), "do not fit together"),
        (damaged("g_idx", lambda groups: groups + 1), "do not fit together"),
        (damaged("g_idx", lambda groups: groups * 0), "unlike sizes"),
        (damaged("g_idx", lambda groups: groups.flip(0)), "another order, of which its config says nothing"),
        (damaged("qweight", lambda packed: packed[:, :-32]), "do not fit together"),
    ],
)
def test_damaged_parts_are_an_error_that_names_the_weight(
    tmp_path: Path, damage: Callable[[Weights], None], reason: str
) -> None:
    made = Checkpoint(tmp_path, "gptq", tiny_llama())
    tensors = load_file(made.folder / "model.safetensors")
    damage(tensors)
    save_file(tensors, made.folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=rf"model.layers.1.mlp.up_proj.weight.*{reason}"):
        load(open_folder(made.folder), Span(1, 2))


@given(
    num_rows=st.sampled_from([1, 2, 3, 17, 70]),
    sizes=st.sampled_from([(32, 32), (96, 160), (64, 512), (128, 256), (1056, 64)]),
    stored=st.sampled_from([-1, 32, 64, 128]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    bias=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_a_layer_multiplies_what_its_integers_stand_for(
    num_rows: int, sizes: tuple[int, int], stored: int, dtype: torch.dtype, bias: bool
) -> None:
    linear = nn.Linear(sizes[1], sizes[0], bias=bias, dtype=dtype, device=DEVICE)
    if (group_size := kernel_group(linear, stored)) is None:
        assert sizes[1] % (sizes[1] if stored == -1 else stored)
        return
    grouped = rounded(linear.weight.detach().cpu(), sizes[1] if stored == -1 else stored)
    layer = Int4Linear(linear, group_size, is_ordered=False)
    layer.fill(grouped, device=DEVICE)
    inputs = torch.randn(num_rows, 1, sizes[1], dtype=dtype)
    expected = nn.functional.linear(inputs.float(), grouped.dense(), linear.bias.float().cpu() if bias else None)
    made = layer(inputs.to(DEVICE)).cpu()
    assert made.dtype == dtype
    assert made.shape == expected.shape
    assert_close(made.float(), expected, apart=0.01)


def test_this_device_multiplies_integers() -> None:
    assert reason_against(DEVICE) is None
    assert reason_against(torch.device("meta")) is not None


def test_rounding_moves_no_weight_by_more_than_half_a_step() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    grouped: Grouped = rounded(weight, 32)
    assert int(grouped.values.max()) == 15
    error = (grouped.dense() - weight).abs().unflatten(1, (2, 32)).amax(-1)
    assert (error <= grouped.scales / 2 + 1e-6).all()


def test_layers_no_kernel_takes_are_written_out() -> None:
    config = LlamaConfig(hidden_size=96, intermediate_size=80, num_attention_heads=2, num_hidden_layers=1)
    quantize_blocks(config, INT4, dtype=torch.float32, device=CPU)
    block = build_skeleton(config, Span(0, 1)).model.layers[0]
    assert isinstance(block.self_attn.q_proj, Int4Linear)
    assert type(block.mlp.up_proj) is nn.Linear


def test_a_gguf_file_keeps_its_own_integers() -> None:
    """The bundled model's blocks are Q4_1, a scale and an offset for 32 weights; rows of llama lie in another order."""
    source = resolve("smollm2-135m")
    for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"):
        grouped = source.grouped(f"model.layers.7.{name}.weight")
        assert grouped is not None
        assert torch.equal(grouped.dense(), source.read(f"model.layers.7.{name}.weight"))
    assert source.grouped("model.layers.7.input_layernorm.weight") is None
    quantize_blocks(source.config, INT4, dtype=torch.float32, device=CPU)
    part, _ = load(source, Span(3, 5))
    assert quantization_of(source.config) == INT4
    whole, _ = load(resolve("smollm2-135m"), Span(3, 5))
    span, steps = Span(3, 5), [Step(SessionId(bytes(16)), 0, 0, 6, 6)]
    made = []
    for model in (part, whole):
        runner = Runner(model, span, KVCache(span, budget_tokens=100))
        runner.cache.reserve(SessionId(bytes(16)), span, num_lanes=1, max_tokens=9)
        made.append(runner.forward(torch.randn(6, 576, generator=torch.Generator().manual_seed(2)), steps, span))
    assert_close(made[0], made[1], apart=0.01)
