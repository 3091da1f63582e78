"""Quantized blocks against the same quantized model in transformers, in memory, and where they cannot be."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import CPU, load, save, tiny_llama, tiny_mixtral
from tiny_models import FAMILIES, A, B
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, PreTrainedModel

from chainserve.errors import DeviceError, UnsupportedModelError, UsageError, WeightsError
from chainserve.models import attention, quantize
from chainserve.models import measure as measuring
from chainserve.models.cache import KVCache
from chainserve.models.checkpoint import open_folder
from chainserve.models.costs import model_costs
from chainserve.models.ends import Ends
from chainserve.models.fp8 import FP8_MAX, Fp8Linear, check_fp8
from chainserve.models.int4 import Int4Linear
from chainserve.models.load import bytes_by_block
from chainserve.models.names import FP8, INT4, INT8, NF4, QUANTIZATIONS
from chainserve.models.profiles import profile_of
from chainserve.models.quantize import quantization_of, quantize_blocks, quantized_layer, settle_quantized
from chainserve.models.runner import Runner
from chainserve.models.skeleton import blocks_of, build_skeleton
from chainserve.models.support import check_supported
from chainserve.protocol.messages import Step
from chainserve.types import Span

SPLITS = ([Span(0, 6)], [Span(0, 2), Span(2, 5), Span(5, 6)])
SETTINGS = {
    INT8: {"load_in_8bit": True, "llm_int8_threshold": 0.0},
    NF4: {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}
NUM_NEW = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_llama()
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():  # large enough that tokens differ
        parameter.data.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.1, generator=generator)
    return save(model, tmp_path_factory.mktemp("llama"))


def settings_of(method: str, dtype: torch.dtype, **more: Any) -> BitsAndBytesConfig:
    compute = {"bnb_4bit_compute_dtype": dtype} if method == NF4 else {}
    return BitsAndBytesConfig(**SETTINGS[method], **compute, **more)


def whole_model(folder: Path, dtype: torch.dtype, settings: BitsAndBytesConfig | None = None) -> PreTrainedModel:
    options = {"quantization_config": settings} if settings else {}  # None would undo what a checkpoint's config says
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options).eval()


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(96, (length,), generator=generator).tolist() for length in (1, 20)]


def generated(model: PreTrainedModel, prompt: Sequence[int]) -> list[int]:
    ids = torch.tensor([prompt])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_NEW, do_sample=False, eos_token_id=None
    )
    return output[0, len(prompt) :].tolist()


class Chain:
    """Both ends and runners over the spans of a checkpoint, called one after another as servers would be."""

    def __init__(self, folder: Path, spans: Sequence[Span], dtype: torch.dtype, method: str | None = None) -> None:
        self.runners = []
        for span in spans:
            source = open_folder(folder)
            if method:
                quantize_blocks(source.config, method, dtype=dtype, device=CPU)
            part, _ = load(source, span, dtype=dtype)
            runner = Runner(part, span, KVCache(span, budget_tokens=100))
            runner.cache.reserve(A, span, num_lanes=1, max_tokens=100)
            self.runners.append(runner)
        self.ends = Ends(load(open_folder(folder), None, embed=True, head=True, dtype=dtype)[0])

    def forward(self, ids: Sequence[int], start: int) -> Tensor:
        hidden = self.ends.embed(torch.tensor(ids))
        for runner in self.runners:
            hidden = runner.forward(hidden, [Step(A, 0, start, len(ids), len(ids))], runner.span)
        return hidden

    def generated(self, prompt: Sequence[int]) -> list[int]:
        tokens: list[int] = []
        ids, start = list(prompt), 0
        while len(tokens) < NUM_NEW:
            hidden = self.forward(ids, start)
            start += len(ids)
            ids = [int(self.ends.logits(hidden[-1:])[0].argmax())]
            tokens += ids
        return tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [INT8, NF4])
def test_tokens_are_those_of_the_same_quantized_model_in_one_piece(
    folder: Path, method: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "HAS_BFLOAT16", False)  # as transformers' own is torch's, which rounds otherwise
    whole = whole_model(folder, dtype, settings_of(method, dtype))
    expected = [generated(whole, prompt) for prompt in prompts()]
    assert expected != [generated(whole_model(folder, dtype), prompt) for prompt in prompts()]
    for spans in SPLITS:
        chain = Chain(folder, spans, dtype, method)
        assert [chain.generated(prompt) for prompt in prompts()] == expected


@pytest.mark.parametrize("method", [INT8, NF4])
def test_a_checkpoint_that_bitsandbytes_made_gives_the_tokens_it_gives_in_transformers(
    folder: Path, tmp_path: Path, method: str
) -> None:
    more = {"bnb_4bit_use_double_quant": True} if method == NF4 else {}
    whole_model(folder, torch.float32, settings_of(method, torch.float32, **more)).save_pretrained(tmp_path)
    whole = whole_model(tmp_path, torch.float32)
    source = open_folder(tmp_path)
    check_supported(source.config)
    settle_quantized(source.config, CPU)
    assert quantization_of(source.config) == method
    for spans in SPLITS:
        chain = Chain(tmp_path, spans, torch.float32)
        assert [chain.generated(prompt) for prompt in prompts()] == [generated(whole, prompt) for prompt in prompts()]
    part, report = load(source, Span(1, 3))
    assert report.bytes_of_blocks < sum(bytes_by_block(source.config, torch.float32)[1:3]) * 1.1
    assert held_bytes(part) == sum(bytes_by_block(source.config, torch.float32)[1:3])


def held_bytes(model: PreTrainedModel) -> int:
    """Bytes of all tensors that the model holds, those of scales included."""
    return (
        sum(tensor.nbytes for name, tensor in model.state_dict().items() if not is_note(name))
        + sum(module.scale.nbytes for module in model.modules() if isinstance(module, Fp8Linear))
        + sum(module.scales_and_offsets.nbytes for module in model.modules() if isinstance(module, Int4Linear))
        + sum(
            module.weight.quant_state.offset.nbytes
            for module in model.modules()
            if type(module).__name__ == "Linear4bit" and module.weight.quant_state.nested
        )
    )


def is_note(name: str) -> bool:
    """Whether bitsandbytes makes up the tensor when a state is saved, to say what the others are."""
    return "bitsandbytes__" in name or name.endswith("weight_format")


@pytest.mark.parametrize("method", QUANTIZATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_knows_the_memory_before_reading(
    folder: Path, monkeypatch: pytest.MonkeyPatch, method: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(quantize, "check_fp8", lambda _device: None)
    source = open_folder(folder)
    plain = bytes_by_block(source.config, dtype)[2]
    quantize_blocks(source.config, method, dtype=dtype, device=CPU)
    foretold = bytes_by_block(source.config, dtype)[2]
    part, _ = load(source, Span(2, 3), dtype=dtype)
    assert foretold == held_bytes(part)
    most = {INT8: 0.27, FP8: 0.27, NF4: 0.16, INT4: 0.16}[method] * 4 / dtype.itemsize
    assert foretold < most * plain
    assert model_costs(source, dtype).block_bytes == foretold


@pytest.mark.parametrize("method", [INT8, NF4])
def test_what_others_batch_with_it_changes_no_session(folder: Path, method: str) -> None:
    """Rows of int8 are rounded each by itself; other shapes of a product only reorder its sums."""
    source = open_folder(folder)
    quantize_blocks(source.config, method, dtype=torch.float32, device=CPU)
    [span] = SPLITS[0]
    runner = Runner(load(source, span)[0], span, KVCache(span, budget_tokens=100))
    hidden = torch.randn(8, 128, generator=torch.Generator().manual_seed(1))
    hidden[5] *= 100  # an outlier, in another session
    for session in (A, B):
        runner.cache.reserve(session, span, num_lanes=1, max_tokens=8)
    [alone] = runner.forward(hidden[:4], [Step(A, 0, 0, 4, 4)], span).split(4)
    together = runner.forward(hidden, [Step(A, 0, 0, 4, 4), Step(B, 0, 0, 4, 4)], span)
    assert (together[:4] - alone).abs().max() <= 1e-4 * alone.abs().max()


@pytest.fixture
def fp8_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the CPU do what it emulates."""
    monkeypatch.setattr(quantize, "check_fp8", lambda _device: None)


