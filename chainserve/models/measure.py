"""Time a model's own blocks and head on a device, through the runner that serves them; random weights are as good as
real ones.

Decode steps and prefill chunks of several sizes take turns in rounds, so that a slow moment touches all alike, and the
median of the rounds counts. Steps come and go as bytes, as those of peers do, which also waits for the device.
"""

import os
import time
from collections.abc import Callable, Sequence
from itertools import accumulate, count

import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile
from tqdm import tqdm
from transformers import PretrainedConfig, PreTrainedModel

from chainserve.models.cache import KVCache
from chainserve.models.conversion import weight_dtypes
from chainserve.models.costs import end_costs
from chainserve.models.ends import End, Ends, end_skeleton
from chainserve.models.load import assign, bytes_by_block
from chainserve.models.quantize import unquantized
from chainserve.models.runner import Runner
from chainserve.models.skeleton import build_skeleton
from chainserve.models.support import cache_bytes_per_token
from chainserve.models.wire import from_wire, to_wire
from chainserve.planning.profile import MAX_BATCH_TOKENS, MAX_OUTPUTS, BlockProfile, Timings
from chainserve.protocol.messages import Step
from chainserve.types import SessionId, Span

CHUNKS = (8, 32, 128, 512)
"""Tokens of a prefill chunk; clients send no longer ones."""
BATCHES = (1, 2, 4, 8, 16)
"""Sessions of a decode step, and outputs that the head turns into logits."""
CONTEXT_TOKENS = 8
"""What a decoding session has cached; attention to more adds little to the weights that a step reads."""
CACHE_TOKENS = (max(BATCHES) + 1) * (CONTEXT_TOKENS + 1) + max(CHUNKS)
"""For the sessions of a batch, one through each block alone, and one for chunks."""
LONG_CONTEXT_TOKENS = 2048
"""What a session has cached after the largest batch; scores of attention without a kernel grow with it."""
COLD_BYTES = 64 << 20
"""Weights to measure with: more than caches hold, as blocks of a served span are not in them either."""
MIN_ROUNDS, MAX_ROUNDS = 3, 7
BUDGET_S = 2.0
"""No further round begins after this, once there are enough."""
SLOW_S = 0.5
"""Chunks longer than one that took this are left out, and so are more outputs."""

Clock = Callable[[], float]


