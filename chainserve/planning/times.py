"""How long one server takes for one request, from its tokens."""

from dataclasses import dataclass

from chainserve.planning.values import ServerProfile, require
from chainserve.types import PeerId, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTimes:
    """tau_p of one block as a function of tokens: t_o, t_I and t_O, in seconds."""

    overhead_s: float  # t_o, per request
    prefill_s: float  # t_I, per input token
    decode_s: float  # t_O, per output token after the first, which the prefill yields
    session_s: float = 0.0  # of decode_s, what each further session adds to a step that decodes for all

    def __post_init__(self) -> None:
        require("overhead_s", self.overhead_s, positive=False)
        require("prefill_s", self.prefill_s, positive=False)
        require("decode_s", self.decode_s, positive=False)
        require("session_s", self.session_s, positive=False)

    def request_s(self, input_tokens: float, output_tokens: float) -> float:
        """Seconds of one request in one block; also of a mean request, as it is linear in both numbers."""
        return self.overhead_s + self.prefill_s * input_tokens + self.decode_s * (output_tokens - 1)

    def turn_s(self, input_tokens: float, output_tokens: float) -> float:
        """Seconds for which a request keeps the others on its server waiting, per block."""
        return self.overhead_s + self.prefill_s * input_tokens + self.session_s * (output_tokens - 1)

    @classmethod
    def from_hardware(
        cls, *, overhead_s: float, flop_per_token: float, flop_per_s: float, block_bytes: float, bytes_per_s: float
    ) -> "BlockTimes":
        """Prefill bound by computation, decoding by reading the weights; `flop_per_token` is that of one block.

        So further sessions decode for nothing.
        """
        require("flop_per_token", flop_per_token)
        require("flop_per_s", flop_per_s)
        require("block_bytes", block_bytes)
        require("bytes_per_s", bytes_per_s)
        return cls(overhead_s=overhead_s, prefill_s=flop_per_token / flop_per_s, decode_s=block_bytes / bytes_per_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTimes:
    """One server: seconds of each message to it, of its blocks, and of the head."""

    hop_s: float  # per output token: one message each, the first of them carries the prompt
    block: BlockTimes
    head_s: float = 0.0  # of final norm and head for one output, where the server has the last block

    def __post_init__(self) -> None:
        require("hop_s", self.hop_s, positive=False)
        require("head_s", self.head_s, positive=False)

    def span_s(self, num_blocks: int, *, input_tokens: float, output_tokens: float) -> float:
        """Seconds of one request for the hop to this server and `num_blocks` blocks on it."""
        return self.hop_s * output_tokens + num_blocks * self.block.request_s(input_tokens, output_tokens)

    def profile(
        self,
        peer: PeerId,
        memory_bytes: float,
        *,
        input_tokens: float,
        output_tokens: float,
        pinned: Span | None = None,
        block_bytes: float | None = None,
    ) -> ServerProfile:
        """What planning sees of this server, for requests of these mean token numbers."""
        return ServerProfile(
            peer=peer,
            memory_bytes=memory_bytes,
            communication_s=self.hop_s * output_tokens,
            block_s=self.block.request_s(input_tokens, output_tokens),
            pinned=pinned,
            block_bytes=block_bytes,
            turn_s=self.block.turn_s(input_tokens, output_tokens),
        )