@pytest.mark.parametrize("bias", [False, True])
def test_an_fp8_layer_multiplies_what_float8_leaves_of_numbers(bias: bool) -> None:
    linear = nn.Linear(64, 32, bias=bias)
    inputs = torch.randn(2, 3, 64) * torch.tensor([1e-3, 1.0, 1e3]).view(1, 3, 1)
    layer = Fp8Linear(linear)
    layer.quantize(linear.weight.detach(), device=CPU)
    assert layer.weight.dtype == torch.float8_e4m3fn
    assert Fp8Linear(linear).nbytes == layer.weight.nbytes + layer.scale.nbytes

    def rounded(rows: Tensor) -> Tensor:
        scale = rows.abs().amax(-1, keepdim=True) / FP8_MAX
        return (rows / scale).to(torch.float8_e4m3fn).float() * scale

    expected = rounded(inputs) @ rounded(linear.weight.detach()).T + (linear.bias.detach() if bias else 0)
    assert layer(inputs).dtype == inputs.dtype
    torch.testing.assert_close(layer(inputs), expected, rtol=0.01, atol=0.01 * float(expected.abs().max()))
    torch.testing.assert_close(layer(inputs)[:, :1], layer(inputs[:, :1]), rtol=0.01, atol=1e-5)


@pytest.mark.usefixtures("fp8_anywhere")
def test_fp8_blocks_come_close_to_the_blocks_they_were_made_of(folder: Path) -> None:
    plain = Chain(folder, SPLITS[0], torch.bfloat16).forward(prompts()[1], 0).float()
    quantized = Chain(folder, SPLITS[1], torch.bfloat16, FP8).forward(prompts()[1], 0).float()
    assert 0 < (quantized - plain).norm() < 0.4 * plain.norm()  # random weights make much of small differences


