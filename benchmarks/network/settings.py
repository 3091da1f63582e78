"""What is run: servers, links, load and policies, as values; and what of it is usual on two cores and on a GPU."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

PAPER_LOWER = {"petals": 0.768, "bprr": 0.631}
"""By how much the paper's mean response time was lower than these systems' (Sun et al. 2026, section 4)."""

CLIENT = "client"
OURS = "gbp-cr"


@dataclass(frozen=True, slots=True)
class Policy:
    """Who places blocks, and how requests find their chain."""

    placement: str
    dispatch: str


POLICIES: Mapping[str, Policy] = {
    "petals": Policy("petals", "petals"),
    "bprr": Policy("bprr", "bprr"),
    "whole-model": Policy("whole-model", "jffc"),
    OURS: Policy("gbp-cr", "jffc"),
}
TITLES = {"petals": "PETALS", "bprr": "BPRR", "whole-model": "whole model + JFFC", OURS: "GBP-CR + GCA + JFFC"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of server."""

    memory: str  # as --memory has it
    slowdown: float | None  # as --slowdown has it; None: as fast as the device is


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests of a trace, or drawn where there is none."""

    num_requests: int
    rate: float  # per second, on average
    trace: Path | None = None
    scale_tokens: float = 1.0  # lengths of the trace times this
    min_output: int = 1
    max_input: int | None = None
    clients: int = 1  # processes
    seed: int = 0
    output_tokens: int = 8  # without a trace
    mean_tokens: tuple[float, float] = (32.0, 8.0)  # in and out: what is planned for


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One swarm and its load."""

    model: str
    servers: Mapping[str, Kind]  # by host
    load: Load
    device: str = "cpu"
    slot_tokens: int | None = None  # of cache that planning counts per session; None: as servers do by themselves
    petals_cache_tokens: int | None = None  # per block of a PETALS server; None: as PETALS has it
    threads: int | None = 1  # of a server: more would wait for each other where servers share cores
    rate_mbit: float | None = 200.0
    start_s: float = 300.0
    """Until every block is served."""

    @property
    def hosts(self) -> tuple[str, ...]:
        return (CLIENT, *self.servers)


def named(large: Kind, small: Kind, *, num_large: int = 3, num_small: int = 6) -> dict[str, Kind]:
    """Hosts of two kinds. Small servers start first, none of which would be given the whole model to load."""
    return {
        **{f"small-{number}": small for number in range(1, num_small + 1)},
        **{f"large-{number}": large for number in range(1, num_large + 1)},
    }


TWO_CORES = Setting(
    model="smollm2-135m",
    servers=named(Kind(memory="604MB", slowdown=9.0), Kind(memory="388MB", slowdown=15.5)),
    load=Load(
        num_requests=300,
        rate=1.0,
        scale_tokens=0.005,
        min_output=2,
        max_input=37,
        clients=2,
        output_tokens=2,
        mean_tokens=(32.0, 2.0),
    ),
    slot_tokens=40,
    petals_cache_tokens=84,
)
"""Small servers hold about half the model, large ones all of it, with little cache beside."""

ONE_GPU = Setting(
    model="llama-7b-shape",
    servers=named(Kind(memory="9GB", slowdown=2.0), Kind(memory="5GB", slowdown=3.0)),
    load=Load(num_requests=1000, rate=2.57, clients=8),
    device="cuda",
    threads=None,
    rate_mbit=1000.0,
    start_s=600.0,
)
"""The trace as it is, nine servers on one device of 80 GB. The model is made by benchmarks/gpu/make_model.py."""


def scaled(setting: Setting, *, rate: float | None = None, num_requests: int | None = None) -> Setting:
    """The same with another load."""
    load = setting.load
    return replace(setting, load=replace(load, rate=rate or load.rate, num_requests=num_requests or load.num_requests))


def with_servers(setting: Setting, *, num_large: int | None = None, num_small: int | None = None) -> Setting:
    """The same with other numbers of servers; None: as many as there are."""
    kinds = {host.rpartition("-")[0]: kind for host, kind in setting.servers.items()}
    numbers = Counter(host.rpartition("-")[0] for host in setting.servers)
    servers = named(
        kinds["large"],
        kinds["small"],
        num_large=numbers["large"] if num_large is None else num_large,
        num_small=numbers["small"] if num_small is None else num_small,
    )
    return replace(setting, servers=servers)


def server_options(setting: Setting, host: str, policy: Policy) -> list[str]:
    """What `chainserve-server` is told, beside where it is and whom it joins."""
    kind, load = setting.servers[host], setting.load
    words = ["--memory", kind.memory, "--device", setting.device, "--name", host]
    if kind.slowdown is not None:
        words += ["--slowdown", f"{kind.slowdown:g}"]
    if policy.placement != OURS:
        words += ["--bench-placement", policy.placement]
    if setting.slot_tokens is not None:
        words += ["--bench-slot", str(setting.slot_tokens)]
        words += ["--bench-load", ",".join(f"{value:g}" for value in (load.rate, *load.mean_tokens))]
    if setting.petals_cache_tokens is not None and policy.placement == "petals":
        words += ["--bench-petals-cache", str(setting.petals_cache_tokens)]
    return words


def bench_options(load: Load, policy: Policy) -> list[str]:
    """What `chainserve bench` is told, beside whom it asks."""
    words = ["--requests", str(load.num_requests), "--rate", f"{load.rate:g}", "--seed", str(load.seed), "--json"]
    if policy.dispatch != "jffc":
        words += ["--dispatch", policy.dispatch]
    if load.trace is None:
        return [*words, "--output-tokens", str(load.output_tokens)]
    words += ["--trace", str(load.trace), "--scale-tokens", f"{load.scale_tokens:g}"]
    words += ["--min-output", str(load.min_output), "--clients", str(load.clients)]
    if load.max_input is not None:
        words += ["--max-input", str(load.max_input)]
    return [*words, "--max-drafts", "0"]  # the systems compared, and the simulator, draft nothing


def environment_of(setting: Setting, profiles: Path) -> dict[str, str]:
    """Of servers: where measured profiles are kept, so that one server measures for all; how many threads."""
    threads = {} if setting.threads is None else {"OMP_NUM_THREADS": str(setting.threads)}
    return {"XDG_CACHE_HOME": str(profiles), **threads}


def counts(values: Sequence[str]) -> str:
    """'3 large-, 6 small-' hosts in words."""
    kinds = Counter(value.rpartition("-")[0] for value in values)
    return ", ".join(f"{number} {kind}" for kind, number in kinds.items())
