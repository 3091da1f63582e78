"""Plan a swarm of servers that do not exist yet, and say what its users would see."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

from chainserve.errors import UsageError
from chainserve.planning.plan import Plan, plan
from chainserve.planning.prediction import Prediction, predict
from chainserve.planning.spares import leave_out
from chainserve.planning.times import BlockTimes, ServerTimes
from chainserve.planning.values import LeftOut, ModelSpec, PairSeconds, Workload
from chainserve.types import PeerId
from chainserve_client.planfile import FutureServer, FutureSwarm

if TYPE_CHECKING:
    from chainserve.models.costs import ModelCosts  # takes torch

MAX_LEFT_OUT = 12
"""Each server of a swarm up to this size is left out of the plan once, which takes as many plans."""

SEARCH_EFFORT = 6_000
"""Of the local search, in each of those plans: a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What the swarm would be used for: the mean request, and how many come."""

    arrival_rate: float  # requests per second
    input_tokens: int
    output_tokens: int
    max_length: int  # tokens of cache reserved for each session

    def __post_init__(self) -> None:
        if not (math.isfinite(self.arrival_rate) and self.arrival_rate > 0):
            raise UsageError(f"not a rate of requests: {self.arrival_rate:g} (want more than 0 per second)")
        if self.input_tokens < 1 or self.output_tokens < 1:
            raise UsageError(
                f"requests of {self.input_tokens} tokens in and {self.output_tokens} out: both have to be at least 1"
            )
        if self.max_length < self.input_tokens + self.output_tokens:
            raise UsageError(
                f"a mean request takes {self.input_tokens + self.output_tokens} tokens, sessions hold at most "
                f"{self.max_length}: raise --max-length"
            )


@dataclass(frozen=True)
class Forecast:
    """A plan, and what follows from it."""

    costs: ModelCosts
    demand: Demand
    plan: Plan
    predictions: tuple[Prediction, ...]  # of the plan's chains
    left_out: Mapping[PeerId, LeftOut]  # empty for large swarms, apart from servers without blocks


def forecast(swarm: FutureSwarm, costs: ModelCosts, demand: Demand) -> Forecast:
    """Plan the swarm and predict times; NoPlanError if there is no room, UsageError for blocks that cannot be pinned.

    A token goes from the client to the head, from server to server and back to the client, each half a round trip;
    the way back is taken to be as long as that to the head.
    """
    servers = {server.peer: _times(server, costs) for server in swarm.servers}
    hop_s = {
        (before.peer, after.peer): swarm.round_trip_s(before, after) / 2
        for before, after in permutations(swarm.servers, 2)
    }
    pair_s: PairSeconds = {pair: seconds * demand.output_tokens for pair, seconds in hop_s.items()}
    profiles = [
        servers[server.peer].profile(
            server.peer,
            server.memory_bytes,
            input_tokens=demand.input_tokens,
            output_tokens=demand.output_tokens,
            pinned=server.pinned,
        )
        for server in swarm.servers
    ]
    model = ModelSpec(
        num_blocks=costs.num_blocks,
        block_bytes=costs.block_bytes,
        slot_bytes=costs.token_bytes * demand.max_length,
        embedding_bytes=costs.embedding_bytes,
        head_bytes=costs.head_bytes,
        is_tied=costs.is_tied,
    )
    try:
        planned = plan(
            profiles, model, Workload(arrival_rate=demand.arrival_rate), pair_s=pair_s, search_effort=SEARCH_EFFORT
        )
    except ValueError as error:  # the numbers are checked by now: it is a pinned span
        raise UsageError(f"{error}; change its blocks in the servers file") from None
    examined = [peer for peer in servers if len(servers) <= MAX_LEFT_OUT or peer not in planned.placement.spans]
    return Forecast(
        costs=costs,
        demand=demand,
        plan=planned,
        predictions=tuple(
            predict(chain.chain, servers, input_tokens=demand.input_tokens, pair_hop_s=hop_s)
            for chain in planned.chains
        ),
        left_out={peer: leave_out(planned, peer, pair_s=pair_s, search_effort=SEARCH_EFFORT) for peer in examined},
    )


def _times(server: FutureServer, costs: ModelCosts) -> ServerTimes:
    """Measured times where there are any, else those that the hardware allows at best."""
    prefill_s, decode_s = server.prefill_s, server.decode_s
    if prefill_s is None:
        assert server.flop_per_s is not None
        prefill_s = costs.flop_per_token / server.flop_per_s
    if decode_s is None:
        assert server.bytes_per_s is not None
        decode_s = costs.active_bytes / server.bytes_per_s
    block = BlockTimes(overhead_s=server.overhead_s, prefill_s=prefill_s, decode_s=decode_s)
    return ServerTimes(hop_s=server.round_trip_s, block=block)
