"""The network bench: many servers, wide links, a real trace, one table. Takes root, for network namespaces.

    python benchmarks/network policies [--only NAME ...] [--requests N] [--rate R]    the four policies, half an hour
    python benchmarks/network churn                                                   a server killed every 30 s
    python benchmarks/network loads                                                   0.2 to 1.2 of capacity
    python benchmarks/network links                                                   make the links, measure, and end
    python benchmarks/network gpu                                                     the full size, on a GPU of 80 GB

The RIPE table and the trace are looked for in ../shared/data, or where --data says; made-up places and drawn requests
take their place where they are not there, and the results say so. Results go to benchmarks/results/network.
"""

import argparse
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from circumstances import PROJECT, circumstances, keep
from paper.settings import AZURE, World

from chainserve.errors import ChainserveError
from network import report, runs
from network.emulation import WAYS, emulated
from network.measuring import links_json, links_table, measure
from network.settings import ONE_GPU, POLICIES, TWO_CORES, Setting, counts, scaled, with_servers
from network.topology import Topology, draw_topology, parse_topology

RESULTS = PROJECT / "benchmarks" / "results" / "network"
RUNS = ("policies", "churn", "loads", "links", "gpu")


def main() -> int:
    options = build_parser().parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):  # or the servers would stay
        signal.signal(number, lambda *_: sys.exit("told to end"))
    try:
        run(options)
    except ChainserveError as error:
        print(f"network bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", choices=RUNS)
    parser.add_argument("--only", nargs="+", choices=POLICIES, default=list(POLICIES), help="of policies and gpu")
    parser.add_argument("--requests", type=int, help="so many in a run")
    parser.add_argument("--rate", type=float, help="requests per second")
    parser.add_argument("--large", type=int, help="so many large servers")
    parser.add_argument("--small", type=int, help="so many small servers")
    parser.add_argument("--shares", type=float, nargs="+", default=list(runs.LOADS), help="of loads")
    parser.add_argument("--topology", type=Path, help="a TOML file, in place of places drawn from the table")
    parser.add_argument("--seed", type=int, default=0, help="of the places")
    parser.add_argument("--links", choices=WAYS, default="auto", help="how they are made")
    parser.add_argument("--data", type=Path, default=PROJECT.parent / "shared" / "data")
    parser.add_argument("--model", help="in place of the usual one")
    parser.add_argument(
        "--profiles", type=Path, help="where servers keep what they measured; else one measures, before all else runs"
    )
    parser.add_argument("--raw", type=Path, help="keep every request and status in this folder")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    return parser


def run(options: argparse.Namespace) -> None:
    """Make the links, measure them, run, write."""
    began_s = time.monotonic()
    world = World.read(options.data)
    setting = setting_of(options)
    topology = topology_of(options, setting, world)

    def say(text: str) -> None:
        print(f"{time.monotonic() - began_s:6.0f} s  {text}", flush=True)

    with tempfile.TemporaryDirectory() as folder, emulated(topology, options.links) as hosts:
        say(f"{len(topology.hosts)} hosts are joined by {hosts.way}")
        links = links_json(measure(hosts, bursts=options.run == "links"))
        print(links_table(links), flush=True)
        say(f"{sum(bool(link['is_as_asked']) for link in links)} of {len(links)} round trips are as asked")
        place = runs.Place(hosts, options.profiles or Path(folder), options.raw or Path(folder, "raw"), say)
        figures: Any = None
        if options.run in ("policies", "gpu"):
            figures = runs.policies(place, setting, options.only)
        elif options.run == "churn":
            figures = runs.churn(place, setting)
        elif options.run == "loads":
            figures = runs.loads(place, setting, shares=options.shares)
    about = about_of(options, setting, world, took_s=time.monotonic() - began_s, way=hosts.way)
    written = keep(
        options.output / f"{options.run}.json", about, {"links": links, "router": hosts.carried, "of": figures}
    )
    if figures is not None:
        print(report.SECTIONS[options.run](written))
    say("done")


def setting_of(options: argparse.Namespace) -> Setting:
    """The usual setting of a run, with what the options change."""
    setting = ONE_GPU if options.run == "gpu" else TWO_CORES
    setting = scaled(setting, rate=options.rate, num_requests=options.requests)
    setting = with_servers(setting, num_large=options.large, num_small=options.small)
    trace = options.data / AZURE
    load = replace(setting.load, trace=trace if trace.exists() else None)
    load = replace(load, mean_tokens=runs.mean_tokens(load))
    return replace(setting, load=load, model=options.model or setting.model)


def topology_of(options: argparse.Namespace, setting: Setting, world: World) -> Topology:
    """The file's, or drawn."""
    if options.topology is not None:
        return parse_topology(options.topology.read_text())
    return draw_topology(world.anchors, setting.hosts, seed=options.seed, rate_mbit=setting.rate_mbit)


def about_of(options: argparse.Namespace, setting: Setting, world: World, *, took_s: float, way: str) -> dict[str, Any]:
    """The circumstances, for whoever reads the table."""
    load = setting.load
    kinds = {host.rpartition("-")[0]: kind for host, kind in setting.servers.items()}
    return circumstances(
        f"network: {options.run}",
        "torch",
        model=setting.model,
        servers=counts(list(setting.servers)),
        kinds={name: {"memory": kind.memory, "slowdown": kind.slowdown} for name, kind in kinds.items()},
        links=way,
        rate_mbit=setting.rate_mbit,
        seed=options.seed,
        num_requests=load.num_requests,
        rate=load.rate,
        scale_tokens=load.scale_tokens,
        mean_tokens=load.mean_tokens,
        clients=load.clients,
        slot_tokens=setting.slot_tokens,
        took_s=took_s,
        sources=dict(world.sources),
    )


if __name__ == "__main__":
    sys.exit(main())
