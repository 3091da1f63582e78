"""What is measured of a model's blocks: with a runner that only moves a clock, and through real blocks."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest
import torch
from tiny_models import FAMILIES, HIDDEN, NUM_BLOCKS, random_model

from chainserve.models import measure as measuring
from chainserve.models.cache import KVCache
from chainserve.models.measure import BATCHES, CACHE_TOKENS, CHUNKS, MAX_ROUNDS, MIN_ROUNDS, measure, time_blocks
from chainserve.models.skeleton import build_skeleton
from chainserve.planning.times import BlockTimes
from chainserve.protocol.messages import Step
from chainserve.types import Span

SPAN = Span(3, 7)
CPU = torch.device("cpu")


class KnownSpeed:
    """Stands for a runner and for the clock: forwards take known times, and steps are checked by a real cache."""

    dtype, device, span = torch.float32, CPU, SPAN

    def __init__(self, *, slower: float = 1.0) -> None:
        self.cache = KVCache(SPAN, budget_tokens=CACHE_TOKENS)
        self.now_s = 0.0
        self.forwards: Counter[tuple[int, int, int]] = Counter()  # (blocks, sessions, tokens of each)
        self._slower = slower

    def clock(self) -> float:
        return self.now_s

    def forward(self, hidden: torch.Tensor, steps: Sequence[Step], span: Span) -> torch.Tensor:
        assert hidden.shape == (sum(step.num_tokens for step in steps), HIDDEN)
        self.cache.begin(steps, span).commit()
        num, tokens = len(steps), steps[0].num_tokens
        block_s = 0.002 + 0.0005 * (num - 1) if tokens == 1 else 0.004 + 0.0001 * len(hidden)
        self.now_s += self._slower * (0.001 + len(span) * block_s)
        self.forwards[len(span), num, tokens] += 1
        return hidden


def time_known(runner: KnownSpeed) -> Any:
    return time_blocks(cast(Any, runner), HIDDEN, clock=runner.clock)


def test_known_speeds_are_found() -> None:
    times = time_known(KnownSpeed()).step_times()
    assert times.forward_s == pytest.approx(0.001)
    assert times.session_s == pytest.approx(0.0005)
    expected = BlockTimes(overhead_s=0.004, prefill_s=0.0001, decode_s=0.002)
    assert (times.block.overhead_s, times.block.prefill_s, times.block.decode_s) == pytest.approx(
        (expected.overhead_s, expected.prefill_s, expected.decode_s)
    )


def test_rounds_are_as_many_as_the_time_allows() -> None:
    quick, slow = time_known(KnownSpeed(slower=0.1)), time_known(KnownSpeed(slower=2))
    for timings, num_rounds in ((quick, MAX_ROUNDS), (slow, MIN_ROUNDS)):
        assert {size: len(rounds) for size, rounds in timings.prefill.items()} == dict.fromkeys(CHUNKS, num_rounds)
        assert {num: len(rounds) for num, rounds in timings.decode.items()} == dict.fromkeys(BATCHES, num_rounds)
        assert len(timings.one_block) == num_rounds * len(SPAN)


def test_chunks_that_would_take_too_long_are_left_out() -> None:
    runner = KnownSpeed(slower=100)
    timings = time_known(runner)
    assert tuple(timings.prefill) == CHUNKS[:2]
    assert runner.forwards[len(SPAN), 1, CHUNKS[-1]] == 0
    assert timings.step_times().block.prefill_s == pytest.approx(0.01)


def test_a_runner_is_warm_before_it_is_timed() -> None:
    runner = KnownSpeed(slower=2)
    time_known(runner)
    for num in BATCHES:
        assert runner.forwards[len(SPAN), num, 1] == MIN_ROUNDS
    for size in CHUNKS[1:]:
        assert runner.forwards[len(SPAN), 1, size] == MIN_ROUNDS + 1


@pytest.fixture
def one_quick_round(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Measure once, in one thread: several wait long for each other on a busy machine."""
    monkeypatch.setattr(measuring, "MIN_ROUNDS", 1)
    monkeypatch.setattr(measuring, "MAX_ROUNDS", 1)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.usefixtures("one_quick_round")
@pytest.mark.parametrize(
    ("family", "dtype"), [*((family, torch.float32) for family in FAMILIES), ("llama", torch.bfloat16)]
)
def test_blocks_of_every_family_are_measured(family: str, dtype: torch.dtype) -> None:
    config = FAMILIES[family]
    profile = measure(config, dtype=dtype, device=CPU)
    model = random_model(config)
    weights = model.base_model.layers[-1].state_dict().values()
    assert profile.block_bytes == sum(weight.numel() for weight in weights) * dtype.itemsize
    assert profile.token_bytes == 2 * 2 * 16 * dtype.itemsize  # keys and values of two heads
    embedding = model.get_input_embeddings().weight
    assert profile.embedding_bytes == embedding.numel() * dtype.itemsize
    assert profile.head_bytes == (embedding.numel() + HIDDEN) * dtype.itemsize
    assert profile.is_tied == config.tie_word_embeddings
    assert profile.times.step_s(3, 40, num_blocks=NUM_BLOCKS) > 0


def test_random_weights_are_finite_and_of_the_dtype_asked_for() -> None:
    span = Span(1, 3)
    skeleton = build_skeleton(FAMILIES["mixtral"], span)
    model = measuring.with_random_weights(skeleton, dtype=torch.bfloat16, device=CPU)
    for weight in model.state_dict().values():
        assert weight.dtype == torch.bfloat16
        assert weight.isfinite().all()
        assert weight.unique().numel() > 1


def test_large_weights_repeat_numbers_and_no_two_rows_are_equal() -> None:
    like = torch.empty(1100, 1024, device="meta")
    noise = measuring.random_weight(like, dtype=torch.float32, device=CPU)
    assert noise.shape == like.shape
    assert noise.unique(dim=0).shape == like.shape
