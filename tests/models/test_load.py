"""Weights from local safetensors: only what is needed, bit for bit, whatever the family's layout."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import CPU, assert_same_weights, load, save, tiny_llama, tiny_mixtral
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

from chainserve.errors import WeightsError
from chainserve.models.checkpoint import open_folder
from chainserve.models.load import load_weights, memory_bytes
from chainserve.models.skeleton import build_skeleton
from chainserve.types import Span

GEMMA_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 96,
}


def test_reads_little_more_than_the_blocks_asked_for(tmp_path: Path) -> None:
    llama = tiny_llama()
    source = open_folder(save(llama, tmp_path, max_shard_size="1MB"))
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    part, report = load(source, Span(2, 4))
    assert_same_weights(part, llama)
    block_bytes = sum(parameter.nbytes for parameter in llama.model.layers[2].parameters())
    assert report.bytes_of_blocks == 2 * block_bytes
    assert report.num_tensors == 18
    assert report.bytes_of_blocks < report.bytes_read <= 1.02 * report.bytes_of_blocks
    assert report.bytes_downloaded == 0


def test_tells_which_share_has_been_read(tmp_path: Path) -> None:
    source, shares = open_folder(save(tiny_llama(), tmp_path)), list[float]()
    skeleton = build_skeleton(source.config, Span(0, 2))
    load_weights(skeleton, source, dtype=torch.float32, device=CPU, progress=False, on_share=shares.append)
    assert len(shares) > 5
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_counts_headers_once(tmp_path: Path) -> None:
    source = open_folder(save(tiny_llama(), tmp_path))
    load(source, Span(0, 1))
    _, report = load(source, Span(1, 2))
    assert report.bytes_read == report.bytes_of_blocks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_converts_to_the_dtype_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr("chainserve.models.source.CONVERT_ELEMENTS", 1000)
    llama = tiny_llama()
    part, _ = load(open_folder(save(llama, tmp_path)), Span(0, 2), embed=True, head=True, dtype=dtype)
    assert {parameter.dtype for parameter in part.parameters()} == {dtype}
    assert_same_weights(part, llama)


@pytest.mark.parametrize(("embed", "head"), [(True, False), (False, True), (True, True)])
def test_fills_tied_embeddings_from_the_one_tensor_there_is(tmp_path: Path, embed: bool, head: bool) -> None:
    llama = tiny_llama(tied=True)
    source = open_folder(save(llama, tmp_path))
    assert "lm_head.weight" not in source.tensors
    part, report = load(source, None, embed=embed, head=head)
    assert_same_weights(part, llama)
    assert report.bytes_of_blocks == llama.lm_head.weight.nbytes + head * llama.model.norm.weight.nbytes
    if embed and head:
        assert part.lm_head.weight is part.model.embed_tokens.weight


def test_fills_tied_embeddings_stored_under_the_name_of_the_head(tmp_path: Path) -> None:
    llama = tiny_llama(tied=True)
    save(llama, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    part, _ = load(open_folder(tmp_path), Span(0, 1), embed=True)
    assert_same_weights(part, llama)


def test_reads_no_embedding_unless_asked(tmp_path: Path) -> None:
    part, _ = load(open_folder(save(tiny_llama(), tmp_path)), Span(0, 1))
    assert set(part.state_dict()) == {name for name in tiny_llama().state_dict() if name.startswith("model.layers.0.")}


def tiny_qwen3_moe() -> PreTrainedModel:
    config = Qwen3MoeConfig(
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=12,
        vocab_size=96,
    )
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("family", [tiny_mixtral, tiny_qwen3_moe])
def test_fuses_experts_as_transformers_does(tmp_path: Path, family) -> None:
    model = family()
    source = open_folder(save(model, tmp_path))
    assert any(".experts.3." in name for name in source.tensors)
    part, report = load(source, Span(1, 3))
    assert_same_weights(part, model)
    assert report.bytes_of_blocks == sum(tensor.nbytes for tensor in part.state_dict().values())
    source.take_traffic()
    assert load(source, Span(0, 1))[1].bytes_read == report.bytes_of_blocks / 2


@pytest.mark.parametrize("tied", [True, False])
def test_takes_the_decoder_out_of_a_model_that_also_sees(tmp_path: Path, tied: bool) -> None:
    config = Gemma3Config(
        tie_word_embeddings=tied,
        text_config=GEMMA_TEXT,
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
    )
    model = Gemma3ForConditionalGeneration(config)
    source = open_folder(save(model, tmp_path))
    assert source.config.model_type == "gemma3_text"
    assert source.num_blocks == 3
    assert ("language_model.lm_head.weight" in source.tensors) is not tied
    part, _ = load(source, Span(0, 3), embed=True, head=True)
    decoder = {
        name.replace("language_model.", ""): tensor
        for name, tensor in model.state_dict().items()
        if "language_model." in name or name.startswith("lm_head")
    }
    assert part.state_dict().keys() == decoder.keys()
    assert all(torch.equal(tensor, decoder[name]) for name, tensor in part.state_dict().items())


def test_leaves_computed_buffers_right(tmp_path: Path) -> None:
    model = Gemma3ForCausalLM(Gemma3TextConfig(**GEMMA_TEXT)).eval()
    part, _ = load(open_folder(save(model, tmp_path)), Span(0, 3), embed=True, head=True)
    expected = dict(model.named_buffers())
    assert any("embed_scale" in name for name in expected)
    for name, buffer in part.named_buffers():
        assert torch.equal(buffer, expected[name]), name


def test_fills_persistent_buffers(tmp_path: Path) -> None:
    model = tiny_llama()
    save(model, tmp_path)
    source = open_folder(tmp_path)
    skeleton = build_skeleton(source.config, Span(0, 1))
    skeleton.model.layers[0].register_buffer("scale", torch.zeros(128))
    skeleton.model.layers[0].register_buffer("absent", torch.ones(3))
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        {**tensors, "model.layers.0.scale": torch.arange(128.0)},
        tmp_path / "model.safetensors",
    )
    load_weights(skeleton, open_folder(tmp_path), dtype=torch.float32, device=CPU, progress=False)
    assert torch.equal(skeleton.model.layers[0].scale, torch.arange(128.0))
    assert torch.equal(skeleton.model.layers[0].absent, torch.ones(3))


def test_keeps_in_float32_what_the_family_keeps(tmp_path: Path) -> None:
    source = open_folder(save(tiny_llama(), tmp_path))
    skeleton = build_skeleton(source.config, Span(0, 1))
    skeleton._keep_in_fp32_modules_strict = {"input_layernorm"}
    load_weights(skeleton, source, dtype=torch.bfloat16, device=CPU, progress=False)
    block = skeleton.model.layers[0]
    assert block.input_layernorm.weight.dtype == torch.float32
    assert block.post_attention_layernorm.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("tied", [False, True])
def test_knows_the_memory_before_reading(tmp_path: Path, tied: bool) -> None:
    source = open_folder(save(tiny_llama(tied=tied), tmp_path))
    skeleton = build_skeleton(source.config, Span(0, 2), embed=True, head=True)
    foretold = memory_bytes(skeleton, torch.bfloat16)
    load_weights(skeleton, source, dtype=torch.bfloat16, device=CPU, progress=False)
    assert foretold == sum(parameter.nbytes for parameter in skeleton.parameters())


def test_names_missing_tensors(tmp_path: Path) -> None:
    save(tiny_llama(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    source = open_folder(tmp_path)
    load(source, Span(0, 1))
    with pytest.raises(WeightsError, match=r"lacks 1 tensors .*: model\.layers\.1\.mlp\.up_proj\.weight"):
        load(source, Span(0, 2))


def test_notices_a_missing_expert(tmp_path: Path) -> None:
    save(tiny_mixtral(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if ".experts.3.w2" not in name}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="down_proj has shape"):
        load(open_folder(tmp_path), Span(0, 1))


def test_notices_experts_of_different_shapes(tmp_path: Path) -> None:
    save(tiny_mixtral(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if ".experts.3.w2" in name)
    save_file({**tensors, name: torch.zeros(1, 48)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="do not fit together"):
        load(open_folder(tmp_path), Span(0, 1))


def test_says_when_a_file_ends_early(tmp_path: Path) -> None:
    source = open_folder(save(tiny_llama(), tmp_path))
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="ends in the middle"):
        load(source, None, head=True)
    with pytest.raises(WeightsError, match="its header speaks of"):
        open_folder(tmp_path)


@pytest.mark.parametrize(("embed", "head"), [(True, False), (False, True)])
def test_reads_a_checkpoint_saved_without_its_head(tmp_path: Path, embed: bool, head: bool) -> None:
    llama = tiny_llama(tied=True)
    save(llama.model, tmp_path)
    source = open_folder(tmp_path)
    assert "embed_tokens.weight" in source.tensors
    part, _ = load(source, Span(1, 2), embed=embed, head=head)
    assert_same_weights(part, llama)
