"""Which chains a request may take, and in which order: the plan's, by what this client would see of each."""

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace

from chainserve.errors import NoChainError, PromptTooLongError
from chainserve.planning.route import Holding, fewest_hops
from chainserve.planning.values import PlannedChain
from chainserve.swarm.plans import SwarmPlan
from chainserve.swarm.records import Announcement
from chainserve.types import Chain, PeerId

RoundTrip = Callable[[PeerId], float | None]


def planned_chains(
    plan: SwarmPlan,
    servers: Collection[Announcement],
    *,
    num_tokens: int,
    input_tokens: float,
    output_tokens: float,
    round_trip_s: RoundTrip,
) -> list[PlannedChain]:
    """The plan's chains over these servers that have room for `num_tokens`, the fastest for such a request first.

    Their `service_s` is what this client would see of the request if it were alone there. In activation mode every
    token passes the client, so that half a round trip to the head and half a one to the tail count for each; those that
    are not known count as none.
    """
    spans = {server.peer: server.span for server in servers if server.span is not None}

    def is_possible(planned: PlannedChain) -> bool:
        has_room = planned.capacity * plan.inputs.slot_tokens >= num_tokens
        return has_room and all(hop.peer in spans and spans[hop.peer].covers(hop.span) for hop in planned.chain.hops)

    def seen(planned: PlannedChain) -> PlannedChain:
        service_s = seen_s(
            plan, planned.chain, input_tokens=input_tokens, output_tokens=output_tokens, round_trip_s=round_trip_s
        )
        return replace(planned, service_s=service_s)

    return sorted(map(seen, filter(is_possible, plan.chains)), key=lambda planned: planned.service_s)


def seen_s(
    plan: SwarmPlan, chain: Chain, *, input_tokens: float, output_tokens: float, round_trip_s: RoundTrip
) -> float:
    """Seconds of a request alone on a chain, as its client judges chains: see `planned_chains`."""
    prediction = plan.inputs.predict(chain, input_tokens=input_tokens)
    way_s = ((round_trip_s(chain.head) or 0.0) + (round_trip_s(chain.tail) or 0.0)) / 2
    return prediction.first_token_s + way_s + (output_tokens - 1) * (prediction.token_s + way_s)


def step_predictor(plan: SwarmPlan, chain: Chain) -> Callable[[int], float] | None:
    """Seconds of a step of so many tokens on a chain, by the plan's figures; None if they are not known of a server."""
    if any(hop.peer not in plan.inputs.times for hop in chain.hops):
        return None
    return lambda num_tokens: plan.inputs.predict(chain, input_tokens=num_tokens).first_token_s


def choose_chain(servers: Sequence[Announcement], *, num_blocks: int, num_tokens: int) -> Chain:
    """The chain with the fewest hops over servers whose caches can hold `num_tokens`, those free now first.

    NoChainError if blocks are missing; PromptTooLongError, with the longest there is room for, if all blocks are
    there but not with caches that large.
    """

    def over(servers: Sequence[Announcement]) -> Chain:
        holdings = [Holding(server.peer, span, server.free_tokens) for server in servers if (span := server.span)]
        return fewest_hops(holdings, num_blocks=num_blocks)

    over(servers)
    for free_now in (True, False):
        with suppress(NoChainError):
            return over([s for s in servers if (s.free_tokens if free_now else s.cache_tokens) >= num_tokens])
    for size in sorted((server.cache_tokens for server in servers), reverse=True):
        with suppress(NoChainError):
            over([server for server in servers if server.cache_tokens >= size])
            raise PromptTooLongError(num_tokens, limit=size)
    raise AssertionError("all servers together make a chain")
