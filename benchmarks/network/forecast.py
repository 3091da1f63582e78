"""What the simulator and the bounds say of a run: the live swarm, the links asked for, the same requests."""

from collections.abc import Mapping, Sequence
from typing import Any

from chainserve.models.resolve import resolve
from chainserve.protocol.messages import DTYPES
from chainserve.simulator.tokens.run import CLIENT as CLIENT_PEER
from chainserve.simulator.workloads import make_requests
from chainserve.types import PeerId
from chainserve_client import AsyncClient
from network.asking import at_host
from network.emulation import Hosts
from network.figures import summary
from network.prediction import Seen, Ways, look, predict
from network.settings import CLIENT, Setting
from network.topology import Topology

MESSAGE_S = 0.002
"""Software's part of a message: about what one more server costs (benchmarks/hop.py), and little beside these links."""
LOOK_S = 60.0


def see(hosts: Hosts, token: str, setting: Setting) -> Seen:
    """Read plan and records from the client's host."""
    dtype = "float32" if setting.device == "cpu" else "bfloat16"
    hidden_bytes = resolve(setting.model).config.hidden_size * DTYPES[dtype]

    async def ask() -> Seen:
        async with await AsyncClient.connect(token) as client:
            return await look(client, hidden_bytes=hidden_bytes)

    return at_host(hosts.namespace(CLIENT), ask)


def forecast(
    dispatch: str, requests: Sequence[Mapping[str, Any]], seen: Seen, topology: Topology, host_of: Mapping[str, str]
) -> dict[str, Any]:
    """Times of the requests of a report, summed up as measured ones are; with the bounds of their mean."""
    ordered = sorted(requests, key=lambda request: request["arrival_s"])
    played = make_requests(
        [request["arrival_s"] for request in ordered],
        input_tokens=[request["num_input_tokens"] for request in ordered],
        output_tokens=[max(1, request["num_tokens"]) for request in ordered],
    )
    told = predict(dispatch, played, seen, ways_of(seen, topology, host_of))
    times = told.to_json()
    return {
        **{
            kind: summary([value for value in times["requests"][f"{kind}_s"] if value is not None])
            for kind in ("response", "waiting", "service")
        },
        "num_refused": sum(value is None for value in times["requests"]["response_s"]),
        "bounds": times["bounds_s"],
    }


def ways_of(seen: Seen, topology: Topology, host_of: Mapping[str, str]) -> Ways:
    """The topology, between peers."""
    places = {CLIENT_PEER: CLIENT, **{server.peer: host_of[server.peer] for server in seen.servers}}
    pairs: dict[tuple[PeerId, PeerId], tuple[str, str]] = {
        (first, second): (places[first], places[second])
        for first in places
        for second in places
        if places[first] != places[second]
    }
    return Ways(
        round_trip_s={pair: topology.link(*hosts).round_trip_ms / 1000 for pair, hosts in pairs.items()},
        bytes_per_s={pair: topology.link(*hosts).bytes_per_s for pair, hosts in pairs.items()},
        message_s=MESSAGE_S,
    )
