"""GCA against disjoint chains, the integer program and the bounds, over load (Alg. 2)."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from paper.plots import figure
from paper.settings import BLOOM, CONCURRENCY, Swarm, World, bloom_swarm
from paper.systems import on_chains, requests_of
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array
from sections.table import table

from chainserve.planning.allocation import allocate, residual_slots
from chainserve.planning.bounds import response_time_bounds
from chainserve.planning.placement import greedy_placement
from chainserve.planning.values import Placement, PlannedChain, total_rate
from chainserve.types import Chain, Hop, PeerId, Span

LOADS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
TARGET = 0.7  # rho_bar
NUM_REQUESTS = 5000
MAX_CHAINS = 50_000
TIME_LIMIT_S = 5.0


def measure(world: World, num_runs: int) -> dict[str, Any]:
    """Means over swarms, at arrival rates that are shares of GCA's total rate."""
    rows: list[dict[str, list[Any]]] = [{} for _ in LOADS]
    num_chains = []
    for seed in range(num_runs):
        swarm = bloom_swarm(world, np.random.default_rng(seed))
        greedy = greedy_placement(swarm.profiles, BLOOM.spec, concurrency=CONCURRENCY)
        found = allocate(swarm.profiles, BLOOM.spec, greedy.placement)
        disjoint = sorted(greedy.chains, key=lambda chain: chain.service_s)
        every = all_chains(swarm, greedy.placement)
        num_chains.append(len(every))
        for row, load in zip(rows, LOADS, strict=True):
            rate = load * total_rate(found)
            required = rate / TARGET
            by_greedy = places_needed(found, required)
            assert by_greedy is not None  # all of GCA's places give a load below the target
            optimum = fewest_places(swarm, greedy.placement, every, required_rate=required, known=by_greedy)
            requests = requests_of(BLOOM, NUM_REQUESTS, rate=rate, rng=np.random.default_rng([seed, 1]))
            bounds = response_time_bounds(
                [chain.rate for chain in found], [chain.capacity for chain in found], arrival_rate=rate
            )
            figures: dict[str, dict[str, float | None]] = {
                "places": {
                    "disjoint": places_needed(disjoint, required),
                    "GCA": by_greedy,
                    "integer program": optimum.most,
                    "lower bound": optimum.least,
                    "without limits of memory": math.ceil(required * found[0].service_s - 1e-9),
                },
                "response_s": {
                    "disjoint": _response_s(swarm, requests, disjoint, rate),
                    "GCA": _response_s(swarm, requests, found, rate),
                    "lower bound": bounds.lower_s,
                    "upper bound": bounds.upper_s,
                },
                "proof": {"optimal": float(by_greedy == optimum.least), "relaxed": float(optimum.is_relaxed)},
            }
            for kind, values in figures.items():
                for name, value in values.items():
                    row.setdefault(f"{kind}: {name}", []).append(value)
    return {
        "num_chains": {"least": min(num_chains), "most": max(num_chains)},
        "by_load": {
            str(load): {
                # A mean only where every run has a value.
                name: None if any(value is None for value in values) else float(np.mean(values))
                for name, values in row.items()
            }
            for load, row in zip(LOADS, rows, strict=True)
        },
    }


def places_needed(chains: Sequence[PlannedChain], required_rate: float) -> int | None:
    """Places on the chains, one after the other, until their rates reach the one required; None if they never do."""
    num_places, rate = 0, 0.0
    for chain in chains:
        missing = math.ceil((required_rate - rate) / chain.rate - 1e-9)
        if missing <= chain.capacity:
            return num_places + max(missing, 0)
        num_places += chain.capacity
        rate += chain.capacity * chain.rate
    return None


def all_chains(swarm: Swarm, placement: Placement) -> list[PlannedChain]:
    """Every chain that the placement allows, with capacity 1; RuntimeError if there are too many to list."""
    profiles = {profile.peer: profile for profile in swarm.profiles}
    num_blocks = swarm.served.spec.num_blocks
    chains: list[PlannedChain] = []
    stack: list[tuple[int, tuple[Hop, ...], float]] = [(0, (), 0.0)]
    while stack:
        cursor, hops, service_s = stack.pop()
        if cursor == num_blocks:
            chains.append(PlannedChain(Chain(hops), 1, service_s))
            if len(chains) > MAX_CHAINS:
                raise RuntimeError(f"more than {MAX_CHAINS} chains")
            continue
        for peer, span in placement.spans.items():
            if cursor in span:
                taken_s = profiles[peer].span_s(span.end - cursor)
                stack.append((span.end, (*hops, Hop(peer, Span(cursor, span.end))), service_s + taken_s))
    return chains


