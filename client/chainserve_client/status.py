"""`chainserve status`: who is in the swarm now, what they hold, and what is missing."""

import asyncio
import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from chainserve.errors import LinkLostError, describe_blocks
from chainserve.swarm.records import Announcement, ServerState
from chainserve.swarm.token import JoinToken
from chainserve.swarm.view import View
from chainserve.transport.links import Links
from chainserve.types import PeerId
from chainserve_client.join import join
from chainserve_client.tables import block_map, count, table
from chainserve_client.units import format_age, format_seconds

MEASURE_S = 3.0
"""How long servers have to answer on a link before theirs counts as unknown."""

POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Way:
    """A link from here to a server."""

    kind: str  # 'direct' or 'relayed'
    round_trip_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The live view of one swarm, as seen from here."""

    swarm: str
    view: View
    ways: Mapping[PeerId, Way]  # to the servers that answer

    def missing(self, model_digest: str) -> tuple[int, ...]:
        """Blocks of a model that no server which takes sessions holds."""
        num_blocks = self.view.models()[model_digest][0].num_blocks
        held = (server.span for server in self.view.online(model_digest))
        return tuple(sorted(set(range(num_blocks)).difference(*held)))


async def read_status(token: str) -> Status:
    """Join as a client, look around and leave; TokenError or JoinError if the swarm cannot be joined."""
    name = JoinToken.decode(token, now=time.time()).swarm
    network = await join(token)
    try:
        view = await network.swarm.refresh()
        return Status(swarm=name, view=view, ways=await measure(network.links, view))
    finally:
        await network.close()


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
    """The view as text: per model its servers in the order of their blocks, and the blocks nobody serves.

    It fits 100 columns as long as all servers have the same dtype and version, which are then said once.
    """
    return "\n".join(_lines(status))


def _lines(status: Status) -> Iterator[str]:
    models = status.view.models()
    num_servers = count(len(status.view.servers), "server")
    yield f"swarm {status.swarm}: {num_servers}" + (f", {len(models)} models" if len(models) > 1 else "")
    for digest, servers in sorted(models.items(), key=lambda item: item[1][0].model):
        ordered = sorted(servers, key=lambda server: (server.span, server.peer))
        rows = [_row(status, server) for server in ordered]
        alike = [name for name in ("dtype", "version") if len({row[name] for row in rows}) == 1]
        facts = [count(ordered[0].num_blocks, "block"), count(len(ordered), "server")]
        yield ""
        yield f"{ordered[0].model}: " + ", ".join(facts + [f"{name} {rows[0][name]}" for name in alike])
        head = [name for name in rows[0] if name not in alike]
        yield from table(head, [[row[name] for name in head] for row in rows], right=("blocks", "cache free"))
        missing = status.missing(digest)
        yield f"nobody serves {describe_blocks(missing)}" if missing else "every block is served"


def _row(status: Status, server: Announcement) -> dict[str, str]:
    way = status.ways.get(server.peer)
    return {
        "peer": short(server.peer),
        "state": server.state,
        "blocks": str(server.span),
        "where": block_map(server.span, num_blocks=server.num_blocks),
        "cache free": _free(server),
        "link": f"{way.kind}, {format_seconds(way.round_trip_s)}" if way else "no answer",
        "dtype": server.dtype,
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
                "missing_blocks": list(status.missing(digest)),
            }
            for digest, servers in view.models().items()
        ],
        "servers": [_server_json(status, server) for server in view.servers.values()],
    }
    return json.dumps(content, indent=2, allow_nan=False)


def _server_json(status: Status, server: Announcement) -> dict[str, Any]:
    way = status.ways.get(server.peer)
    return {
        "peer": server.peer,
        "state": server.state,
        "model_digest": server.model_digest,
        "blocks": [server.span.start, server.span.end],
        "dtype": server.dtype,
        "cache_tokens": server.cache_tokens,
        "free_tokens": server.free_tokens,
        "addresses": list(server.addresses),
        "link": way and way.kind,
        "round_trip_s": way and way.round_trip_s,
        "version": server.version,
        "up_s": status.view.taken_at - server.started_at,
    }


def short(peer: PeerId) -> str:
    """The end of a peer id, which tells peers apart where its beginning does not."""
    return peer[-6:]
