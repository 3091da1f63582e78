"""What a token-level simulation is told of servers, links and messages."""

import math
from dataclasses import dataclass
from enum import Enum

from chainserve.planning.profile import StepTimes
from chainserve.planning.times import BlockTimes
from chainserve.planning.values import require
from chainserve.types import PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpeed:
    """Seconds that a packed forward takes, per block.

    One session of l_in input tokens in one chunk and l_out output tokens costs t_o + t_I l_in + t_O (l_out - 1) per
    block, as in Sun et al. 2026; a prompt in n chunks costs n t_o. Whatever a decode step takes besides its weights
    belongs to t_O.
    """

    overhead_s: float  # t_o, per forward that prefills
    prefill_s: float  # t_I, per token it prefills: bound by computation
    decode_s: float  # t_O, least time of a forward that decodes: bound by reading the weights
    session_s: float  # per session that decodes: bound by computation, once there are many

    def __post_init__(self) -> None:
        require("overhead_s", self.overhead_s, positive=False)
        require("prefill_s", self.prefill_s, positive=False)
        require("decode_s", self.decode_s, positive=False)
        require("session_s", self.session_s, positive=False)

    @classmethod
    def of(cls, times: BlockTimes) -> "ServerSpeed":
        """These times for one session; a session that decodes computes as much as a token of a prompt."""
        return cls(
            overhead_s=times.overhead_s,
            prefill_s=times.prefill_s,
            decode_s=times.decode_s,
            session_s=times.prefill_s,
        )

    def step_s(self, num_decode: int, num_prefill_tokens: int, *, num_blocks: int, num_outputs: int = 0) -> float:
        """Seconds of one packed forward: a token each for `num_decode` sessions, and tokens of prompts.

        Norm and head take no time, so `num_outputs` plays no part.
        """
        block_s = 0.0
        if num_decode:
            block_s = max(self.decode_s, self.session_s * num_decode)
        if num_prefill_tokens:
            block_s += self.overhead_s + self.prefill_s * num_prefill_tokens
        return num_blocks * block_s


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenServer:
    """A server: how fast it is, and how much it holds."""

    peer: PeerId
    speed: ServerSpeed | StepTimes  # from terms, or as measured
    cache_tokens: int  # room for keys and values in tokens times blocks, beside the weights of the blocks it serves
    max_batch_tokens: int = 1024  # per iteration

    def __post_init__(self) -> None:
        if self.cache_tokens < 1:
            raise ValueError(f"{self.peer} has room for {self.cache_tokens} tokens: it takes at least one")
        if self.max_batch_tokens < 1:
            raise ValueError(f"{self.peer} takes {self.max_batch_tokens} tokens per iteration: at least one is needed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One direction between two peers."""

    delay_s: float  # half a round trip, and what else every message costs without keeping the next one waiting
    bytes_per_s: float = math.inf
    window_bytes: float = math.inf  # TCP's first window: so much goes out at once on a link that was idle
    idle_s: float = 1.3  # after which the window is small again: beats keep it for a second, TCP for a quarter of one

    def __post_init__(self) -> None:
        require("delay_s", self.delay_s, positive=False)
        require("idle_s", self.idle_s, positive=False)
        if not self.bytes_per_s > 0:
            raise ValueError(f"bytes_per_s is {self.bytes_per_s}: it has to be positive")
        if not self.window_bytes > 0:
            raise ValueError(f"window_bytes is {self.window_bytes}: it has to be positive")


class Mode(Enum):
    """Who turns hidden states into tokens."""

    ACTIVATION = "activation"  # the client: each step is a trip from the client around the chain
    TOKEN = "token"  # the tail: ids go to the head at once, and to the client beside


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How peers speak: sizes of what they send, and how long they take to notice a failure."""

    mode: Mode = Mode.ACTIVATION
    hidden_bytes: float = 0  # hidden states of one token
    token_bytes: float = 0  # one token id
    message_bytes: float = 0  # what every message has besides
    chunk_tokens: int | None = 512  # per message of a long prompt; None: heads cut it, by their times (StepTimes)
    asks_for_place: bool = False  # whether a head is asked for a place before the session is opened
    detection_s: float = 5.0  # from the failure of a server to the end of its sessions

    def __post_init__(self) -> None:
        require("hidden_bytes", self.hidden_bytes, positive=False)
        require("token_bytes", self.token_bytes, positive=False)
        require("message_bytes", self.message_bytes, positive=False)
        require("detection_s", self.detection_s, positive=False)
        if self.chunk_tokens is not None and self.chunk_tokens < 1:
            raise ValueError(f"chunk_tokens is {self.chunk_tokens}: a chunk has at least one token")
