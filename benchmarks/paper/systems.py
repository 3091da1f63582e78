"""The systems compared, each as a scheduler over the same swarm and the same requests."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from paper.settings import PETALS_TOKENS, Served, Swarm

from chainserve.planning.baselines import bprr, petals
from chainserve.planning.baselines.simple import whole_model_chains
from chainserve.planning.dispatch import JoinFastestFree, Policy
from chainserve.planning.placement import slots_beside
from chainserve.planning.tuning import ConcurrencyChoice, choose_concurrency
from chainserve.planning.values import Placement, PlannedChain, Workload
from chainserve.simulator.bprr import BprrScheduler
from chainserve.simulator.chains import ChainScheduler
from chainserve.simulator.engine import Outcome, run
from chainserve.simulator.petals import PetalsScheduler
from chainserve.simulator.report import summarize
from chainserve.simulator.times import by_tokens, route_by_tokens
from chainserve.simulator.workloads import Requests, paper_requests
from chainserve.types import PeerId

WARM_UP = 0.1
LEFT_SHARE, GROWTH = 0.05, 1.5

System = Callable[[Swarm, Requests, float, int], Outcome | None]
"""Runs requests that come at a rate, with a seed; None where the system finds no way to serve at all."""


def requests_of(served: Served, num_requests: int, *, rate: float, rng: np.random.Generator) -> Requests:
    """The paper's model: Poisson arrivals, exponential work."""
    return paper_requests(
        num_requests, rate=rate, rng=rng, input_tokens=served.input_tokens, output_tokens=served.output_tokens
    )


def tuned(swarm: Swarm, rate: float, **options: Any) -> ConcurrencyChoice:
    """GBP-CR and GCA for the best c."""
    return choose_concurrency(swarm.profiles, swarm.served.spec, Workload(arrival_rate=rate), **options)


def on_chains(
    swarm: Swarm,
    requests: Requests,
    chains: Sequence[PlannedChain],
    *,
    policy: Callable[[list[float], list[int]], Policy] = JoinFastestFree,
) -> Outcome:
    """Requests over planned chains, with JFFC unless told."""
    rule = policy([chain.rate for chain in chains], [chain.capacity for chain in chains])
    return run(requests, ChainScheduler(rule, chains, by_tokens(requests, chains, servers=swarm.servers)))


def ours(swarm: Swarm, requests: Requests, rate: float, seed: int) -> Outcome | None:
    """GBP-CR with every server placed, GCA and JFFC."""
    chains = tuned(swarm, rate).chains
    return on_chains(swarm, requests, chains) if chains else None


def ours_with_stop(swarm: Swarm, requests: Requests, rate: float, seed: int) -> Outcome | None:
    """The same as the paper has it: no server is placed once the chains suffice."""
    chains = tuned(swarm, rate, place_all=False).chains
    return on_chains(swarm, requests, chains) if chains else None


def jffc_only(swarm: Swarm, requests: Requests, rate: float, seed: int) -> Outcome | None:
    """The whole model on each server that can hold it, and JFFC."""
    chains = whole_model_chains(swarm.profiles, swarm.served.spec)
    return on_chains(swarm, requests, chains) if chains else None


def bprr_system(swarm: Swarm, requests: Requests, rate: float, seed: int) -> Outcome | None:
    """CG-BP and WS-RR."""
    spec = swarm.served.spec
    concurrency = bprr.reserved_concurrency(swarm.profiles, spec, arrival_rate=rate)
    placement = bprr.place(swarm.profiles, spec, concurrency=concurrency)
    if placement.missing(spec.num_blocks):
        return None
    routes = bprr.routes(placement, swarm.profiles, spec)
    service_s = route_by_tokens(requests, swarm.servers)
    return run(requests, BprrScheduler(placement, routes, slots=_slots(swarm, placement), service_s=service_s))


def petals_system(
    swarm: Swarm, requests: Requests, rate: float, seed: int, *, banned_for_s: float = 15.0
) -> Outcome | None:
    """PETALS' placement and routing, with the 15 s for which its clients avoid a server that refused them."""
    spec, rng = swarm.served.spec, np.random.default_rng(seed)
    cache_slots = PETALS_TOKENS / swarm.served.slot_tokens
    placement = petals.place(swarm.profiles, spec, cache_slots=cache_slots, rng=rng)
    if placement.missing(spec.num_blocks):
        return None
    step_s = {peer: times.block.decode_s for peer, times in swarm.servers.items()}
    scheduler = PetalsScheduler(
        placement,
        petals.routes(placement, spec.num_blocks, round_trip_s=swarm.round_trip_s, step_s=step_s),
        slots=_slots(swarm, placement),
        service_s=route_by_tokens(requests, swarm.servers),
        rng=rng,
        banned_for_s=banned_for_s,
    )
    return run(requests, scheduler)


def petals_as_written(swarm: Swarm, requests: Requests, rate: float, seed: int) -> Outcome | None:
    """PETALS without those 15 s."""
    return petals_system(swarm, requests, rate, seed, banned_for_s=0.0)


SYSTEMS: dict[str, System] = {
    "PETALS": petals_system,
    "PETALS, no ban": petals_as_written,
    "BPRR": bprr_system,
    "JFFC only": jffc_only,
    "GBP-CR + GCA + JFFC, stop": ours_with_stop,
    "GBP-CR + GCA + JFFC": ours,
}


def summary(outcome: Outcome | None, *, warm_up: float = WARM_UP) -> dict[str, Any] | None:
    """Mean, median, P95 and P99 of response, waiting and service; whether the occupancy grew to the end."""
    if outcome is None:
        return None
    figures = summarize(outcome, warm_up=warm_up)
    return {
        "is_unstable": is_unstable(outcome),
        **{
            kind: {name: getattr(part, f"{name}_s") for name in ("mean", "median", "p95", "p99")}
            for kind, part in (
                ("response", figures.response), ("waiting", figures.waiting), ("service", figures.service)
            )
        },
    }  # fmt: skip


def is_unstable(outcome: Outcome) -> bool:
    """Whether, as the last request arrives, over 5 % of all are there, and half as many again as at half the time."""
    arrival_s = outcome.requests.arrival_s
    half, end = (
        np.count_nonzero(arrival_s <= at_s) - np.count_nonzero(outcome.finish_s <= at_s)
        for at_s in (arrival_s[-1] / 2, arrival_s[-1])
    )
    return bool(end > LEFT_SHARE * len(outcome.requests) and end > GROWTH * half)


def finite(value: float) -> float | None:
    """JSON has no infinity: None."""
    return float(value) if math.isfinite(value) else None


def _slots(swarm: Swarm, placement: Placement) -> dict[PeerId, int]:
    servers = {profile.peer: profile for profile in swarm.profiles}
    return {peer: slots_beside(servers[peer], swarm.served.spec, span) for peer, span in placement.spans.items()}
