"""How long a request takes on servers: in proportion to its size, or from its tokens.

Two kinds of times for two kinds of schedulers. `ServiceTime` maps (request, index of a planned chain) to seconds and is
quick; `RouteTime` maps (request, any chain) to seconds, for systems that make up a route per request.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from chainserve.planning.values import PlannedChain, ServerProfile, require
from chainserve.simulator.workloads import Requests
from chainserve.types import Chain, PeerId, Span

ServiceTime = Callable[[int, int], float]
RouteTime = Callable[[int, Chain], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTimes:
    """tau_p of one block as a function of tokens: t_o, t_I and t_O, in seconds."""

    overhead_s: float  # t_o, per request
    prefill_s: float  # t_I, per input token
    decode_s: float  # t_O, per output token after the first, which the prefill yields

    def __post_init__(self) -> None:
        require("overhead_s", self.overhead_s, positive=False)
        require("prefill_s", self.prefill_s, positive=False)
        require("decode_s", self.decode_s, positive=False)

    def request_s(self, input_tokens: float, output_tokens: float) -> float:
        """Seconds of one request in one block; also of a mean request, as it is linear in both numbers."""
        return self.overhead_s + self.prefill_s * input_tokens + self.decode_s * (output_tokens - 1)

    @classmethod
    def from_hardware(
        cls, *, overhead_s: float, flop_per_token: float, flop_per_s: float, block_bytes: float, bytes_per_s: float
    ) -> "BlockTimes":
        """Prefill bound by computation, decoding by reading the weights; `flop_per_token` is that of one block."""
        require("flop_per_token", flop_per_token)
        require("flop_per_s", flop_per_s)
        require("block_bytes", block_bytes)
        require("bytes_per_s", bytes_per_s)
        return cls(overhead_s=overhead_s, prefill_s=flop_per_token / flop_per_s, decode_s=block_bytes / bytes_per_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTimes:
    """One server: seconds of each message to it, and of its blocks."""

    hop_s: float  # per output token: one message each, the first of them carries the prompt
    block: BlockTimes

    def __post_init__(self) -> None:
        require("hop_s", self.hop_s, positive=False)

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
    ) -> ServerProfile:
        """What planning sees of this server, for requests of these mean token numbers."""
        return ServerProfile(
            peer=peer,
            memory_bytes=memory_bytes,
            communication_s=self.hop_s * output_tokens,
            block_s=self.block.request_s(input_tokens, output_tokens),
            pinned=pinned,
        )


def by_size(requests: Requests, chains: Sequence[PlannedChain]) -> ServiceTime:
    """The paper's model: T_k (Eq. 2) times the request's size; tokens play no part."""
    size, service_s = requests.size.tolist(), [chain.service_s for chain in chains]
    return lambda request, chain: service_s[chain] * size[request]


def by_tokens(
    requests: Requests, chains: Sequence[PlannedChain], *, servers: Mapping[PeerId, ServerTimes]
) -> ServiceTime:
    """Each request's own tokens through each chain, times its size: T_k is linear in input and output tokens."""
    size, inputs, outputs = requests.size.tolist(), requests.input_tokens.tolist(), requests.output_tokens.tolist()
    terms = []
    for chain in chains:
        hops = [(servers[hop.peer], len(hop.span)) for hop in chain.chain.hops]
        prefill_s = sum(server.block.prefill_s * num_blocks for server, num_blocks in hops)
        output_s = sum(server.block.decode_s * num_blocks + server.hop_s for server, num_blocks in hops)
        fixed_s = sum((server.block.overhead_s - server.block.decode_s) * num_blocks for server, num_blocks in hops)
        terms.append((fixed_s, prefill_s, output_s))

    def service_s(request: int, chain: int) -> float:
        fixed_s, prefill_s, output_s = terms[chain]
        return float(size[request] * (fixed_s + prefill_s * inputs[request] + output_s * outputs[request]))

    return service_s


def route_by_size(requests: Requests, profiles: Mapping[PeerId, ServerProfile]) -> RouteTime:
    """The paper's model on any chain: the sum over its hops (Eq. 2) times the request's size."""
    size = requests.size.tolist()

    def route_s(request: int, chain: Chain) -> float:
        return float(size[request] * sum(profiles[hop.peer].span_s(len(hop.span)) for hop in chain.hops))

    return route_s


def route_by_tokens(requests: Requests, servers: Mapping[PeerId, ServerTimes]) -> RouteTime:
    """Each request's own tokens through any chain, times its size."""
    size, inputs, outputs = requests.size.tolist(), requests.input_tokens.tolist(), requests.output_tokens.tolist()

    def route_s(request: int, chain: Chain) -> float:
        input_tokens, output_tokens = inputs[request], outputs[request]
        hops_s = sum(
            servers[hop.peer].span_s(len(hop.span), input_tokens=input_tokens, output_tokens=output_tokens)
            for hop in chain.hops
        )
        return float(size[request] * hops_s)

    return route_s
