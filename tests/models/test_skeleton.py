"""Skeletons hold what was asked for, and unsupported families are told before weights are read."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, HIDDEN, NUM_BLOCKS, VOCAB, expected_hidden, random_ids, random_model
from torch import Tensor
from transformers import (
    ApertusConfig,
    AttentionInterface,
    BertConfig,
    DiffLlamaConfig,
    FalconConfig,
    Gemma3Config,
    Gemma3nTextConfig,
    GPT2Config,
    GraniteConfig,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    NanoChatConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2MoeConfig,
    Qwen3NextConfig,
    T5Config,
)
from transformers.models.llama.modeling_llama import LlamaAttention

from chainserve.errors import SpanError, UnsupportedModelError
from chainserve.models.cache_name import CACHE
from chainserve.models.skeleton import build_skeleton
from chainserve.models.support import cache_bytes_per_token, check_supported
from chainserve.types import Span

SMALL: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "vocab_size": VOCAB,
    "pad_token_id": 0,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 4096,
}


def weight_names(config: PretrainedConfig, span: Span | None, **ends: bool) -> set[str]:
    model = build_skeleton(config, span, **ends)
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    return {name.removeprefix("model.").removesuffix(".weight") for name in model.state_dict()}


def test_a_skeleton_holds_the_blocks_of_its_span_under_their_own_names() -> None:
    names = weight_names(FAMILIES["llama"], Span(2, 4))
    assert {name.split(".")[1] for name in names} == {"2", "3"}
    assert len(names) == 2 * 9


def test_embedding_and_head_are_there_when_asked_for() -> None:
    config = FAMILIES["llama"]
    assert weight_names(config, None, embed=True) == {"embed_tokens"}
    assert weight_names(config, None, head=True) == {"norm", "lm_head"}
    assert weight_names(config, None) == set()


def test_a_span_outside_the_model_is_an_error() -> None:
    with pytest.raises(SpanError, match="blocks 5:7 are not in this model, which has blocks 0:6"):
        build_skeleton(FAMILIES["llama"], Span(5, 7))


def test_buffers_no_checkpoint_holds_are_computed() -> None:
    model = build_skeleton(FAMILIES["gemma3"], Span(0, 1), embed=True)
    buffers = dict(model.named_buffers())
    assert buffers["model.embed_tokens.embed_scale"] == HIDDEN**0.5
    assert all(not buffer.is_meta for buffer in buffers.values())
    assert len(buffers) > 1


def test_buffers_a_checkpoint_holds_are_left_to_the_loader() -> None:
    assert "layers.0.mlp.act_fn.beta" in weight_names(ApertusConfig(**SMALL), Span(0, 1))


def test_the_given_config_is_left_as_it_was() -> None:
    config = LlamaConfig(**SMALL)
    before = config.to_dict(), config._attn_implementation
    build_skeleton(config, Span(0, 1))
    check_supported(config)
    assert (config.to_dict(), config._attn_implementation) == before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures address space the way Linux shows it")
def test_a_span_of_a_very_large_model_is_built_in_little_time_and_memory() -> None:
    script = """
