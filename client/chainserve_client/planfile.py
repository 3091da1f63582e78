"""A servers file: what servers a swarm would have, before any of them exists.

[servers.alice]
gpu = "RTX 4090"            # or memory, flops and bandwidth, which also go before what the gpu has
round_trip = "20 ms"        # to the others

[servers.bob]
memory = "12GB"
prefill = "30 us"           # measured, per token and block
decode = "900 us"           # measured, per token and block
round_trip = "35 ms"
blocks = "16:28"            # its owner chose them

[round_trips]
"alice bob" = "3 ms"        # where it is another one than the two servers' own
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chainserve.errors import SpanError, UsageError
from chainserve.types import PeerId, Span
from chainserve_client.gpus import Gpu, find_gpu
from chainserve_client.units import BANDWIDTH, COMPUTING, DURATION, MEMORY, Quantity

USABLE_SHARE = 0.9
"""Of a GPU's memory: the driver, activations and what else runs there take the rest."""

OVERHEAD_S = 0.001
"""Per block and prefill, unless the file says otherwise: what Sun et al. 2026 take."""

MAX_NAME_CHARS = 16

QUANTITIES: Mapping[str, Quantity] = {
    "memory": MEMORY,
    "flops": COMPUTING,
    "bandwidth": BANDWIDTH,
    "overhead": DURATION,
    "prefill": DURATION,
    "decode": DURATION,
    "round_trip": DURATION,
}

