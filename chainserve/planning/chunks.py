"""How a prompt is cut into chunks: small enough for others to decode between them, large enough to be fast."""

import math

from chainserve.planning.profile import MAX_BATCH_TOKENS, StepTimes

LEAST_TOKENS = 16
SIZES: tuple[int, ...] = tuple(
    size
    for power in range(int(math.log2(MAX_BATCH_TOKENS // LEAST_TOKENS)) + 1)
    for size in (LEAST_TOKENS * 2**power, LEAST_TOKENS * 3 * 2**power // 2)
    if size <= MAX_BATCH_TOKENS
)
ROUNDS = 2.0
"""Decode rounds that a chunk may take where others are decoding."""
TURN_S = 0.003
"""Seconds that a server takes for every chunk beside its blocks, in the engine and for the message. One more server
adds 0.8 ms to a token on two fast cores, 3 to 4 ms on two slow ones (benchmarks/hop.py), and a chunk is larger."""


def beside_decoding(times: StepTimes, *, num_blocks: int, num_decoding: int) -> int:
    """Tokens of a chunk that takes at most twice as long as the decode round that waits for it."""
    most_s = ROUNDS * times.step_s(num_decoding, 0, num_blocks=num_blocks)
    fitting = [size for size in SIZES if times.step_s(0, size, num_blocks=num_blocks) <= most_s]
    return max(fitting, default=LEAST_TOKENS)


def along_chain(times: StepTimes, *, num_blocks: int, num_tokens: int, num_hops: int) -> int:
    """Tokens of a chunk with which a prompt of `num_tokens` is through a chain of equal servers first.

    The last of n chunks leaves the last of P servers after n + P - 1 turns, each as long as the largest chunk takes: so
    they should be equal. Small chunks keep all servers busy, large ones take less time per token, and fewer turns.
    """

    def equal(size: int) -> int:
        num_chunks = math.ceil(num_tokens / size)
        return LEAST_TOKENS * math.ceil(num_tokens / num_chunks / LEAST_TOKENS)

    def seconds(size: int) -> float:
        num_turns = math.ceil(num_tokens / size) + num_hops - 1
        return num_turns * (TURN_S + times.step_s(0, min(size, num_tokens), num_blocks=num_blocks))

    return min(map(equal, reversed(SIZES)), key=seconds)