@pytest.mark.usefixtures("fp8_anywhere")
def test_layers_that_float8_kernels_do_not_take_stay_as_they_are() -> None:
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=100,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=96,
    )
    quantize_blocks(config, FP8, dtype=torch.bfloat16, device=CPU)
    block = build_skeleton(config, Span(0, 1)).model.layers[0]
    assert isinstance(block.self_attn.q_proj, Fp8Linear)
    assert type(block.mlp.down_proj) is nn.Linear


@pytest.mark.parametrize("method", [INT8, NF4])
def test_norms_ends_and_fused_experts_are_not_quantized(tmp_path: Path, method: str) -> None:
    source = open_folder(save(tiny_mixtral(), tmp_path))
    quantize_blocks(source.config, method, dtype=torch.float32, device=CPU)
    part, _ = load(source, Span(1, 2), embed=True, head=True)
    quantized = {name for name, module in part.named_modules() if quantized_layer(module)}
    assert quantized == {f"model.layers.1.self_attn.{name}_proj" for name in "qkvo"}
    assert bytes_by_block(source.config, torch.float32)[1] == sum(
        tensor.nbytes for name, tensor in part.state_dict().items() if ".layers.1." in name and not is_note(name)
    )


@pytest.mark.parametrize("method", QUANTIZATIONS)
@pytest.mark.usefixtures("fp8_anywhere")
def test_quantized_blocks_are_measured_and_kept_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(measuring, "MIN_ROUNDS", 1)
    monkeypatch.setattr(measuring, "MAX_ROUNDS", 1)
    plain, config = (type(FAMILIES["llama"])(**FAMILIES["llama"].to_dict()) for _ in range(2))
    quantize_blocks(config, method, dtype=torch.bfloat16, device=CPU)
    profiles = [profile_of(one, dtype=torch.bfloat16, device=CPU, folder=tmp_path) for one in (plain, config)]
    assert len(list(tmp_path.glob("*.json"))) == 2
    assert profiles[1].block_bytes == max(bytes_by_block(config, torch.bfloat16)) < 0.7 * profiles[0].block_bytes
    for name in ("token_bytes", "embedding_bytes", "head_bytes"):
        assert getattr(profiles[0], name) == getattr(profiles[1], name)
    assert profile_of(config, dtype=torch.bfloat16, device=CPU, folder=tmp_path) == profiles[1]


