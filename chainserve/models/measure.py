"""Time a model's own blocks on a device, through the runner that serves them; random weights are as good as real ones.

Decode steps and prefill chunks of several sizes take turns in rounds, so that a slow moment touches all alike, and the
median of the rounds counts. Steps come and go as bytes, as those of peers do, which also waits for the device.
"""

import time
from collections.abc import Callable, Sequence
from itertools import count

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from chainserve.models.cache import KVCache
from chainserve.models.conversion import weight_dtypes
from chainserve.models.load import memory_bytes
from chainserve.models.runner import Runner
from chainserve.models.skeleton import blocks_of, build_skeleton
from chainserve.models.support import cache_bytes_per_token
from chainserve.models.wire import from_wire, to_wire
from chainserve.planning.profile import BlockProfile, Timings
from chainserve.protocol.messages import Step
from chainserve.types import SessionId, Span

CHUNKS = (8, 32, 128, 512)
"""Tokens of a prefill chunk; clients send no longer ones."""
BATCHES = (1, 2, 4, 8, 16)
"""Sessions of a decode step."""
CONTEXT_TOKENS = 8
"""What a decoding session has cached; attention to more adds little to the weights that a step reads."""
CACHE_TOKENS = (max(BATCHES) + 1) * (CONTEXT_TOKENS + 1) + max(CHUNKS)
"""For the sessions of a batch, one through each block alone, and one for chunks."""
COLD_BYTES = 64 << 20
"""Weights to measure with: more than caches hold, as blocks of a served span are not in them either."""
MIN_ROUNDS, MAX_ROUNDS = 3, 7
BUDGET_S = 2.0
"""No further round begins after this, once there are enough."""
SLOW_S = 0.5
"""Chunks longer than one that took this are left out."""

Clock = Callable[[], float]


def measure(
    config: PretrainedConfig, *, dtype: torch.dtype, device: torch.device, clock: Clock = time.perf_counter
) -> BlockProfile:
    """Measure the blocks of a model that `check_supported` accepts; takes about three seconds for small models.

    Takes memory for two blocks, or for `COLD_BYTES` of smaller ones.
    """
    num_blocks = config.num_hidden_layers
    last = Span(num_blocks - 1, num_blocks)
    block_bytes = memory_bytes(build_skeleton(config, last), dtype)
    num_measured = min(num_blocks, max(2, -(-COLD_BYTES // block_bytes)))
    span = Span(num_blocks - num_measured, num_blocks)  # of mixtures of experts the first blocks are often dense
    model = with_random_weights(build_skeleton(config, span), dtype=dtype, device=device)
    runner = Runner(model, span, KVCache(span, budget_tokens=CACHE_TOKENS))
    timings = time_blocks(runner, config.hidden_size, clock=clock)
    blocks = blocks_of(model.base_model)
    embedding_bytes, head_bytes, both_bytes = (
        memory_bytes(build_skeleton(config, None, embed=embed, head=head), dtype)
        for embed, head in ((True, False), (False, True), (True, True))
    )
    profile = BlockProfile(
        times=timings.step_times(),
        block_bytes=max(sum(weight.nbytes for weight in blocks[block].state_dict().values()) for block in span),
        embedding_bytes=embedding_bytes,
        head_bytes=head_bytes,
        is_tied=both_bytes < embedding_bytes + head_bytes,
        token_bytes=-(-cache_bytes_per_token(config, span, dtype=dtype) // len(span)),
    )
    if device.type == "cuda":
        del model, blocks, runner
        torch.cuda.empty_cache()  # or what we held would not count as free
    return profile


def with_random_weights(skeleton: PreTrainedModel, *, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The skeleton with small random numbers for weights, of `dtype` or float32 where the family insists on it."""
    dtypes = weight_dtypes(skeleton, dtype)
    weights = {
        name: random_weight(like, dtype=dtypes[name], device=device) for name, like in skeleton.state_dict().items()
    }
    skeleton.load_state_dict(weights, assign=True)
    nn.Module.to(skeleton, device)  # buffers that no checkpoint holds
    return skeleton


def random_weight(like: Tensor, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers in [-0.02, 0.02], the same at every call: a million of them repeated, as many more take long to draw."""
    num_drawn = 1_000_003  # a prime, so that rows of a matrix, by which experts are chosen, differ
    drawn = torch.empty(min(like.numel(), num_drawn)).uniform_(-0.02, 0.02, generator=torch.Generator().manual_seed(0))
    repeated = drawn.to(device=device, dtype=dtype).repeat(-(-like.numel() // num_drawn))
    return repeated[: like.numel()].view(like.shape)


def time_blocks(runner: Runner, hidden_size: int, *, clock: Clock) -> Timings:
    """Seconds of decode steps and prefill chunks through all blocks of `runner`, and of one block alone.

    The runner's cache has room for `CACHE_TOKENS`, and no sessions.
    """
    numbers = count()

    def reserve(span: Span, *, max_tokens: int = CONTEXT_TOKENS + 1) -> SessionId:
        session = SessionId(next(numbers).to_bytes(16, "big"))
        runner.cache.reserve(session, span, num_lanes=1, max_tokens=max_tokens)
        return session

    whole = runner.span
    prompting = reserve(whole, max_tokens=max(CHUNKS))
    decoding = [reserve(whole) for _ in range(max(BATCHES))]
    alone = {span: reserve(span) for span in (Span(block, block + 1) for block in range(whole.start, whole.end))}
    hidden = torch.randn(max(CHUNKS), hidden_size, generator=torch.Generator().manual_seed(0)).to(runner.dtype)

    def forward_s(sessions: Sequence[SessionId], *, start: int, num_tokens: int, span: Span = whole) -> float:
        steps = [Step(session, 0, start, num_tokens, 1) for session in sessions]
        incoming = to_wire(hidden[: len(steps) * num_tokens])
        began = clock()
        to_wire(runner.forward(from_wire(incoming, dtype=runner.dtype, device=runner.device), steps, span))
        return clock() - began

    def prefill_s(num_tokens: int) -> float:
        return forward_s([prompting], start=0, num_tokens=num_tokens)

    def decode_s(num_sessions: int) -> float:
        return forward_s(decoding[:num_sessions], start=CONTEXT_TOKENS, num_tokens=1)

    forward_s(decoding, start=0, num_tokens=CONTEXT_TOKENS)
    for span, session in alone.items():
        forward_s([session], start=0, num_tokens=CONTEXT_TOKENS, span=span)
    prefill: dict[int, list[float]] = {}
    for size in CHUNKS:  # to warm up, and to see how long it takes
        prefill[size] = []
        if prefill_s(size) > SLOW_S and len(prefill) > 1:
            break
    decode: dict[int, list[float]] = {num_sessions: [] for num_sessions in BATCHES}
    one_block: list[float] = []
    began = clock()
    for num_rounds in range(MAX_ROUNDS):
        if num_rounds >= MIN_ROUNDS and clock() - began > BUDGET_S:
            break
        for num_sessions, seconds in decode.items():
            seconds.append(decode_s(num_sessions))
        one_block += [forward_s([alone[span]], start=CONTEXT_TOKENS, num_tokens=1, span=span) for span in alone]
        for size, seconds in prefill.items():
            seconds.append(prefill_s(size))
    return Timings(num_blocks=len(whole), prefill=prefill, decode=decode, one_block=one_block)