class Optimum(NamedTuple):
    """What is known of the least number of places."""

    least: int
    most: int
    is_relaxed: bool  # fractions of places give the same number already


def fewest_places(
    swarm: Swarm, placement: Placement, chains: Sequence[PlannedChain], *, required_rate: float, known: int
) -> Optimum:
    """The fewest places on these chains that reach a rate under Eq. 3; `known` is how many are enough.

    If fractions of places are as many, rounded up, that is the optimum; else the integer program is solved.
    """
    slots = residual_slots(swarm.profiles, swarm.served.spec, placement)
    row_of: dict[PeerId, int] = {peer: row for row, peer in enumerate(slots)}
    entries = [
        (row_of[hop.peer], column, len(hop.span)) for column, chain in enumerate(chains) for hop in chain.chain.hops
    ]
    rows, columns, used = (np.array(part) for part in zip(*entries, strict=True))
    cache = csr_array((used, (rows, columns)), shape=(len(slots), len(chains)))
    rates = np.array([chain.rate for chain in chains])
    speeds = rates / rates.max()  # the solver's tolerance of 1e-6 would be rough for rates of 0.1 per second
    constraints = [
        LinearConstraint(cache, ub=np.array(list(slots.values()))),
        LinearConstraint(speeds[None, :], lb=required_rate / rates.max()),
    ]
    relaxed = milp(np.ones(len(chains)), bounds=Bounds(0, np.inf), constraints=constraints)
    least = math.ceil(relaxed.fun - 1e-6)
    if least == known:
        return Optimum(least, known, is_relaxed=True)
    solved = milp(
        np.ones(len(chains)),
        integrality=np.ones(len(chains)),
        bounds=Bounds(0, np.inf),
        constraints=constraints,
        options={"time_limit": TIME_LIMIT_S},
    )
    found = known if solved.x is None else min(known, round(solved.fun))
    proven = least if solved.mip_dual_bound is None else max(least, math.ceil(solved.mip_dual_bound - 1e-6))
    return Optimum(proven, found, is_relaxed=False)


def _response_s(swarm: Swarm, requests: Any, chains: Sequence[PlannedChain], rate: float) -> float | None:
    if not chains or total_rate(chains) <= rate:
        return None
    return float(on_chains(swarm, requests, chains).response_s.mean())


PLACES = ("disjoint", "GCA", "integer program", "lower bound", "without limits of memory")
RESPONSES = ("disjoint", "GCA", "lower bound", "upper bound")


def plot(figures: dict[str, Any]) -> Figure:
    drawn, axes = figure(2)
    for ax, kind, names, label in (
        (axes[0], "places", PLACES, f"places needed for load {TARGET}"),
        (axes[1], "response_s", RESPONSES, "mean response time, s"),
    ):
        for name in names:
            values = [figures["by_load"][str(load)][f"{kind}: {name}"] for load in LOADS]
            style = ":" if "bound" in name or "without" in name else "--" if "program" in name else "-"
            ax.plot(LOADS, [math.nan if value is None else value for value in values], style, marker=".", label=name)
        ax.set(xlabel="arrival rate / total rate of GCA's chains", ylabel=label)
        ax.legend()
    return drawn


def describe(figures: dict[str, Any]) -> str:
    def cell(load: float, name: str) -> str:
        value = figures["by_load"][str(load)][name]
        return "too few" if value is None else f"{value:.2f}"

    def share(load: float) -> str:
        return f"{100 * figures['by_load'][str(load)]['proof: optimal']:.0f} %"

    places = [[f"{load}", *(cell(load, f"places: {name}") for name in PLACES), share(load)] for load in LOADS]
    responses = [[f"{load}", *(cell(load, f"response_s: {name}") for name in RESPONSES)] for load in LOADS]
    chains = figures["num_chains"]
    num_chains = f"{chains['least']} to {chains['most']}" if chains["least"] < chains["most"] else chains["most"]
    return "\n\n".join([
        f"Places (sum of all c_k) for a load of {TARGET}. The integer program knows all {num_chains} chains of a "
        f"placement; its lower bound is that of its relaxation, or what it proved in {TIME_LIMIT_S:.0f} s.",
        table(["load", *PLACES, "swarms where GCA is optimal"], places),
        "Mean response time in seconds, and the bounds for GCA's chains:",
        table(["load", *RESPONSES], responses),
    ])  # fmt: skip