import resource, time
from pathlib import Path
from transformers import LlamaConfig
from chainserve.models.cache_name import CACHE
from chainserve.models.skeleton import build_skeleton
from chainserve.types import Span
build_skeleton(LlamaConfig(num_hidden_layers=1), None)
addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (addresses + 2**29, addresses + 2**29))
started = time.process_time()
large = LlamaConfig(num_hidden_layers=126, hidden_size=16384, intermediate_size=53248, num_attention_heads=128)
build_skeleton(large, Span(3, 9), embed=True)
assert time.process_time() - started < 5, time.process_time() - started
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=50)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_families_that_the_runner_computes_are_supported(config: PretrainedConfig) -> None:
    check_supported(config)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (GPT2Config(n_layer=2), "GPT2Model has no list of blocks"),
        (OPTConfig(num_hidden_layers=2), "OPTModel has no list of blocks"),
        (BertConfig(num_hidden_layers=2), "BertModel has no list of blocks"),
        (T5Config(num_layers=2), "no causal language model of this type"),
        (PretrainedConfig(auto_map={"AutoModel": "theirs.py"}), "code from its repository, which is never run"),
        (Gemma3Config(), "only decoder-only text models"),
        (MambaConfig(num_hidden_layers=2), "linear_attention|blocks of type mamba|no final norm"),
        (Qwen3NextConfig(), "blocks of type linear_attention"),
        (Llama4TextConfig(), "blocks of type chunked_attention"),
        (LlamaConfig(**SMALL, rope_parameters=DYNAMIC), "rotary embeddings of type dynamic"),
        (Phi3Config(**SMALL, rope_parameters=LONG), "rotary embeddings of type longrope"),
        (GraniteConfig(**SMALL, embedding_multiplier=12.0), "changed outside of blocks and final norm"),
        (NanoChatConfig(**SMALL), "changed outside of blocks and final norm"),
        (Gemma3nTextConfig(), "embed_tokens_per_layer"),
        (
            LlamaConfig(**SMALL, quantization_config={"quant_method": "mxfp4"}),
            "quantized by mxfp4, of which single blocks",
        ),
        (FalconConfig(num_hidden_layers=2), "its blocks do not run on their own"),
        (DiffLlamaConfig(**SMALL), r"cache \(2 found\)|do not run on their own"),
        (Qwen2MoeConfig(**SMALL, sliding_window=4, use_sliding_window=True, max_window_layers=1), "attention mask"),
    ],
    ids=lambda value: value.model_type if isinstance(value, PretrainedConfig) else "",
)
def test_what_is_unsupported_is_named(config: PretrainedConfig, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        check_supported(config)


@pytest.mark.parametrize(
    ("num_calls", "arguments", "reason"),
    [
        (2, {}, r"block 0 is not one causal self-attention with a cache \(2 found\)"),
        (1, {"is_causal": False}, "block 0 passes is_causal to attention"),
        (0, {}, "they use shape of cached keys outside of attention"),
    ],
)
def test_what_blocks_do_with_cache_and_attention_is_named(
    monkeypatch: pytest.MonkeyPatch, num_calls: int, arguments: dict[str, Any], reason: str
) -> None:
    def forward(self: LlamaAttention, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        states = hidden_states.unflatten(-1, (4, 16)).transpose(1, 2)
        keys, values = kwargs[CACHE].update(states, states, self.layer_idx)
        attend = AttentionInterface()[self.config._attn_implementation]
        for _ in range(num_calls):
            outputs, _ = attend(self, states, keys, values, None, **arguments)
        return (outputs.flatten(-2) if num_calls else keys.shape), None

    monkeypatch.setattr(LlamaAttention, "forward", forward)
    with pytest.raises(UnsupportedModelError, match=reason):
        check_supported(LlamaConfig(**SMALL))


def test_a_model_is_refused_exactly_if_transformers_lets_it_look_ahead() -> None:
    """transformers before 5.3 takes no notice of is_causal."""
    config = LlamaConfig(**SMALL, is_causal=False)
    model = random_model(config)
    ids = random_ids(3, seed=0)
    if torch.allclose(expected_hidden(model, ids)[:1], expected_hidden(model, ids[:1]), atol=1e-5):
        check_supported(config)
    else:
        with pytest.raises(UnsupportedModelError, match="passes is_causal to attention"):
            check_supported(config)


def test_the_cache_takes_keys_and_values_of_every_block() -> None:
    per_block = 2 * 2 * 16  # keys and values, two heads of 16
    config = FAMILIES["llama"]
    assert cache_bytes_per_token(config, Span(0, NUM_BLOCKS), dtype=torch.float32) == NUM_BLOCKS * per_block * 4
    assert cache_bytes_per_token(config, Span(2, 4), dtype=torch.bfloat16) == 2 * per_block * 2
