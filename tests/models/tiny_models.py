"""Tiny models of several families with random weights, and chains of runners over them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.gemma2 import modeling_gemma2

from chainserve.models.cache import KVCache
from chainserve.models.runner import Runner
from chainserve.models.skeleton import build_skeleton
from chainserve.protocol.messages import Step
from chainserve.types import SessionId, Span

NUM_BLOCKS, HIDDEN, VOCAB, WINDOW = 6, 64, 128, 5
TOLERANCE = 3e-5
"""Of the largest hidden value: some hundred roundings of float32, of which processors make different ones."""
SPANS = (Span(0, 2), Span(2, 5), Span(5, 6))
A, B, C = (SessionId(name * 16) for name in (b"a", b"b", b"c"))

_SIZES = {
    "num_hidden_layers": NUM_BLOCKS,
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "pad_token_id": None,
}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

FAMILIES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_SIZES),
    "qwen3": Qwen3Config(**_SIZES),
    "mistral": MistralConfig(**_SIZES, sliding_window=WINDOW),
    "gemma2": Gemma2Config(**_SIZES, sliding_window=WINDOW, query_pre_attn_scalar=16),
    "gemma3": Gemma3TextConfig(**_SIZES, sliding_window=WINDOW, query_pre_attn_scalar=16, sliding_window_pattern=3),
    "mixtral": MixtralConfig(**_SIZES, **_EXPERTS),
    "qwen3-moe": Qwen3MoeConfig(**_SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32),
    "gpt-oss": GptOssConfig(**_SIZES, **_EXPERTS, sliding_window=WINDOW),
}
if not hasattr(modeling_gemma2, "Gemma2TextScaledWordEmbedding"):
    del FAMILIES["gemma2"]  # before transformers 5.4 its forward scales what it is given, which is refused


def random_model(config: PretrainedConfig) -> PreTrainedModel:
    """The whole model, with weights large enough that every part of it matters."""
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2, generator=generator)
    return model


def filled(skeleton: PreTrainedModel, model: PreTrainedModel) -> PreTrainedModel:
    """The skeleton with the weights it lacks taken from the whole model."""
    weights = model.state_dict()
    skeleton.load_state_dict({name: weights[name] for name in skeleton.state_dict()}, assign=True)
    return skeleton.to(model.device)  # buffers that no checkpoint holds


class TinyChain:
    """Runners over spans of one model, called one after another as servers would be."""

    def __init__(self, model: PreTrainedModel, spans: Sequence[Span] = SPANS, *, budget_tokens: int = 200) -> None:
        self.model = model
        self.spans = spans
        self.runners = [
            Runner(filled(build_skeleton(model.config, span), model), span, KVCache(span, budget_tokens=budget_tokens))
            for span in spans
        ]

    def open(self, session: SessionId, *, num_lanes: int = 1, max_tokens: int = 40) -> None:
        for runner in self.runners:
            runner.cache.reserve(session, runner.span, num_lanes=num_lanes, max_tokens=max_tokens)

    def reorder(self, session: SessionId, sources: Sequence[int]) -> None:
        for runner in self.runners:
            runner.cache.reorder(session, sources)

    def run(self, *pieces: tuple[SessionId, int, Tensor], lane: int = 0) -> list[Tensor]:
        """One packed batch of (session, start, hidden states); the last block's outputs of each."""
        steps = [Step(session, lane, start, len(hidden), len(hidden)) for session, start, hidden in pieces]
        packed = torch.cat([hidden for *_, hidden in pieces])
        for runner in self.runners:
            packed = runner.forward(packed, steps, runner.span)
        return list(packed.split([len(hidden) for *_, hidden in pieces]))


def embeddings(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model.get_input_embeddings()(ids)


def last_hidden(model: PreTrainedModel, outputs: Tensor) -> Tensor:
    """What the whole model calls its last hidden state, from the last block's outputs."""
    return model.base_model.norm(outputs)


def expected_hidden(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """transformers' own forward of one sequence, all blocks at once: (tokens, hidden)."""
    return model.base_model(ids.unsqueeze(0), use_cache=False).last_hidden_state[0]


def assert_close(hidden: Tensor, expected: Tensor) -> None:
    assert (hidden - expected).abs().max() <= TOLERANCE * expected.abs().max()


def random_ids(num_tokens: int, *, seed: int) -> Tensor:
    return torch.randint(VOCAB, (num_tokens,), generator=torch.Generator().manual_seed(seed))
