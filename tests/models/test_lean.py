"""Which blocks are run with fewer operators, and that they give what the family's own forward gives."""

from typing import Any, cast

import pytest
import torch
from tiny_models import FAMILIES, HIDDEN, NUM_BLOCKS, filled, random_model
from torch import Tensor, nn
from transformers import GraniteConfig, LlamaConfig, PretrainedConfig, PreTrainedModel

from chainserve.models import lean
from chainserve.models.cache import KVCache
from chainserve.models.measure import random_runner
from chainserve.models.runner import Runner
from chainserve.models.skeleton import build_skeleton
from chainserve.protocol.messages import Step
from chainserve.types import SessionId, Span

WHOLE = Span(0, NUM_BLOCKS)
SESSION = SessionId(bytes(16))
MANY = 40


def runner_of(config: PretrainedConfig, *, dtype: torch.dtype = torch.float32) -> Runner:
    return Runner(skeleton_of(config, dtype), WHOLE, KVCache(WHOLE, budget_tokens=100))


def skeleton_of(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    return filled(build_skeleton(config, WHOLE), random_model(config).to(dtype))


def is_lean(runner: Runner) -> bool:
    return all(isinstance(block, lean.LeanBlock) for block in runner.blocks)


def granite(**changes: Any) -> GraniteConfig:
    """Llama's parts, with factors that no part shows."""
    plain = {"embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0}
    return GraniteConfig(**FAMILIES["llama"].to_diff_dict() | {"model_type": "granite"} | plain | changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
def test_the_usual_blocks_are_lean_and_give_the_same(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = (MANY, *[1] * 8)  # a prompt, and what is decoded after it
    hidden = torch.randn(sum(sizes), HIDDEN, generator=torch.Generator().manual_seed(1)).to(dtype)

    def outputs(runner: Runner) -> Tensor:
        runner.cache.reserve(SESSION, WHOLE, num_lanes=1, max_tokens=len(hidden))
        start, parts = 0, []
        for size in sizes:
            step = Step(SESSION, 0, start, size, size)
            parts.append(runner.forward(hidden[start : start + size], [step], WHOLE))
            start += size
        return torch.cat(parts)

    runner = runner_of(FAMILIES[family], dtype=dtype)
    assert is_lean(runner)
    few = outputs(runner)
    monkeypatch.setattr(lean, "make_lean", lambda *_args, **_options: None)
    own = outputs(runner_of(FAMILIES[family], dtype=dtype))
    assert (few - own).abs().max() <= NUM_BLOCKS * lean.TOLERANCE[dtype] * own.abs().max()
    if dtype == torch.float32:
        assert not torch.equal(few, own), "the lean way was not taken"


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("llama", "qwen3", "mistral")])
def test_blocks_of_other_parts_run_by_their_own_forward(family: str) -> None:
    assert not is_lean(runner_of(FAMILIES[family]))


def test_the_usual_parts_put_together_in_another_way_are_noticed() -> None:
    assert is_lean(runner_of(granite(attention_multiplier=0.3)))  # attention is told
    assert not is_lean(runner_of(granite(residual_multiplier=0.9)))


def test_biases_and_other_activations_are_taken_along() -> None:
    config = LlamaConfig(
        **FAMILIES["llama"].to_diff_dict() | {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}
    )
    assert is_lean(runner_of(config))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_random_weights_are_lean_so_that_a_profile_is_of_what_will_run(dtype: torch.dtype) -> None:
    """What such blocks add is so small that much of it is lost where it is added to hidden states in 16 bits."""
    config = LlamaConfig(**FAMILIES["llama"].to_diff_dict() | {"hidden_size": 576, "intermediate_size": 1536})
    assert is_lean(random_runner(config, WHOLE, dtype=dtype, device=torch.device("cpu")))


def test_blocks_of_both_kinds_run_one_after_the_other() -> None:
    """Layers of a kind that is not known are left alone, and so is their block."""

    class Quantized(nn.Linear):
        pass

    skeleton = skeleton_of(FAMILIES["llama"], torch.float32)
    cast(Any, skeleton).model.layers[3].mlp.up_proj.__class__ = Quantized
    mixed, usual = Runner(skeleton, WHOLE, KVCache(WHOLE, budget_tokens=100)), runner_of(FAMILIES["llama"])
    assert [isinstance(block, lean.LeanBlock) for block in mixed.blocks] == [number != 3 for number in WHOLE]
    hidden = torch.randn(1, HIDDEN)
    for runner in (mixed, usual):
        runner.cache.reserve(SESSION, WHOLE, num_lanes=1, max_tokens=4)
    given, wanted = (runner.forward(hidden, [Step(SESSION, 0, 0, 1, 1)], WHOLE) for runner in (mixed, usual))
    torch.testing.assert_close(given, wanted)


@pytest.mark.parametrize("biased", [(), (1,), (0, 2)])
def test_joined_layers_give_what_each_gives_side_by_side(biased: tuple[int, ...]) -> None:
    layers = [nn.Linear(8, size, bias=place in biased) for place, size in enumerate((6, 2, 4))]
    rows = torch.randn(3, 8)
    wanted = torch.cat([layer(rows) for layer in layers], dim=1)
    torch.testing.assert_close(lean.joined(layers)(rows), wanted)
    layers[1].__class__ = type("Other", (nn.Linear,), {})
    torch.testing.assert_close(lean.joined(layers)(rows), wanted)


def test_rotations_are_those_of_the_family_wherever_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some from what was made first, some from what that grew to, and some beyond the most that is kept."""
    monkeypatch.setattr(lean, "LEAST_ROTATIONS", 8)
    monkeypatch.setattr(lean, "MOST_ROTATIONS", 64)
    base, like = runner_of(FAMILIES["llama"])._base, torch.empty(0, HIDDEN)
    rotations = lean.Rotations(base, like=like)
    for places in ([0, 5], [7], [9, 63, 2], [1, 64], [30]):
        positions = torch.tensor(places)
        given, wanted = rotations.at(positions), lean.Rotation.at(base, like, positions)
        torch.testing.assert_close(given.cosines, wanted.cosines)
        torch.testing.assert_close(given.sines, wanted.sines)


def test_what_is_known_of_a_block_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that stay when others come are running meanwhile."""
    for family in ("llama", "mixtral"):
        skeleton = skeleton_of(FAMILIES[family], torch.float32)
        before = [*Runner(skeleton, WHOLE, KVCache(WHOLE, budget_tokens=100)).blocks]
        with monkeypatch.context() as patch:
            patch.setattr(lean, "_lean", None)
            again = Runner(skeleton, WHOLE, KVCache(WHOLE, budget_tokens=100))
        assert all(one is other for one, other in zip(before, again.blocks, strict=True))
        assert skeleton.config._attn_implementation != lean.ASKS
