"""What is measured of a model's blocks: with a runner that only moves a clock, and through real blocks."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest
import torch
from tiny_models import FAMILIES, HIDDEN, NUM_BLOCKS, random_model
from transformers import PretrainedConfig

from chainserve.models import measure as measuring
from chainserve.models.cache import KVCache
from chainserve.models.load import bytes_by_block
from chainserve.models.measure import (
    BATCHES,
    CACHE_TOKENS,
    CHUNKS,
    LONG_CONTEXT_TOKENS,
    MAX_ROUNDS,
    MIN_ROUNDS,
    largest_batch_bytes,
    last_of_each_kind,
    measure,
    peak_bytes,
    random_runner,
    time_blocks,
)
from chainserve.models.skeleton import build_skeleton
from chainserve.planning.profile import MAX_BATCH_TOKENS, MAX_OUTPUTS
from chainserve.planning.times import BlockTimes
from chainserve.protocol.messages import Step
from chainserve.types import Span

SPAN = Span(3, 7)
SPAN_OF_TWO = Span(3, 5)
CPU = torch.device("cpu")


class KnownSpeed:
    """Stands for a runner and for the clock: forwards take known times, and steps are checked by a real cache."""

    dtype, device, span = torch.float32, CPU, SPAN

    def __init__(self, *, slower: float = 1.0) -> None:
        self.cache = KVCache(SPAN, budget_tokens=CACHE_TOKENS)
        self.now_s = 0.0
        self.forwards: Counter[tuple[int, int, int]] = Counter()  # (blocks, sessions, tokens of each)
        self.num_heads: Counter[int] = Counter()  # by outputs
        self._slower = slower
        self.is_warm = False

    @property
    def ends(self) -> "KnownSpeed":
        return self

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self.now_s += self._slower * (0.003 + 0.001 * len(hidden))
        self.num_heads[len(hidden)] += 1
        return hidden

    def clock(self) -> float:
        return self.now_s

    def warm_up(self) -> None:
        assert not self.forwards
        self.is_warm = True

    def forward(self, hidden: torch.Tensor, steps: Sequence[Step], span: Span) -> torch.Tensor:
        assert self.is_warm
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
    assert times.head_s == pytest.approx(0.004)
    assert times.head == tuple((num, pytest.approx(0.003 + 0.001 * num)) for num in BATCHES)
    expected = BlockTimes(overhead_s=0.004, prefill_s=0.0001, decode_s=0.002)
    assert (times.block.overhead_s, times.block.prefill_s, times.block.decode_s) == pytest.approx(
        (expected.overhead_s, expected.prefill_s, expected.decode_s)
    )


def test_rounds_are_as_many_as_the_time_allows() -> None:
    quick, slow = time_known(KnownSpeed(slower=0.1)), time_known(KnownSpeed(slower=2))
    for timings, num_rounds in ((quick, MAX_ROUNDS), (slow, MIN_ROUNDS)):
        assert {size: len(rounds) for size, rounds in timings.prefill.items()} == dict.fromkeys(CHUNKS, num_rounds)
        for by_number in (timings.decode, timings.head):
            assert {num: len(rounds) for num, rounds in by_number.items()} == dict.fromkeys(BATCHES, num_rounds)
        assert len(timings.one_block) == num_rounds * len(SPAN)


def test_chunks_that_would_take_too_long_are_left_out() -> None:
    runner = KnownSpeed(slower=100)
    timings = time_known(runner)
    assert tuple(timings.prefill) == CHUNKS[:2]
    assert runner.forwards[len(SPAN), 1, CHUNKS[-1]] == 0
    assert timings.step_times().block.prefill_s == pytest.approx(0.01)
    assert tuple(timings.head) == BATCHES[:3]  # two outputs take half a second, four are the first to take longer


def test_a_runner_is_warm_before_it_is_timed() -> None:
    runner = KnownSpeed(slower=2)
    time_known(runner)
    for num in BATCHES:
        assert runner.forwards[len(SPAN), num, 1] == MIN_ROUNDS
        assert runner.num_heads[num] == MIN_ROUNDS + 1
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
    assert profile.times.head_s > 0
    as_they_come = MAX_BATCH_TOKENS * HIDDEN * 4
    rows = MAX_BATCH_TOKENS * HIDDEN * dtype.itemsize  # as joined, normed, added to, and given back
    assert profile.activation_bytes > as_they_come + 5 * rows


def changed(family: str, **changes: object) -> PretrainedConfig:
    return type(FAMILIES[family])(**(FAMILIES[family].to_dict() | changes))


def in_one_block(config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> int:
    """`largest_batch_bytes` of the last block."""
    runner = random_runner(config, Span(NUM_BLOCKS - 1, NUM_BLOCKS), dtype=dtype, device=CPU)
    return largest_batch_bytes(runner, runner.span, HIDDEN)


def test_the_peak_of_memory_is_what_lives_at_once() -> None:
    def run() -> None:
        first = torch.zeros(1000)  # 4,000 bytes
        second = first + 1
        del first
        torch.cat([second, second[:500]])
        torch.zeros(10)

    assert peak_bytes(run, CPU) == 4000 + 6000
    assert peak_bytes(lambda: None, CPU) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_grow_with_what_blocks_compute(dtype: torch.dtype) -> None:
    small, large = (in_one_block(changed("llama", intermediate_size=width), dtype) for width in (8000, 16_000))
    assert large - small == 3 * MAX_BATCH_TOKENS * 8000 * dtype.itemsize  # gate, up and their product


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_as_many_outputs_as_may_be_are_activations(dtype: torch.dtype) -> None:
    small, large = (in_one_block(changed("llama", vocab_size=size), dtype) for size in (100_000, 200_000))
    # In another dtype they are there as the head gives them, too.
    row_bytes = 4 if dtype == torch.float32 else 4 + dtype.itemsize
    assert large - small == MAX_OUTPUTS * 100_000 * row_bytes
    assert small > MAX_OUTPUTS * 100_000 * row_bytes


def test_scores_of_attention_to_a_long_context_are_activations() -> None:
    scores = 4 * (MAX_BATCH_TOKENS - 1) * LONG_CONTEXT_TOKENS * 4
    assert in_one_block(FAMILIES["gpt-oss"]) > scores  # its sinks no kernel knows
    assert in_one_block(FAMILIES["llama"]) < scores


@pytest.mark.parametrize(
    ("family", "num_held"),
    [("llama", 1), ("gemma3", 0), ("mixtral", 1)],  # a window's mask takes most, and is made in the first block
)
def test_one_block_takes_what_several_take_but_for_what_came_in(family: str, num_held: int) -> None:
    runner = random_runner(FAMILIES[family], Span(3, 6), dtype=torch.float32, device=CPU)
    one = max(largest_batch_bytes(runner, Span(block, block + 1), HIDDEN) for block in range(3, 6))
    two, three = (largest_batch_bytes(runner, Span(start, 6), HIDDEN) for start in (4, 3))
    assert two == three == one + num_held * MAX_BATCH_TOKENS * HIDDEN * 4


def test_measuring_activations_leaves_nothing_in_the_cache() -> None:
    runner = random_runner(FAMILIES["llama"], SPAN_OF_TWO, dtype=torch.float32, device=CPU)
    free = runner.cache.free_tokens
    assert len({largest_batch_bytes(runner, SPAN_OF_TWO, HIDDEN) for _ in range(2)}) == 1
    runner.cache.check()
    assert runner.cache.free_tokens == free


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        (FAMILIES["llama"], {5}),
        (FAMILIES["gemma3"], {4, 5}),  # one of three sees everything
        (changed("qwen3-moe", mlp_only_layers=[0, 1]), {1, 5}),
    ],
    ids=["llama", "gemma3", "qwen3-moe"],
)
def test_of_each_kind_of_block_the_last_is_found(config: PretrainedConfig, kinds: set[int]) -> None:
    assert last_of_each_kind(config, bytes_by_block(config, torch.float32)) == kinds


@pytest.mark.usefixtures("one_quick_round")
def test_the_block_that_takes_most_counts_wherever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "COLD_BYTES", 1)
    config = changed("qwen3-moe", mlp_only_layers=[0], intermediate_size=4000)
    profile = measure(config, dtype=torch.float32, device=CPU)
    assert profile.block_bytes == bytes_by_block(config, torch.float32)[0]
    assert profile.activation_bytes > 3 * MAX_BATCH_TOKENS * 4000 * 4
    assert in_one_block(config) < profile.activation_bytes / 2


CHILD = """
import sys
import torch
from chainserve.models.measure import largest_batch_bytes, random_runner
from chainserve.models.resolve import resolve
from chainserve.types import Span

def resident(what):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(what))

config, dtype = resolve("smollm2-135m").config, getattr(torch, sys.argv[1])
runner = random_runner(config, Span(28, 30), dtype=dtype, device=torch.device("cpu"))
largest_batch_bytes(runner, runner.span, config.hidden_size)  # what is set up with the first forward stays
with open("/proc/self/clear_refs", "w") as clear:
    clear.write("5")  # VmHWM starts again
before = resident("VmRSS")
foretold = largest_batch_bytes(runner, runner.span, config.hidden_size)
print((resident("VmHWM") - before) / foretold)
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_process_grows_by_what_was_foretold(dtype: str) -> None:
    """Where the allocator gives back what is freed: by itself glibc keeps pieces below 32 MB, and grows by more."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(128 << 10), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", CHILD, dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == ""
    assert 0.75 < float(done.stdout) < 1.25


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