MAY_BE_ZERO = {"round_trip", "overhead"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FutureServer:
    """One server of the file, in bytes and seconds; its speeds are measured ones or those of its hardware."""

    peer: PeerId
    memory_bytes: float
    round_trip_s: float
    overhead_s: float
    prefill_s: float | None  # per token and block; None: as `flop_per_s` allows
    decode_s: float | None  # per token and block; None: as `bytes_per_s` allows
    flop_per_s: float | None
    bytes_per_s: float | None
    pinned: Span | None


@dataclass(frozen=True, slots=True)
class FutureSwarm:
    """All that a servers file says."""

    servers: tuple[FutureServer, ...]
    round_trips_s: Mapping[frozenset[PeerId], float]  # of pairs for which it was given

    def round_trip_s(self, one: FutureServer, other: FutureServer) -> float:
        """Seconds between two servers and back: as given, else the mean of what either has to the others."""
        mean_s = (one.round_trip_s + other.round_trip_s) / 2
        return self.round_trips_s.get(frozenset({one.peer, other.peer}), mean_s)


def read_servers(path: Path, *, half_precision: bool) -> FutureSwarm:
    """Read a servers file; UsageError with the fact and the way out if it is not one.

    Speeds of known GPUs are those of half precision, and are refused for another.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from None
    try:
        return _swarm(content, half_precision=half_precision)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _swarm(content: Mapping[str, Any], *, half_precision: bool) -> FutureSwarm:
    _check_keys(content, {"servers", "round_trips"}, where="the file")
    tables = _table(content.get("servers", {}), "servers")
    if not tables:
        raise UsageError("there are no servers: add a table like [servers.alice] for each")
    servers = tuple(
        _server(name, _table(table, f"servers.{name}"), half_precision=half_precision) for name, table in tables.items()
    )
    known = {server.peer for server in servers}
    round_trips_s: dict[frozenset[PeerId], float] = {}
    for words, value in _table(content.get("round_trips", {}), "round_trips").items():
        pair = _pair(words, known)
        if pair in round_trips_s:
            raise UsageError(f"round_trips has {words!r} twice: leave one out")
        round_trips_s[pair] = _amount({"round_trip": value}, "round_trip", where=words)
    return FutureSwarm(servers, round_trips_s)


def _server(name: str, table: Mapping[str, Any], *, half_precision: bool) -> FutureServer:
    if not (0 < len(name) <= MAX_NAME_CHARS and name.isprintable() and not any(map(str.isspace, name))):
        raise UsageError(f"not a name for a server: {name!r} (1 to {MAX_NAME_CHARS} characters without spaces)")
    _check_keys(table, {*QUANTITIES, "gpu", "blocks"}, where=name)
    given = {key: _amount(table, key, where=name) for key in QUANTITIES if key in table}
    for measured, hardware in (("prefill", "flops"), ("decode", "bandwidth")):
        if measured in given and hardware in given:
            raise UsageError(f"{name} has both {measured} and {hardware}: leave one out")
    gpu = find_gpu(_text(table, "gpu", where=name)) if "gpu" in table else None
    if gpu and not half_precision and not {"prefill", "flops"} & given.keys():
        raise UsageError(f"{name}: its GPU's speed is known for half precision only: give flops or prefill")
    known = _of_gpu(gpu) | given
    for key, instead in (("memory", ""), ("round_trip", ""), ("flops", "prefill"), ("bandwidth", "decode")):
        if key not in known and instead not in known:
            raise UsageError(
                f"{name} lacks {key}: add it, as in {key} = {QUANTITIES[key].example!r}"
                + ("" if key == "round_trip" else f", or gpu, or {instead}" if instead else ", or gpu")
            )
    return FutureServer(
        peer=PeerId(name),
        memory_bytes=known["memory"],
        round_trip_s=known["round_trip"],
        overhead_s=known.get("overhead", OVERHEAD_S),
        prefill_s=known.get("prefill"),
        decode_s=known.get("decode"),
        flop_per_s=known.get("flops"),
        bytes_per_s=known.get("bandwidth"),
        pinned=_span(table, where=name) if "blocks" in table else None,
    )


def _of_gpu(gpu: Gpu | None) -> dict[str, float]:
    if gpu is None:
        return {}
    memory_bytes = gpu.memory_gb * 1e9 * USABLE_SHARE
    return {"memory": memory_bytes, "flops": gpu.teraflops * 1e12, "bandwidth": gpu.gb_per_s * 1e9}


def _pair(words: str, known: set[PeerId]) -> frozenset[PeerId]:
    pair = frozenset(PeerId(name) for name in words.split())
    if len(pair) != 2 or len(words.split()) != 2:
        raise UsageError(f"round_trips has {words!r}, which is not two servers, as in 'alice bob'")
    if unknown := pair - known:
        raise UsageError(f"round_trips has {words!r}, but there is no server {', '.join(sorted(unknown))}")
    return pair


def _amount(table: Mapping[str, Any], key: str, *, where: str) -> float:
    """An amount with its unit: bare numbers are refused, as nobody remembers which unit is meant."""
    text = _text(table, key, where=where)
    try:
        amount = QUANTITIES[key].parse(text)
    except UsageError as error:
        raise UsageError(f"{key} of {where}: {error}") from None
    if amount == 0 and key not in MAY_BE_ZERO:
        raise UsageError(f"{key} of {where} is 0: it has to be more")
    return amount


def _span(table: Mapping[str, Any], *, where: str) -> Span:
    try:
        return Span.parse(_text(table, "blocks", where=where))
    except SpanError as error:
        raise UsageError(f"blocks of {where}: {error}") from None


def _text(table: Mapping[str, Any], key: str, *, where: str) -> str:
    """The text under `key`; UsageError if it is anything else."""
    value = table[key]
    if not isinstance(value, str):
        raise UsageError(f"{key} of {where} is {value!r}: write it in quotes, with its unit if it has one")
    return value


def _table(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{name} is {value!r}, not a table: start it with [{name}]")
    return value


def _check_keys(table: Mapping[str, Any], known: set[str], *, where: str) -> None:
    if unknown := sorted(set(table) - known):
        raise UsageError(
            f"{where} has {', '.join(unknown)}, which means nothing here: known are {', '.join(sorted(known))}"
        )
