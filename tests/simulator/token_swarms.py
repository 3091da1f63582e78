"""Small swarms for the tests of the token-level simulator: round times, short names."""

from collections.abc import Callable, Sequence

from chainserve.planning.dispatch import JoinFastestFree
from chainserve.planning.values import PlannedChain
from chainserve.simulator.tokens.admission import MakePolicy
from chainserve.simulator.tokens.membership import Change, Replan, while_live
from chainserve.simulator.tokens.outcome import TokenOutcome
from chainserve.simulator.tokens.run import simulate
from chainserve.simulator.tokens.values import Link, Protocol, ServerSpeed, TokenServer
from chainserve.simulator.workloads import Requests
from chainserve.types import Chain, Hop, PeerId, Span

A, B, C, D = (PeerId(name) for name in "abcd")
SPEED = ServerSpeed(overhead_s=0.5, prefill_s=0.01, decode_s=0.2, session_s=0.05)


def server(
    peer: PeerId, *, cache_tokens: int = 100_000, max_batch_tokens: int = 1024, speed: ServerSpeed = SPEED
) -> TokenServer:
    return TokenServer(peer=peer, speed=speed, cache_tokens=cache_tokens, max_batch_tokens=max_batch_tokens)


def planned(*hops: tuple[PeerId, int, int], capacity: int = 8, service_s: float = 1.0) -> PlannedChain:
    """A chain of (peer, first block, end of blocks)."""
    return PlannedChain(Chain(tuple(Hop(peer, Span(start, end)) for peer, start, end in hops)), capacity, service_s)


def play(
    requests: Requests,
    servers: Sequence[TokenServer],
    chains: Sequence[PlannedChain],
    *,
    delay_s: float = 0.0,
    bytes_per_s: float = float("inf"),
    make_policy: MakePolicy = JoinFastestFree,
    protocol: Protocol | None = None,
    changes: Sequence[Change] = (),
    replan: Replan | None = None,
    link_of: Callable[[PeerId, PeerId], Link] | None = None,
) -> TokenOutcome:
    """Simulate with equal links, and those of the chains whose servers are there."""
    link = Link(delay_s=delay_s, bytes_per_s=bytes_per_s)
    return simulate(
        requests,
        servers,
        link_of=link_of or (lambda sender, receiver: link),
        replan=replan or while_live(chains),
        make_policy=make_policy,
        protocol=protocol,
        changes=changes,
    )
