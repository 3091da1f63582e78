"""What a server's books say of weights: blocks, and the ends of the model that come with the first and the last."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from moving_server import (
    BLOCK_BYTES,
    EMBEDDING_BYTES,
    ENDS_BYTES,
    HEAD_BYTES,
    NUM_BLOCKS,
    PROFILE,
    TOKEN_BYTES,
    small_model,
)

from chainserve.errors import OutOfMemoryError
from chainserve.models.ends import end_skeleton, ends_of
from chainserve.models.load import memory_bytes
from chainserve.models.skeleton import build_skeleton
from chainserve.types import Span
from chainserve_server import prepare as preparing
from chainserve_server.config import MemoryRequest, ServerConfig
from chainserve_server.devices import MIN_CACHE_TOKENS
from chainserve_server.prepare import Prepared, lightest_block, prepare

NORM_BYTES = HEAD_BYTES - EMBEDDING_BYTES
ACTIVATION_BYTES = PROFILE.activation_bytes
SPANS = [Span(start, end) for start in range(NUM_BLOCKS) for end in range(start + 1, NUM_BLOCKS + 1)]


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def prepared(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    with small_model(tmp_path, tied=request.param):
        monkeypatch.setattr(preparing, "profile_of", lambda *_, **__: replace(PROFILE, is_tied=request.param))
        return prepared_for(tmp_path, num_bytes=10**9)


def prepared_for(folder: Path, *, num_bytes: int, blocks: Span | None = None) -> Prepared:
    memory = MemoryRequest(num_bytes=num_bytes)
    return prepare(ServerConfig(model=str(folder), memory=memory, blocks=blocks, dtype="float32"))


def test_ends_count_with_the_first_and_the_last_block(prepared: Prepared) -> None:
    whole_bytes = NUM_BLOCKS * BLOCK_BYTES + HEAD_BYTES + (0 if prepared.profile.is_tied else EMBEDDING_BYTES)
    assert prepared.weight_bytes(None) == 0
    assert prepared.weight_bytes(Span(2, 4)) == 2 * BLOCK_BYTES
    assert prepared.weight_bytes(Span(0, 2)) == 2 * BLOCK_BYTES + EMBEDDING_BYTES
    assert prepared.weight_bytes(Span(5, 6)) == BLOCK_BYTES + HEAD_BYTES
    assert prepared.weight_bytes(Span(0, 6)) == whole_bytes


def test_what_is_counted_is_what_blocks_and_ends_take_once_loaded(prepared: Prepared) -> None:
    config = prepared.source.config
    for span in SPANS:
        loaded_bytes = memory_bytes(build_skeleton(config, span), torch.float32)
        names = set[str]()
        for end in ends_of(span, NUM_BLOCKS):
            skeleton = end_skeleton(config, end)
            tied = skeleton.all_tied_weights_keys
            for name, weight in skeleton.named_parameters():
                if (shared := tied.get(name, name)) not in names:
                    loaded_bytes += weight.numel() * 4
                    names.add(shared)
        assert prepared.weight_bytes(span) == loaded_bytes


@pytest.mark.parametrize("blocks", [Span(0, 2), Span(2, 4), Span(4, 6), Span(0, 6)])
def test_pinned_blocks_need_room_for_their_ends(blocks: Span, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "profile_of", lambda *_, **__: PROFILE)
    end_bytes = EMBEDDING_BYTES * (blocks.start == 0) + HEAD_BYTES * (blocks.end == NUM_BLOCKS)
    cache_bytes = len(blocks) * MIN_CACHE_TOKENS * TOKEN_BYTES
    least = ACTIVATION_BYTES + len(blocks) * BLOCK_BYTES + end_bytes + cache_bytes
    with small_model(tmp_path):
        found = prepared_for(tmp_path, num_bytes=least, blocks=blocks)
        assert found.cache_tokens(blocks, found.left_bytes(found.weight_bytes(blocks))) == MIN_CACHE_TOKENS
        with pytest.raises(OutOfMemoryError, match=f"{len(blocks)} blocks need"):
            prepared_for(tmp_path, num_bytes=least - 1, blocks=blocks)


def test_a_server_too_small_for_any_end_may_hold_a_block_between_them() -> None:
    assert lightest_block(PROFILE, NUM_BLOCKS) == BLOCK_BYTES
    assert lightest_block(PROFILE, 3) == BLOCK_BYTES
    assert lightest_block(PROFILE, 2) == BLOCK_BYTES + min(EMBEDDING_BYTES, HEAD_BYTES)
    assert lightest_block(PROFILE, 1) == BLOCK_BYTES + ENDS_BYTES
    assert lightest_block(replace(PROFILE, is_tied=True), 1) == BLOCK_BYTES + EMBEDDING_BYTES + NORM_BYTES
