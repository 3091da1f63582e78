"""A local search after GBP-CR: on the paper's swarms, and on small ones of unlike cards."""

from dataclasses import replace
from itertools import combinations, product
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from paper.plots import figure
from paper.settings import GB, HIGH, Kind, Served, Swarm, World, bloom_swarm, llama, make_swarm
from paper.systems import WARM_UP, requests_of, tuned
from sections.table import table

from chainserve.planning.dispatch import JoinFastestFree
from chainserve.planning.improve import improve
from chainserve.planning.tuning import ConcurrencyChoice
from chainserve.planning.values import ModelSpec, PairSeconds, PlannedChain
from chainserve.simulator.chains import ChainScheduler
from chainserve.simulator.engine import run
from chainserve.simulator.times import by_size
from chainserve.types import PeerId

NUM_REQUESTS = 5000
PAPER_RUNS, SMALL_RUNS = 3, 8
PAPER_CASES = ((10, 0.2), (20, 0.2), (20, 0.8))  # servers, requests per second
SIZES = (3, 6, 12)
LOADS = (0.3, 0.8)
MEMORIES_GB = (8, 12, 16, 24, 24, 48)
SLOWNESS = (0.4, 0.6, 1.0, 1.5, 3.0)  # relative to the paper's fast servers
ROUND_TRIPS_S = (0.0005, 0.005, 0.03)
USABLE = 0.9  # of a card's memory
ALMOST_IDLE = 1e-6  # requests per second: the search for c then shows what the swarm could bear


def large_llama() -> Served:
    """LLaMA-2-70B in 4 bits, with cache slots of 4096 tokens in 16 bits."""
    hidden, intermediate, cached = 8192, 28672, 1024
    num_parameters = 2 * hidden * (hidden + cached) + 3 * hidden * intermediate + 2 * hidden
    return Served(
        spec=ModelSpec(num_blocks=80, block_bytes=num_parameters / 2, slot_bytes=2 * 2 * cached * 4096),
        slot_tokens=4096,
        flop_per_token=2 * num_parameters,
        input_tokens=2048,
        output_tokens=100,
    )


MODELS = {"7B, 16 bits": replace(llama(4096), output_tokens=100), "70B, 4 bits": large_llama()}
PER_SERVER, PER_PAIR = "near and far", "per pair"
LINKS = ("European", PER_SERVER, PER_PAIR)
"""As in the paper; round trips from ROUND_TRIPS_S, nothing per message, for each server or for each pair of them."""


def measure(world: World, num_runs: int) -> dict[str, Any]:
    """Response times after the search relative to those before: the bound, and simulated."""
    paper = {}
    for num_servers, rate in PAPER_CASES:
        swarms = (bloom_swarm(world, np.random.default_rng(seed), num_servers=num_servers)
                  for seed in range(min(num_runs, PAPER_RUNS)))  # fmt: skip
        paper[f"{num_servers}, {rate}"] = _spread([_ratios(swarm, rate, seed) for seed, swarm in enumerate(swarms)])
    small = {}
    for name, links, num_servers in product(MODELS, LINKS, SIZES):
        by_load: dict[float, list[tuple[float, float] | None]] = {load: [] for load in LOADS}
        for seed in range(min(num_runs, SMALL_RUNS)):
            rng = np.random.default_rng([seed, num_servers])
            swarm = _small_swarm(world, MODELS[name], num_servers, links, rng)
            pair_s = _pairs(swarm, rng) if links == PER_PAIR else None
            largest = max(candidate.rate for candidate in tuned(swarm, ALMOST_IDLE, pair_s=pair_s).candidates)
            for load in LOADS if largest else ():
                by_load[load].append(_ratios(swarm, load * largest, seed, pair_s=pair_s))
        for load, ratios in by_load.items():
            small[f"{name}; {links}; {num_servers}; {load}"] = _spread(ratios)
    return {"paper": paper, "small": small}


def _small_swarm(world: World, served: Served, num_servers: int, links: str, rng: np.random.Generator) -> Swarm:
    swarm = make_swarm(world, served, kinds=[card(rng) for _ in range(num_servers)], rng=rng)
    if links == "European":
        return swarm
    trips_s = {peer: float(rng.choice(ROUND_TRIPS_S)) for peer in swarm.servers}
    servers = {peer: replace(times, hop_s=trips_s[peer]) for peer, times in swarm.servers.items()}
    profiles = tuple(
        replace(profile, communication_s=trips_s[profile.peer] * served.output_tokens) for profile in swarm.profiles
    )
    return replace(swarm, servers=servers, profiles=profiles)