def test_bitsandbytes_reorders_on_no_cpu_what_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    config = LlamaConfig(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=1)
    quantize_blocks(config, NF4, dtype=torch.bfloat16, device=CPU)
    [block] = blocks_of(build_skeleton(config, Span(3, 4)).base_model)[3:4]
    reordered = {name for name, layer in block.named_modules() if getattr(layer, "support_avx512bf16_for_cpu", False)}
    assert reordered == {"self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj"}


def test_damaged_scales_are_an_error_that_names_the_weight(folder: Path, tmp_path: Path) -> None:
    whole_model(folder, torch.float32, settings_of(NF4, torch.float32)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    del tensors[f"{name}.absmax"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=f"the quantized tensors of {name} do not fit"):
        load(open_folder(tmp_path), Span(1, 2))


@pytest.fixture
def without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "bitsandbytes" else find_spec(name, *more)
    )


@pytest.mark.usefixtures("without_bitsandbytes")
@pytest.mark.parametrize("method", [INT8, NF4])
def test_a_missing_package_is_named_with_what_installs_it(method: str) -> None:
    config = FAMILIES["llama"]
    with pytest.raises(UsageError, match=r'int8 and nf4 need bitsandbytes.*pip install "chainserve\[quant\]"'):
        quantize_blocks(config, method, dtype=torch.float32, device=CPU)
    assert quantization_of(config) is None


def test_a_client_of_a_quantized_checkpoint_needs_no_package(
    folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    whole_model(folder, torch.float32, settings_of(NF4, torch.float32)).save_pretrained(tmp_path)
    request.getfixturevalue("without_bitsandbytes")
    source = open_folder(tmp_path)
    ends, _ = load(source, None, embed=True, head=True)
    assert torch.equal(ends.lm_head.weight, whole_model(folder, torch.float32).lm_head.weight)
    check_supported(source.config)
    with pytest.raises(UsageError, match="need bitsandbytes"):
        settle_quantized(source.config, CPU)


def test_what_is_quantized_already_is_not_quantized_again(folder: Path) -> None:
    config = open_folder(folder).config
    quantize_blocks(config, INT8, dtype=torch.float32, device=CPU)
    with pytest.raises(UsageError, match=r"quantized already \(int8\): leave --quant out"):
        quantize_blocks(config, NF4, dtype=torch.float32, device=CPU)


@pytest.mark.parametrize(
    ("method", "needs"),
    [
        ("mxfp4", "Triton kernels, on a GPU"),
        ("torchao", "the package torchao"),
        ("rubbish", "of which single blocks"),
    ],
)
def test_a_checkpoint_that_is_quantized_in_another_way_is_refused_with_what_it_would_take(
    method: str, needs: str
) -> None:
    config = LlamaConfig(num_hidden_layers=2, quantization_config={"quant_method": method})
    with pytest.raises(UnsupportedModelError, match=f"quantized by {method}.*{needs}.*unquantized model with --quant"):
        check_supported(config)


class Gpu:
    """Stands for torch's view of a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], hip: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "a GPU")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
        monkeypatch.setattr(torch.version, "hip", hip)


def failing(*_: object, **__: object) -> None:
    raise RuntimeError("no kernel\nfor this")


@pytest.mark.parametrize(
    ("capability", "hip", "reason"),
    [
        ((8, 6), None, r"a GPU has 8\.6"),
        ((9, 4), "6.4", "not made by NVIDIA"),
        ((9, 0), None, "cannot here: no kernel: take"),
    ],
)
def test_fp8_is_refused_with_the_reason_where_the_device_lacks_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], hip: str | None, reason: str
) -> None:
    with pytest.raises(DeviceError, match=r"8\.9 or newer.*cpu would only emulate it: take int8 or nf4"):
        check_fp8(CPU)
    Gpu(monkeypatch, capability, hip)
    monkeypatch.setattr(Fp8Linear, "quantize", failing)
    with pytest.raises(DeviceError, match=reason):
        check_fp8(torch.device("cuda"))
