"""How long a request takes on servers: in proportion to its size, or from its tokens.

Two kinds of times for two kinds of schedulers. `ServiceTime` maps (request, index of a planned chain) to seconds and is
quick; `RouteTime` maps (request, any chain) to seconds, for systems that make up a route per request.
"""

from collections.abc import Callable, Mapping, Sequence

from chainserve.planning.times import ServerTimes
from chainserve.planning.values import PlannedChain, ServerProfile
from chainserve.simulator.workloads import Requests
from chainserve.types import Chain, PeerId

ServiceTime = Callable[[int, int], float]
RouteTime = Callable[[int, Chain], float]


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
