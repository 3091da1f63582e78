"""`chainserve status`: who is in the swarm now, what they hold, what is missing, and the plan that they follow."""

import asyncio
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from chainserve.errors import LinkLostError, PeerError, RecordError, describe_blocks
from chainserve.swarm.plans import SwarmPlan
from chainserve.swarm.records import Announcement, ServerState, precision
from chainserve.swarm.token import JoinToken
from chainserve.swarm.view import View
from chainserve.transport.links import Links
from chainserve.types import PeerId, Span
from chainserve_client.join import join
from chainserve_client.live_json import offer_json, plan_json, record_json, span_json
from chainserve_client.live_plan import LivePlan, examine
from chainserve_client.live_report import plan_text, reach_text, title
from chainserve_client.network import Network
from chainserve_client.tables import MAP_CELLS, WIDTH, block_map, count, printable, short, table, wrapped
from chainserve_client.units import format_age, format_bytes, format_part, format_seconds

MEASURE_S = 3.0
"""How long servers have to answer on a link before theirs counts as unknown."""

POLL_S = 0.05

LEAST_CELLS = 8
"""Of a map of blocks, however wide the columns beside it."""


@dataclass(frozen=True, slots=True)
class Way:
    """A link from here to a server."""

    kind: str  # 'direct' or 'relayed'
    round_trip_s: float


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A plan that is followed and that we cannot have."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The live view of one swarm, as seen from here."""

    swarm: str
    view: View
    ways: Mapping[PeerId, Way]  # to the servers that answer
    plans: Mapping[str, LivePlan | Unreadable] = field(default_factory=dict)  # that are followed, by model digest


async def read_status(token: str) -> Status:
    """Join as a client, look around and leave; TokenError or JoinError if the swarm cannot be joined."""
    name = JoinToken.decode(token, now=time.time()).swarm
    network = await join(token)
    try:
        view = await network.swarm.refresh()
        ways, plans = await asyncio.gather(measure(network.links, view), read_plans(network, view))
    finally:
        await network.close()
    examined = {digest: await asyncio.to_thread(look_into, plan) for digest, plan in plans.items()}
    return Status(swarm=name, view=view, ways=ways, plans=examined)


async def read_plans(network: Network, view: View) -> dict[str, SwarmPlan | Unreadable]:
    """The plan that is followed of every model that has servers and a plan."""
    plans: dict[str, SwarmPlan | Unreadable] = {}
    for digest in view.models():
        if (record := view.plan(digest)) is not None:
            try:
                plans[digest] = await network.read_plan(record, view)
            except (PeerError, RecordError) as error:
                plans[digest] = Unreadable(str(error))
    return plans


def look_into(plan: SwarmPlan | Unreadable) -> LivePlan | Unreadable:
    """What follows from a plan, as far as it makes sense."""
    if isinstance(plan, Unreadable):
        return plan
    try:
        return examine(plan)
    except ValueError as error:
        return Unreadable(str(error))


async def measure(links: Links, view: View, *, timeout_s: float = MEASURE_S) -> dict[PeerId, Way]:
    """Make a link to every server at once, and see which of them answer within the time, and how soon."""
    ways: dict[PeerId, Way] = {}

    async def reach(peer: PeerId) -> None:
        await links.connect(peer)
        while kind := links.kind(peer):
            if (round_trip_s := links.round_trip_s(peer)) is not None:
                ways[peer] = Way(kind, round_trip_s)
                return
            await asyncio.sleep(POLL_S)

    async def try_to_reach(peer: PeerId) -> None:
        with suppress(LinkLostError, TimeoutError):
            await asyncio.wait_for(reach(peer), timeout_s)

    await asyncio.gather(*map(try_to_reach, view.servers))
    return ways


def to_text(status: Status) -> str:
    """The view as text: per model its servers in the order of their blocks, the blocks nobody serves, and the plan.

    It fits 100 columns: maps of blocks are as wide as there is room.
    """
    return "\n".join(_lines(status))


def _lines(status: Status) -> Iterator[str]:
    view = status.view
    models = view.models()
    num_servers = count(len(view.servers), "server")
    yield f"swarm {status.swarm}: {num_servers}" + (f", {len(models)} models" if len(models) > 1 else "")
    for peer, reason in view.refused.items():
        yield from wrapped(f"not believed: {short(peer)} ({printable(reason)})")
    for digest, servers in sorted(models.items(), key=lambda item: item[1][0].model):
        yield ""
        yield from _model_lines(status, digest, sorted(servers, key=_by_blocks))


def _by_blocks(server: Announcement) -> tuple[bool, Span | None, PeerId]:
    """Those that wait for blocks come last."""
    return server.span is None, server.span, server.peer


