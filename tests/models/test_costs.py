"""What a model costs, from its config alone."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from tiny_checkpoints import save, tiny_llama
from tiny_models import FAMILIES, HIDDEN, NUM_BLOCKS, VOCAB
from transformers import PretrainedConfig

from chainserve.errors import UnsupportedModelError
from chainserve.models.checkpoint import open_folder
from chainserve.models.costs import EndCosts, ModelCosts, end_costs, model_costs
from chainserve.models.load import memory_bytes
from chainserve.models.skeleton import build_skeleton
from chainserve.models.source import ModelSource
from chainserve.types import Span


def costs_of(config: PretrainedConfig, dtype: torch.dtype = torch.bfloat16) -> ModelCosts:
    return model_costs(cast(ModelSource, SimpleNamespace(config=config, num_blocks=NUM_BLOCKS)), dtype)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_takes_what_loading_one_takes(family: str) -> None:
    costs = costs_of(FAMILIES[family])
    assert costs.num_blocks == NUM_BLOCKS
    assert costs.block_bytes == memory_bytes(build_skeleton(FAMILIES[family], Span(0, 1)), torch.bfloat16)
    assert costs.token_bytes == 2 * 2 * 16 * 2  # keys and values of 2 heads of 16, 2 bytes each


def test_a_dense_block_uses_every_weight_for_every_token() -> None:
    costs = costs_of(FAMILIES["llama"], torch.float32)
    assert costs.active_bytes == costs.block_bytes
    assert costs.flop_per_token == 2 * costs.block_bytes / 4


def test_of_experts_only_those_chosen_count() -> None:
    costs = costs_of(FAMILIES["mixtral"])
    experts_bytes = 4 * 3 * HIDDEN * 96 * 2  # 2 of these 4 run
    assert costs.block_bytes - costs.active_bytes == experts_bytes / 2
    assert costs.flop_per_token == costs.active_bytes  # two bytes per weight, two operations


def test_the_largest_block_stands_for_all() -> None:
    config = type(FAMILIES["qwen3-moe"])(**{**FAMILIES["qwen3-moe"].to_dict(), "mlp_only_layers": [0]})
    sizes = [memory_bytes(build_skeleton(config, Span(block, block + 1)), torch.bfloat16) for block in (0, 1)]
    assert sizes[0] != sizes[1]
    assert costs_of(config).block_bytes == max(sizes)


def test_no_weights_are_read_for_it(tmp_path: Path) -> None:
    source = open_folder(save(tiny_llama(), tmp_path))
    assert source.take_traffic().read > 0  # headers
    assert model_costs(source, torch.float16).num_blocks == NUM_BLOCKS
    traffic = source.take_traffic()
    assert (traffic.read, traffic.downloaded) == (0, 0)


@pytest.mark.parametrize("tied", [True, False])
def test_ends_that_share_their_weights_are_known(tied: bool) -> None:
    config = type(FAMILIES["llama"])(**{**FAMILIES["llama"].to_dict(), "tie_word_embeddings": tied})
    costs = costs_of(config)
    assert costs.is_tied is tied
    assert costs.embedding_bytes == VOCAB * HIDDEN * 2
    assert costs.head_bytes == (VOCAB + 1) * HIDDEN * 2  # with the final norm
    assert end_costs(config, torch.bfloat16) == EndCosts(costs.embedding_bytes, costs.head_bytes, is_tied=tied)


def test_a_model_that_cannot_be_run_is_refused() -> None:
    config = type(FAMILIES["llama"])(
        **{**FAMILIES["llama"].to_dict(), "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}
    )
    with pytest.raises(UnsupportedModelError, match="dynamic"):
        costs_of(config)