def measure(
    config: PretrainedConfig, *, dtype: torch.dtype, device: torch.device, clock: Clock = time.perf_counter
) -> BlockProfile:
    """Measure blocks and head of a model that `check_supported` accepts; takes some seconds for small models.

    Takes memory for two blocks, or for `COLD_BYTES` of smaller ones, for the head, and for the largest batch.
    """
    num_blocks, sizes = config.num_hidden_layers, bytes_by_block(config, dtype)
    plain = unquantized(config)  # quantized weights pass through caches as what a step makes of them
    plain_bytes = sizes[-1] if plain is config else bytes_by_block(plain, dtype)[-1]
    num_measured = min(num_blocks, max(2, -(-COLD_BYTES // plain_bytes)))
    span = Span(num_blocks - num_measured, num_blocks)  # of mixtures of experts the first blocks are often dense
    runner = random_runner(config, span, dtype=dtype, device=device)
    kinds = {Span(block, block + 1) for block in last_of_each_kind(config, sizes)}
    peaks = [largest_batch_bytes(runner, kind, config.hidden_size) for kind in kinds if span.covers(kind)]
    timings = time_blocks(runner, config.hidden_size, clock=clock)
    del runner
    for kind in kinds:
        if not span.covers(kind):
            alone = random_runner(config, kind, dtype=dtype, device=device)
            peaks.append(largest_batch_bytes(alone, kind, config.hidden_size))
            del alone
    if device.type == "cuda":
        torch.cuda.empty_cache()  # or what we held would not count as free
    ends = end_costs(config, dtype)
    return BlockProfile(
        times=timings.step_times(),
        block_bytes=max(sizes),
        embedding_bytes=ends.embedding_bytes,
        head_bytes=ends.head_bytes,
        is_tied=ends.is_tied,
        token_bytes=-(-cache_bytes_per_token(config, span, dtype=dtype) // len(span)),
        # From the second block on, what came in is held beside what the block before gave.
        activation_bytes=max(peaks) + MAX_BATCH_TOKENS * config.hidden_size * dtype.itemsize,
    )


def last_of_each_kind(config: PretrainedConfig, block_bytes: Sequence[int]) -> frozenset[int]:
    """One block of each kind: those alike in what they attend to, and in bytes of weights, work alike."""
    types = getattr(config, "layer_types", None) or [None] * len(block_bytes)
    return frozenset({kind: block for block, kind in enumerate(zip(types, block_bytes, strict=True))}.values())


def random_runner(config: PretrainedConfig, span: Span, *, dtype: torch.dtype, device: torch.device) -> Runner:
    """A runner of blocks with random weights, of the head with the last, and with room for all that is measured."""
    model = with_random_weights(build_skeleton(config, span), dtype=dtype, device=device)
    ends = Ends()
    if span.end == config.num_hidden_layers:
        ends = Ends(with_random_weights(end_skeleton(config, End.HEAD), dtype=dtype, device=device))
    return Runner(model, span, KVCache(span, budget_tokens=CACHE_TOKENS + LONG_CONTEXT_TOKENS + 2), ends=ends)


def with_random_weights(skeleton: PreTrainedModel, *, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The skeleton with small random numbers for weights, of `dtype` or float32 where the family insists on it."""
    dtypes = weight_dtypes(skeleton, dtype)
    for name, like in skeleton.state_dict().items():
        assign(skeleton, name, random_weight(like, dtype=dtypes[name], device=device), device=device)
    nn.Module.to(skeleton, device)  # buffers that no checkpoint holds
    return skeleton


def random_weight(like: Tensor, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers in [-0.02, 0.02], the same at every call: a million of them repeated, as many more take long to draw."""
    num_drawn = 1_000_003  # a prime, so that rows of a matrix, by which experts are chosen, differ
    drawn = torch.empty(min(like.numel(), num_drawn)).uniform_(-0.02, 0.02, generator=torch.Generator().manual_seed(0))
    repeated = drawn.to(device=device, dtype=dtype).repeat(-(-like.numel() // num_drawn))
    return repeated[: like.numel()].view(like.shape)


def time_blocks(runner: Runner, hidden_size: int, *, clock: Clock) -> Timings:
    """Seconds of decode steps and prefill chunks through all blocks of `runner`, of one block alone, and of the head.

    The runner has the model's last block. Its cache has room for `CACHE_TOKENS`, and no sessions.
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

    def head_s(num_outputs: int) -> float:
        rows = hidden[:num_outputs].to(runner.device)
        began = clock()
        runner.ends.logits(rows).argmax(-1).tolist()  # the least that is made of logits; waits for the device
        return clock() - began

    runner.warm_up()
    forward_s(decoding, start=0, num_tokens=CONTEXT_TOKENS)
    for span, session in alone.items():
        forward_s([session], start=0, num_tokens=CONTEXT_TOKENS, span=span)
    prefill: dict[int, list[float]] = {}
    for size in CHUNKS:  # to warm up, and to see how long it takes
        prefill[size] = []
        if prefill_s(size) > SLOW_S and len(prefill) > 1:
            break
    head: dict[int, list[float]] = {}
    for num_outputs in BATCHES:
        head[num_outputs] = []
        if head_s(num_outputs) > SLOW_S and len(head) > 1:
            break
    decode: dict[int, list[float]] = {num_sessions: [] for num_sessions in BATCHES}
    one_block: list[float] = []
    began = clock()
    for num_rounds in tqdm(range(MAX_ROUNDS), desc="Measuring", disable=None, leave=False):  # shown on a terminal only
        if num_rounds >= MIN_ROUNDS and clock() - began > BUDGET_S:
            break
        for num_sessions, seconds in decode.items():
            seconds.append(decode_s(num_sessions))
        one_block += [forward_s([alone[span]], start=CONTEXT_TOKENS, num_tokens=1, span=span) for span in alone]
        for size, seconds in prefill.items():
            seconds.append(prefill_s(size))
        for num_outputs, seconds in head.items():
            seconds.append(head_s(num_outputs))
    return Timings(num_blocks=len(whole), prefill=prefill, decode=decode, one_block=one_block, head=head)


def largest_batch_bytes(runner: Runner, span: Span, hidden_size: int) -> int:
    """Bytes that a forward of the largest batch through blocks takes at once, beside weights and cache.

    The batch is a chunk that ends a long prompt, as attention takes most for that, and a token of another session, so
    that hidden states are joined, which is a copy. They come as float32, the widest that travels. On the CPU, what
    `from_wire` makes of them counts, and so do they. If the runner has the head, so many outputs as may be are turned
    into logits, beside what came in and out.
    """
    device = runner.device
    prompting, decoding = SessionId(b"prompting".ljust(16)), SessionId(b"decoding".ljust(16))
    before = _lasting_bytes(device)
    runner.cache.reserve(prompting, span, num_lanes=1, max_tokens=LONG_CONTEXT_TOKENS)
    runner.cache.reserve(decoding, span, num_lanes=1, max_tokens=2)
    hidden = torch.randn(MAX_BATCH_TOKENS, hidden_size, generator=torch.Generator().manual_seed(0))

    def forward(*steps: Step) -> None:
        rows = [from_wire(to_wire(hidden[: step.num_tokens]), dtype=runner.dtype, device=device) for step in steps]
        joined = torch.cat(rows)
        outputs = runner.forward(joined, steps, span)
        if runner.ends.has_head:
            runner.ends.logits(outputs[-MAX_OUTPUTS:]).float()
        to_wire(torch.cat(outputs.split([step.num_tokens for step in steps])))

    start = LONG_CONTEXT_TOKENS - MAX_BATCH_TOKENS + 1
    # What the tokens before have cached changes nothing of the memory that attention to them takes.
    runner.cache.begin([Step(prompting, 0, 0, start, 1)], span).commit()
    forward(Step(prompting, 0, start, 1, 1), Step(decoding, 0, 0, 1, 1))  # after which they have memory for their cache
    steps = Step(prompting, 0, start, MAX_BATCH_TOKENS - 1, 1), Step(decoding, 0, 1, 1, 1)
    peak = peak_bytes(lambda: forward(*steps), device)
    runner.cache.release(prompting)
    runner.cache.release(decoding)
    workspace = _lasting_bytes(device) - before  # which a GPU's matrix multiplication keeps from its first use on
    messages = 2 * hidden.nbytes if device.type == "cpu" else 0  # as they come and copied, neither by torch
    return peak + workspace + messages


def peak_bytes(run: Callable[[], None], device: torch.device) -> int:
    """The most bytes that torch has allocated on `device` at once while it runs `run`, beyond those before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    if device.type == "mps":  # which knows no peak, but keeps what was freed
        torch.mps.empty_cache()
        before = torch.mps.driver_allocated_memory()
        run()
        return torch.mps.driver_allocated_memory() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or torch 2.13 would write on the terminal that it profiles
    with profile(profile_memory=True) as profiler:
        run()
    assert profiler.kineto_results is not None
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes), default=0)


def _lasting_bytes(device: torch.device) -> int:
    """Bytes that torch has allocated; 0 on the CPU, where nobody counts them."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return torch.mps.current_allocated_memory() if device.type == "mps" else 0
