"""What a device was measured to take for the blocks of one model, and what planning sees of it."""

import statistics
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Self

from chainserve.planning.fields import flag, number, whole
from chainserve.planning.times import BlockTimes, ServerTimes
from chainserve.planning.values import ModelSpec, require

MAX_BATCH_TOKENS = 1024
"""Tokens of the largest packed forward that servers run; `BlockProfile.activation_bytes` is what it takes."""
MAX_OUTPUTS = 64
"""Rows of logits that servers compute at once, at most; `activation_bytes` has room for them as float32."""

Points = tuple[tuple[int, float], ...]
"""(size, seconds), sizes rising."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Seconds of packed forwards, and of norm and head: points that were measured, straight lines between and beyond.

    Points and not four terms, because speed changes by jumps: on a CPU a step of two sessions takes nearly twice as
    long as that of one, as another kernel runs, and a step of eight little longer than that of four.
    """

    forward_s: float  # of every forward, however many blocks it runs
    prefill: Points  # of one block, by tokens of one chunk
    decode: Points  # of one block, by sessions that take one token each
    head: Points  # of final norm and head, by outputs that they turn into logits

    def __post_init__(self) -> None:
        require("forward_s", self.forward_s, positive=False)
        for name, points in (("prefill", self.prefill), ("decode", self.decode), ("head", self.head)):
            sizes = [size for size, _ in points]
            if len(sizes) < 2 or sizes[0] < 1 or any(small >= large for small, large in pairwise(sizes)):
                raise ValueError(f"{name} is measured at sizes {sizes}: it takes at least two, rising from at least 1")
            for size, seconds in points:
                require(f"{name} at size {size}", seconds)

    def step_s(self, num_decode: int, num_prefill_tokens: int, *, num_blocks: int, num_outputs: int = 0) -> float:
        """Seconds of one packed forward: a token each for `num_decode` sessions, and tokens of prompts.

        `num_outputs` of its tokens go on through norm and head.
        """
        if not num_decode and not num_prefill_tokens:
            return 0.0
        block_s = _between(self.decode, num_decode) + _between(self.prefill, num_prefill_tokens)
        return self.forward_s + num_blocks * block_s + _between(self.head, num_outputs)

    @property
    def block(self) -> BlockTimes:
        """t_o, t_I and t_O of a request that is alone: prefill as the line nearest to its points, relatively."""
        overhead_s, prefill_s = nearest_line(self.prefill)
        decode_s = _between(self.decode, 1)
        return BlockTimes(
            overhead_s=overhead_s, prefill_s=prefill_s, decode_s=decode_s, session_s=min(self.session_s, decode_s)
        )

    @property
    def head_s(self) -> float:
        """Seconds of norm and head for one output."""
        return _between(self.head, 1)

    @property
    def session_s(self) -> float:
        """Seconds per block that every further session adds to a decode step, in the mean."""
        return nearest_line(self.decode)[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockProfile:
    """One device and the blocks of one model in one dtype: seconds and bytes."""

    times: StepTimes
    block_bytes: int  # weights of one block
    embedding_bytes: int
    head_bytes: int  # with the final norm
    is_tied: bool  # embedding and head share their weights
    token_bytes: int  # keys and values of one token in one block
    activation_bytes: int  # at most, of a forward of the largest batch, beside weights and cache

    def __post_init__(self) -> None:
        require("block_bytes", self.block_bytes)
        require("activation_bytes", self.activation_bytes, positive=False)
        require("embedding_bytes", self.embedding_bytes, positive=False)
        require("head_bytes", self.head_bytes, positive=False)
        require("token_bytes", self.token_bytes)

    def server_times(self, message_s: float) -> ServerTimes:
        """What planning and simulation use, where each message to this server takes `message_s`."""
        times = self.times
        return ServerTimes(hop_s=message_s + times.forward_s, block=times.block, head_s=times.head_s)

    def model(self, num_blocks: int, *, max_tokens: int) -> ModelSpec:
        """What a model of `num_blocks` such blocks costs in memory, with slots for `max_tokens` tokens."""
        return ModelSpec(
            num_blocks=num_blocks,
            block_bytes=self.block_bytes,
            slot_bytes=self.token_bytes * max_tokens,
            embedding_bytes=self.embedding_bytes,
            head_bytes=self.head_bytes,
            is_tied=self.is_tied,
        )

    @classmethod
    def from_fields(cls, fields: object) -> Self:
        """The profile whose `dataclasses.asdict` went through JSON; ValueError if these are not its fields."""
        try:
            values = dict(fields)  # type: ignore[call-overload]
            times = dict(values.pop("times"))
            for name in ("prefill", "decode", "head"):
                times[name] = tuple((whole(size), number(seconds)) for size, seconds in times[name])
            times["forward_s"] = number(times["forward_s"])
            is_tied = flag(values.pop("is_tied"))
            num_bytes = {name: whole(value) for name, value in values.items()}
            return cls(times=StepTimes(**times), is_tied=is_tied, **num_bytes)
        except (TypeError, KeyError, OverflowError) as error:
            raise ValueError(f"not a profile: {error!r}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds of packed forwards through `num_blocks` blocks, of every round."""

    num_blocks: int
    prefill: Mapping[int, Sequence[float]]  # by tokens of the chunk
    decode: Mapping[int, Sequence[float]]  # by sessions; 1 is among them
    one_block: Sequence[float]  # of one session through one block only
    head: Mapping[int, Sequence[float]]  # of norm and head alone, by outputs

    def step_times(self) -> StepTimes:
        """Medians over rounds, split into what a forward takes at all and what its blocks take.

        Nothing takes longer than what is larger: where it seemed so, something else held it up.
        """
        prefill, decode = _medians(self.prefill), _medians(self.decode)
        forward_s = 0.0
        if self.num_blocks > 1:
            alone_s = statistics.median(self.one_block)
            block_s = (decode[1] - alone_s) / (self.num_blocks - 1)
            # At most half of any forward: noise must leave something for the blocks.
            forward_s = min(max(alone_s - block_s, 0.0), *(s / 2 for s in (*prefill.values(), *decode.values())))

        def per_block(medians: Mapping[int, float]) -> Points:
            return tuple((size, (seconds - forward_s) / self.num_blocks) for size, seconds in sorted(medians.items()))

        return StepTimes(
            forward_s=forward_s,
            prefill=per_block(prefill),
            decode=per_block(decode),
            head=tuple(sorted(_medians(self.head).items())),
        )


@lru_cache(maxsize=1024)
def nearest_line(points: Points) -> tuple[float, float]:
    """Seconds at size 0 and per unit of size, neither negative, with the least squares of relative errors."""
    import numpy as np  # only planning needs it: who just reads profiles does without

    sizes, seconds = np.array(points, dtype=float).T
    terms = np.stack([1 / seconds, sizes / seconds], axis=1)
    fixed, slope = np.linalg.lstsq(terms, np.ones(len(points)))[0].tolist()
    if fixed >= 0 and slope >= 0:
        return fixed, slope
    only_fixed, only_slope = (terms.sum(axis=0) / (terms**2).sum(axis=0)).tolist()
    return (0.0, only_slope) if fixed < 0 else (only_fixed, 0.0)


def _between(points: Points, size: int) -> float:
    """Seconds of `size`, on the line through the two points next to it; 0 of nothing."""
    if not size:
        return 0.0
    after = min(max(bisect_right(points, size, key=lambda point: point[0]), 1), len(points) - 1)
    (low, low_s), (high, high_s) = points[after - 1], points[after]
    return max(low_s + (high_s - low_s) * (size - low) / (high - low), 0.0)


def _medians(rounds: Mapping[int, Sequence[float]]) -> dict[int, float]:
    sizes = sorted(rounds, reverse=True)
    return dict(zip(sizes, accumulate((statistics.median(rounds[size]) for size in sizes), min), strict=True))
