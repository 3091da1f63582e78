"""The runs: each starts swarms, sends load, and gives figures; everything they start is gone afterwards."""

import json
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from chainserve_client.bench.load import Lengths, read_trace, slice_of
from network.emulation import Hosts
from network.figures import figures_of
from network.forecast import forecast, see
from network.settings import OURS, POLICIES, Load, Policy, Setting, bench_options, scaled
from network.swarm import Killing, NetworkSwarm

Say = Callable[[str], None]

LOADS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
KILL_EVERY_S, AGAIN_AFTER_S = 30.0, 5.0
MOST_TIMES_LONGER = 6.0
"""A run may take so many times as long as its requests take to come, and a minute for each hundred of them."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where runs happen: hosts, the kept profiles, and a folder for what is only looked at when something is wrong."""

    hosts: Hosts
    profiles: Path
    folder: Path
    say: Say


def policies(place: Place, setting: Setting, names: Sequence[str]) -> dict[str, Any]:
    """The same load for each policy, on a swarm of its own."""
    return {name: one(place, setting, name) for name in names}


def one(place: Place, setting: Setting, name: str) -> dict[str, Any]:
    """One policy: start, load, stop."""
    place.say(f"== {name}")
    with started(place, setting, POLICIES[name], name) as (swarm, status, start_s):
        figures, report = loaded(place, swarm, setting, POLICIES[name])
        after = swarm.status()
        prediction = predicted(place, swarm, setting, POLICIES[name], report)
    keep_raw(place.folder / name, report=report, status=status, after=after)
    return {
        **figures,
        "start_s": start_s,
        **of_plan(status, swarm.host_of),
        "overrun": overrun(after),
        "prediction": prediction,
    }


def churn(place: Place, setting: Setting, *, seed: int = 0) -> dict[str, Any]:
    """Ours, while a server is killed every so often."""
    place.say(f"== {OURS}, a server killed every {KILL_EVERY_S:g} s")
    with started(place, setting, POLICIES[OURS], "churn") as (swarm, status, start_s):
        with Killing(swarm, KILL_EVERY_S, AGAIN_AFTER_S, random.Random(seed)) as killing:
            figures, report = loaded(place, swarm, setting, POLICIES[OURS])
        after = swarm.status()
    keep_raw(place.folder / "churn", report=report, status=status, after=after)
    lost = figures["num_requests"] - figures["num_answered"]
    return {**figures, "start_s": start_s, "killed": killing.log, "num_lost": lost, **of_plan(status, swarm.host_of)}


def loads(place: Place, setting: Setting, *, shares: Sequence[float] = LOADS) -> dict[str, Any]:
    """Ours, with load from little to more than the plan's capacity, on one swarm."""
    place.say(f"== {OURS}, loads of {shares[0]:g} to {shares[-1]:g} of capacity")
    rows: dict[str, Any] = {}
    with started(place, setting, POLICIES[OURS], "loads") as (swarm, status, start_s):
        plan = of_plan(status, swarm.host_of)
        for share in shares:
            rate = share * plan["max_requests_per_s"]
            figures, report = loaded(place, swarm, scaled(setting, rate=rate), POLICIES[OURS])
            prediction = predicted(place, swarm, setting, POLICIES[OURS], report)
            keep_raw(place.folder / f"load-{share:g}", report=report)
            rows[f"{share:g}"] = {
                **figures,
                "rate": rate,
                "prediction": prediction,
            }
    return {"loads": rows, "start_s": start_s, **plan}


@contextmanager
def started(
    place: Place, setting: Setting, policy: Policy, name: str
) -> Iterator[tuple[NetworkSwarm, dict[str, Any], float]]:
    """A swarm that serves every block: itself, its status, and the seconds that took."""
    folder = place.folder / name / "servers"
    folder.mkdir(parents=True)
    with NetworkSwarm(place.hosts, setting, policy, folder, profiles=place.profiles) as swarm:
        began_s = time.monotonic()
        status = swarm.start(place.say)
        start_s = time.monotonic() - began_s
        place.say(f"every block is served after {start_s:.0f} s")
        yield swarm, status, start_s


def loaded(
    place: Place, swarm: NetworkSwarm, setting: Setting, policy: Policy
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Send the load: figures, and the report they were made from."""
    load = setting.load
    before, began_s = psutil.cpu_times(), time.monotonic()
    report = swarm.bench(bench_options(load, policy), timeout_s=longest_s(load))
    took_s, after = time.monotonic() - began_s, psutil.cpu_times()
    busy_s = sum(after[:3]) - sum(before[:3])  # user, nice, system
    figures = figures_of(report, place.hosts.topology, swarm.host_of)
    figures["cores_busy"] = busy_s / took_s
    response = figures["times"]["response"]
    place.say(
        f"{figures['num_answered']} of {figures['num_requests']} requests in {took_s:.0f} s, mean response "
        + (f"{response['mean']:.2f} s" if response else "unknown")
        + f", {figures['cores_busy']:.2f} cores busy"
    )
    return figures, report


def longest_s(load: Load) -> float:
    """When a run is given up."""
    return MOST_TIMES_LONGER * load.num_requests / load.rate + 0.6 * load.num_requests + 60


def of_plan(status: Mapping[str, Any], host_of: Mapping[str, str]) -> dict[str, Any]:
    """What a reader wants to know of the plan that was followed."""
    plan = status["models"][0]["plan"]
    return {
        "placement": {host_of[server["peer"]]: server["blocks"] for server in plan["servers"]},
        "chains": [
            {
                "hosts": [host_of[hop[0]] for hop in chain["hops"]],
                "sessions": chain.get("capacity", chain.get("sessions")),
            }
            for chain in plan.get("chains") or ()
        ],
        "concurrency": plan.get("concurrency"),
        "max_requests_per_s": plan.get("max_requests_per_s"),
    }


def overrun(status: Mapping[str, Any]) -> float | None:
    """How many times as long as emulated the median forward took, at the server where that is most."""
    ratios = [
        check["observed_s"] / check["predicted_s"]
        for server in status["servers"]
        for check in ((server["offer"] or {}).get("prefill"), (server["offer"] or {}).get("decode"))
        if check
    ]
    return max(ratios, default=None)


def predicted(
    place: Place, swarm: NetworkSwarm, setting: Setting, policy: Policy, report: Mapping[str, Any]
) -> dict[str, Any]:
    """What the simulator says of the same requests on the swarm as it is."""
    seen = see(place.hosts, swarm.token, setting)
    return forecast(policy.dispatch, report["requests"], seen, place.hosts.topology, swarm.host_of)


def keep_raw(folder: Path, **contents: Any) -> None:
    """Everything, for whoever looks into a run."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def mean_tokens(load: Load) -> tuple[float, float]:
    """In and out, of the requests that will be sent."""
    if load.trace is None:
        return load.mean_tokens
    lengths = Lengths(scale=load.scale_tokens, min_output=load.min_output, max_input=load.max_input)
    rows = slice_of(read_trace(load.trace), first=0, num_requests=load.num_requests)
    inputs, outputs = zip(*(lengths.of(row.input_tokens, row.output_tokens) for row in rows), strict=True)
    return statistics.fmean(inputs), statistics.fmean(outputs)
