"""Random models small enough to save in a test, and a skeleton filled from them."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedModel

from chainserve.models.load import LoadReport, load_weights
from chainserve.models.skeleton import build_skeleton
from chainserve.models.source import ModelSource
from chainserve.types import Span

CPU = torch.device("cpu")


def tiny_llama(*, tied: bool = False, num_blocks: int = 6) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=num_blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


def tiny_mixtral(*, intermediate_size: int = 48) -> PreTrainedModel:
    torch.manual_seed(0)
    config = MixtralConfig(
        hidden_size=32,
        intermediate_size=intermediate_size,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        vocab_size=96,
    )
    return MixtralForCausalLM(config)


def save(model: PreTrainedModel, folder: Path, *, max_shard_size: str = "10GB") -> Path:
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def load(
    source: ModelSource,
    span: Span | None,
    *,
    embed: bool = False,
    head: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[PreTrainedModel, LoadReport]:
    skeleton = build_skeleton(source.config, span, embed=embed, head=head)
    return skeleton, load_weights(skeleton, source, dtype=dtype, device=CPU, progress=False)


def assert_same_weights(part: PreTrainedModel, whole: PreTrainedModel) -> None:
    """Every weight that `part` holds is bit for bit that of `whole`, in the dtype of `part`."""
    expected = whole.state_dict()
    found = part.state_dict()
    assert found
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name].to(tensor.dtype)), name
