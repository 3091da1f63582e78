"""Which places a head has to give: what the plan says of the chains that begin at it."""

from chainserve.planning.sharing import patience_beside, turns_of
from chainserve.protocol.places import HeadChain, Places
from chainserve.swarm.inputs import DEFAULT_DEMAND
from chainserve.swarm.plans import SwarmPlan
from chainserve.swarm.reports import MAX_CHAINS, ChainUse, finite_seconds
from chainserve.types import PeerId


def head_chains(plan: SwarmPlan, me: PeerId) -> list[HeadChain]:
    """The plan's chains with their head at `me`, with room for as many tokens as the plan counts slots.

    A slow chain is patient (`sharing.patience_beside`): it waits for a queue that is long enough, or at most for the
    time that it is slower than the fastest. Not while the load is assumed only: short requests would wait in vain.
    """
    if not plan.chains:
        return []
    inputs = plan.inputs
    assumed = DEFAULT_DEMAND.arrival_rate, DEFAULT_DEMAND.input_tokens, DEFAULT_DEMAND.output_tokens
    is_assumed = (inputs.arrival_rate, inputs.input_tokens, inputs.output_tokens) == assumed
    queues = patience_beside(plan.chains, turns_of(inputs.profiles()), arrival_rate=inputs.arrival_rate)
    fastest_s = min(chain.service_s for chain in plan.chains)
    return [
        HeadChain(
            hops=chain.chain.hops,
            capacity_tokens=chain.capacity * inputs.slot_tokens,
            service_s=chain.service_s,
            patience=0.0 if is_assumed else queue,
            patience_s=chain.service_s - fastest_s,
        )
        for chain, queue in zip(plan.chains, queues, strict=True)
        if chain.chain.head == me
    ]


def chain_uses(plan: SwarmPlan, places: Places) -> tuple[ChainUse, ...]:
    """How the fastest chains of the plan are used that begin at this head, by their place in the plan."""
    index_of = {chain.chain.hops: index for index, chain in enumerate(plan.chains)}
    uses = [
        ChainUse(
            chain=index_of[use.hops],
            num_held=use.num_held,
            used_share=use.used_share,
            num_waiting=use.num_waiting,
            wait_s=finite_seconds(use.wait_s),
            service_s=None if use.held_s is None else finite_seconds(use.held_s),
        )
        for use in places.uses()
        if use.hops in index_of
    ]
    return tuple(sorted(uses, key=lambda use: use.chain)[:MAX_CHAINS])
