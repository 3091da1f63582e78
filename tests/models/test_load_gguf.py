"""Weights from GGUF: what transformers makes of the same file, but only for the blocks asked for."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tiny_checkpoints import assert_same_weights, load
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from chainserve.errors import UnsupportedModelError, WeightsError
from chainserve.models.gguf_file import GgufSource, open_gguf
from chainserve.models.names import bundled_file
from chainserve.models.resolve import resolve
from chainserve.models.source import ModelSource
from chainserve.types import Span

pytestmark = pytest.mark.timeout(180)
BUNDLED = bundled_file("smollm2-135m")


@pytest.fixture(scope="module")
def smollm2() -> ModelSource:
    return resolve("smollm2-135m")


@pytest.fixture(scope="module")
def whole_smollm2() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(BUNDLED.parent, gguf_file=BUNDLED.name, dtype=torch.float32)


@pytest.mark.slow
def test_bundled_model_has_the_config_transformers_gives_it(smollm2: ModelSource) -> None:
    assert smollm2.name == "smollm2-135m"
    assert smollm2.num_blocks == 30
    theirs = AutoConfig.from_pretrained(BUNDLED.parent, gguf_file=BUNDLED.name)
    assert {**smollm2.config.to_dict(), "_name_or_path": ""} == {**theirs.to_dict(), "_name_or_path": ""}


@pytest.mark.slow
def test_bundled_model_has_a_tokenizer_that_chats(smollm2: ModelSource) -> None:
    tokenizer = smollm2.tokenizer()
    text = "A swarm answers . It 's here."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False).endswith("<|im_end|>\n")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reads_of_the_bundled_model_what_transformers_reads(
    smollm2: ModelSource, whole_smollm2: PreTrainedModel, dtype: torch.dtype
) -> None:
    part, report = load(smollm2, Span(10, 13), embed=True, head=True, dtype=dtype)
    assert_same_weights(part, whole_smollm2)
    assert part.lm_head.weight is part.model.embed_tokens.weight
    assert report.num_tensors == 3 * 9 + 2
    stored = (smollm2.tensors[name].nbytes for name in part.state_dict() if name != "lm_head.weight")
    assert report.bytes_of_blocks == sum(stored)


@pytest.mark.slow
def test_reads_no_more_of_the_bundled_model_than_its_blocks(smollm2: ModelSource) -> None:
    smollm2.take_traffic()
    _, report = load(smollm2, Span(0, 2))
    assert report.bytes_read == report.bytes_of_blocks


def write_gguf(
    path: Path, architecture: str, fields: dict[str, int | float], shapes: dict[str, tuple[int, ...]]
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in fields.items():
        add = writer.add_uint32 if isinstance(value, int) else writer.add_float32
        add(f"{architecture}.{key}", value)
    writer.add_token_list([f"t{number}" for number in range(64)])
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(name, random.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_tiny(path: Path, architecture: str, *, context_length: int = 128) -> Path:
    block = {
        "attn_q.weight": (32, 32),
        "attn_k.weight": (16, 32),
        "attn_v.weight": (16, 32),
        "attn_output.weight": (32, 32),
        "attn_norm.weight": (32,),
        "ffn_norm.weight": (32,),
    }
    if architecture == "qwen3moe":
        block |= {
            "attn_q_norm.weight": (8,),
            "attn_k_norm.weight": (8,),
            # 768 is what transformers takes for the width of this family's experts, whatever the file says.
            "ffn_gate_inp.weight": (4, 32),
            "ffn_gate_exps.weight": (4, 768, 32),
            "ffn_up_exps.weight": (4, 768, 32),
            "ffn_down_exps.weight": (4, 32, 768),
        }
    else:
        block |= {"ffn_gate.weight": (48, 32), "ffn_up.weight": (48, 32), "ffn_down.weight": (32, 48)}
    shapes = {"token_embd.weight": (64, 32), "output_norm.weight": (32,), "output.weight": (64, 32)}
    shapes |= {f"blk.{index}.{name}": shape for index in range(3) for name, shape in block.items()}
    fields: dict[str, int | float] = {
        "block_count": 3,
        "context_length": context_length,
        "embedding_length": 32,
        "feed_forward_length": 48,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 8,
        "attention.value_length": 8,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 10000.0,
        "vocab_size": 64,
    }
    if architecture == "qwen3moe":
        fields |= {"expert_count": 4, "expert_used_count": 2}
    return write_gguf(path, architecture, fields, shapes)


@pytest.mark.parametrize("architecture", ["llama", "qwen3moe"])
def test_reads_other_families_as_transformers_does(tmp_path: Path, architecture: str) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", architecture)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    part, _ = load(open_gguf(path), Span(1, 3), embed=True, head=True)
    assert_same_weights(part, whole)


def test_calls_a_file_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny(tmp_path / "tiny.gguf", "llama")
    monkeypatch.chdir(tmp_path)
    assert resolve("tiny.gguf").name == str(tmp_path / "tiny.gguf")


def test_digest_depends_on_the_architecture(tmp_path: Path) -> None:
    digest = open_gguf(write_tiny(tmp_path / "one.gguf", "llama")).digest
    assert open_gguf(write_tiny(tmp_path / "same.gguf", "llama")).digest == digest
    assert open_gguf(write_tiny(tmp_path / "other.gguf", "llama", context_length=256)).digest != digest


def test_says_when_a_file_ends_early(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", "llama")
    source = open_gguf(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(WeightsError, match="ends in the middle"):
        load(source, Span(2, 3))


def test_names_an_architecture_transformers_does_not_know(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", "bitnet", {"block_count": 1}, {"token_embd.weight": (4, 4)})
    with pytest.raises(UnsupportedModelError, match="bitnet") as caught:
        GgufSource("x", path)
    assert "\n" not in str(caught.value)