def _pairs(swarm: Swarm, rng: np.random.Generator) -> dict[tuple[PeerId, PeerId], float]:
    """Communication of a request between every two servers, the same both ways."""
    pair_s = {}
    for one, other in combinations(swarm.servers, 2):
        trip_s = float(rng.choice(ROUND_TRIPS_S))
        pair_s[one, other] = pair_s[other, one] = trip_s * swarm.served.output_tokens
    return pair_s


def card(rng: np.random.Generator) -> Kind:
    """One of the cards that people have."""
    slowness = rng.choice(SLOWNESS)
    return Kind(
        memory_bytes=USABLE * GB * rng.choice(MEMORIES_GB),
        flop_per_s=HIGH.flop_per_s / slowness,
        bytes_per_s=HIGH.bytes_per_s / slowness,
    )


def _ratios(swarm: Swarm, rate: float, seed: int, *, pair_s: PairSeconds | None = None) -> tuple[float, float] | None:
    """Lower bound and simulated mean, after over before; None if GBP-CR makes no chains that bear the rate."""
    choice: ConcurrencyChoice = tuned(swarm, rate, pair_s=pair_s)
    if not choice.is_stable or choice.placement is None or choice.chosen is None:
        return None
    after = improve(swarm.profiles, swarm.served.spec, choice.placement.placement, arrival_rate=rate, pair_s=pair_s)

    def simulated_s(chains: tuple[PlannedChain, ...]) -> float:
        requests = requests_of(swarm.served, NUM_REQUESTS, rate=rate, rng=np.random.default_rng([seed, 1]))
        policy = JoinFastestFree([chain.rate for chain in chains], [chain.capacity for chain in chains])
        outcome = run(requests, ChainScheduler(policy, chains, by_size(requests, chains)))
        return float(outcome.response_s[int(WARM_UP * NUM_REQUESTS) :].mean())

    return after.cost_s / choice.chosen.lower_s, simulated_s(after.chains) / simulated_s(choice.chains)


def _spread(found: list[tuple[float, float] | None]) -> dict[str, Any]:
    ratios = [ratio for ratio in found if ratio is not None]
    if not ratios:
        return {"num_swarms": 0}
    bound, simulated = np.array(ratios).T
    return {
        "num_swarms": len(ratios),
        **{
            name: {"mean": float(values.mean()), "least": float(values.min()), "most": float(values.max())}
            for name, values in (("bound", bound), ("simulated", simulated))
        },
    }


def plot(figures: dict[str, Any]) -> Figure:
    drawn, axes = figure(len(MODELS))
    for ax, name in zip(axes, MODELS, strict=True):
        for links, load in product(LINKS, LOADS):
            rows = {size: figures["small"][f"{name}; {links}; {size}; {load}"] for size in SIZES}
            sizes = [size for size, row in rows.items() if row["num_swarms"]]
            means = [rows[size]["simulated"]["mean"] for size in sizes]
            ax.plot(sizes, means, marker=".", label=f"{links}, load {load}")
        ax.set(title=name, xlabel="servers", ylabel="response time after / before, simulated", ylim=(0, 1.1))
        ax.legend()
    return drawn


def describe(figures: dict[str, Any]) -> str:
    head = ["bound: mean", "least", "simulated: mean", "least", "most", "swarms"]
    paper = [[*key.split(", "), *_cells(row)] for key, row in figures["paper"].items()]
    small = [[*key.split("; "), *_cells(row)] for key, row in figures["small"].items()]
    return "\n\n".join([
        "Mean response time after the search, relative to that before it. The paper's swarms, eta = 0.2:",
        table(["J", "lambda", *head], paper),
        f"Small swarms of unlike cards ({min(MEMORIES_GB)} to {max(MEMORIES_GB)} GB, speeds "
        f"{max(SLOWNESS) / min(SLOWNESS):.1f} times apart), at shares of the rate that the best c bears:",
        table(["model", "links", "servers", "load", *head], small),
    ])  # fmt: skip


def _cells(row: dict[str, Any]) -> list[str]:
    if not row["num_swarms"]:
        return ["", "", "", "", "", "0"]
    bound, simulated = row["bound"], row["simulated"]
    values = (bound["mean"], bound["least"], simulated["mean"], simulated["least"], simulated["most"])
    return [*(f"{value:.2f}" for value in values), str(row["num_swarms"])]