def _model_lines(status: Status, digest: str, servers: Sequence[Announcement]) -> Iterator[str]:
    rows = [_row(status, server) for server in servers]
    alike = [name for name in ("dtype", "version") if len({row[name] for row in rows}) == 1]
    facts = [count(servers[0].num_blocks, "block"), count(len(servers), "server")]
    yield f"{servers[0].model}: " + ", ".join(facts + [f"{name} {rows[0][name]}" for name in alike])
    head = [name for name in rows[0] if name not in alike]
    others = sum(max(len(name), *(len(row[name]) for row in rows)) + 2 for name in head if name != "where")
    max_cells = min(max(WIDTH - others - len("[]"), LEAST_CELLS), MAP_CELLS)
    for row, server in zip(rows, servers, strict=True):
        row["where"] = block_map(server.span, num_blocks=server.num_blocks, max_cells=max_cells)
    yield from table(head, [[row[name] for name in head] for row in rows], right=("blocks", "weights", "cache free"))
    if any(server.pinned for server in servers):
        yield "* blocks chosen by the server's owner"
    missing = status.view.missing(digest)
    yield f"nobody serves {describe_blocks(missing)}" if missing else "every block is served"
    yield from reach_text(servers)
    yield ""
    record, live = status.view.plan(digest), status.plans.get(digest)
    if record is None or live is None:
        yield "there is no plan yet"
    elif isinstance(live, Unreadable):
        yield from wrapped(f"{title(record, servers)}; it cannot be read: {printable(live.reason)}")
    else:
        yield title(record, servers)
        yield from plan_text(live, servers, refused=status.view.refused)


def _row(status: Status, server: Announcement) -> dict[str, str]:
    way, offer = status.ways.get(server.peer), server.offer
    memory = format_part(server.weight_bytes, offer.memory_bytes) if offer else format_bytes(server.weight_bytes)
    return {
        "peer": short(server.peer),
        "state": server.state,
        "blocks": str(server.span or "none") + ("*" if server.pinned else ""),
        "where": "",  # when all others are known
        "weights": memory,
        "cache free": _free(server),
        "link": f"{way.kind}, {format_seconds(way.round_trip_s)}" if way else "no answer",
        "dtype": precision(server.dtype, server.quant),
        "version": server.version,
        "up": format_age(status.view.taken_at - server.started_at),
    }


def _free(server: Announcement) -> str:
    """'62% of 20,000' tokens."""
    share = server.free_tokens / server.cache_tokens if server.cache_tokens else 0
    return f"{math.floor(100 * share)}% of {server.cache_tokens:,}"


def to_json(status: Status) -> str:
    """The same, with whole peer ids and addresses, in seconds and tokens."""
    view = status.view
    content = {
        "swarm": status.swarm,
        "taken_at": view.taken_at,
        "num_servers": len(view.servers),
        "models": [
            {
                "name": servers[0].model,
                "digest": digest,
                "num_blocks": servers[0].num_blocks,
                "num_servers": len(servers),
                "num_online": sum(server.state is ServerState.ONLINE for server in servers),
                "missing_blocks": list(status.view.missing(digest)),
                "plan": _plan_json(status, digest, servers),
            }
            for digest, servers in view.models().items()
        ],
        "servers": [_server_json(status, server) for server in view.servers.values()],
        "refused": dict(view.refused),
    }
    return json.dumps(content, indent=2, allow_nan=False)


def _plan_json(status: Status, digest: str, servers: Sequence[Announcement]) -> dict[str, Any] | None:
    record, live = status.view.plan(digest), status.plans.get(digest)
    if record is None or live is None:
        return None
    if isinstance(live, Unreadable):
        return record_json(record, servers) | {"cannot_be_read": live.reason}
    return plan_json(live, record, servers)


def _server_json(status: Status, server: Announcement) -> dict[str, Any]:
    way = status.ways.get(server.peer)
    return {
        "peer": server.peer,
        "state": server.state,
        "model_digest": server.model_digest,
        "blocks": span_json(server.span),
        "is_pinned": server.pinned,
        "epoch": server.epoch,
        "dtype": server.dtype,
        "quant": server.quant,
        "weight_bytes": server.weight_bytes,
        "cache_tokens": server.cache_tokens,
        "free_tokens": server.free_tokens,
        "addresses": list(server.addresses),
        "link": way and way.kind,
        "round_trip_s": way and way.round_trip_s,
        "version": server.version,
        "up_s": status.view.taken_at - server.started_at,
        "offer": offer_json(server.offer),
    }
