"""What the simulator and the bounds say of a run on the live swarm: response, waiting and service of every request.

    predicted = predict("jffc", requests, seen, ways)

`requests`  the run's own arrivals and tokens (`simulator.workloads.make_requests`: seconds from the first arrival on).
`seen`      the plan and the servers' records, as `look(client)` reads them from the live swarm: where blocks are,
            chains and places, memory, and the profile that each server announces, as live traffic has corrected it.
`ways`      round trips and rates that the topology was asked for (or that were measured), between peers; the client is
            `CLIENT`. `message_s` is what software adds to every message: `software_s` finds it from requests that ran
            alone before the run. With `window_bytes` TCP starts slowly on links that were idle.

It is the token-level simulator, which runs what the live system runs: a place is asked for, the session opened along
its chain, the prompt cut by the head, sampled tokens go from the tail to the head and the client, servers batch what is
ready. What it leaves out: drafts and shared prefixes (a run should have none), servers that come or go, the second
round of questions where the fastest chain is full, time limits of patient chains. BPRR's clients are taken to know
all sessions, and PETALS' to see a server's cache some seconds late.

`waiting_s` is counted as clients count it: until the session is open. The bounds are Thm. 4's over the chains (for
routes: those that GCA finds over the same placement), each with the time of a mean request that is alone on it.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chainserve.planning.allocation import allocate
from chainserve.planning.baselines import bprr, petals
from chainserve.planning.bounds import response_time_bounds
from chainserve.planning.dispatch import (
    JoinFastestFree,
    JoinShortestQueue,
    Policy,
    RandomChain,
    ShortestExpectedDelay,
)
from chainserve.planning.profile import StepTimes
from chainserve.planning.rules import ROUTED
from chainserve.planning.sharing import Sharing, Turns, patience_beside, turns_of
from chainserve.planning.values import PlannedChain, ResponseTimeBounds
from chainserve.simulator.tokens.admission import MakePolicy, Slots
from chainserve.simulator.tokens.membership import while_live
from chainserve.simulator.tokens.outcome import TokenOutcome
from chainserve.simulator.tokens.routed import BprrRouting, MakeRouting, PetalsRouting
from chainserve.simulator.tokens.run import CLIENT, simulate
from chainserve.simulator.tokens.servers import Server
from chainserve.simulator.tokens.values import Link, Mode, Protocol, TokenServer
from chainserve.simulator.workloads import Requests, make_requests
from chainserve.swarm.inputs import DEFAULT_DEMAND
from chainserve.swarm.offers import Offer, StepCheck
from chainserve.swarm.plans import SwarmPlan
from chainserve.swarm.records import Announcement, ServerState
from chainserve.types import Chain, PeerId
from chainserve_client import AsyncClient, Generation
from chainserve_client.dispatch import seen_s

SEEN_EVERY_S = 4.0
"""How old what a client knows of a server's cache gets: records are read every 5 s, and written at each change."""
TOKEN_BYTES, MESSAGE_BYTES = 4, 120
FIRST_WINDOW_BYTES = 14_600
"""Ten segments: TCP's usual first window, for `Ways.window_bytes`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """What lies between peers; a pair is given in one order or both, and what is not given is near."""

    round_trip_s: Mapping[tuple[PeerId, PeerId], float]
    bytes_per_s: Mapping[tuple[PeerId, PeerId], float] = field(default_factory=dict)
    message_s: float = 0.0
    window_bytes: float = float("inf")

    def link(self, sender: PeerId, receiver: PeerId) -> Link:
        """One direction of one link."""
        pairs = (sender, receiver), (receiver, sender)
        trip_s = next((self.round_trip_s[pair] for pair in pairs if pair in self.round_trip_s), 0.0)
        rate = next((self.bytes_per_s[pair] for pair in pairs if pair in self.bytes_per_s), float("inf"))
        return Link(delay_s=trip_s / 2 + self.message_s, bytes_per_s=rate, window_bytes=self.window_bytes)

    def trip_s(self, first: PeerId, second: PeerId) -> float:
        """There and back, as the peers' own beats would measure it."""
        return 2 * self.link(first, second).delay_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The live swarm as it was looked at."""

    plan: SwarmPlan
    servers: tuple[Announcement, ...]  # of its model, online
    hidden_bytes: int  # of one token's activations on a link


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """Seconds of every request, in the order of arrival, nan where it was refused; and the bounds of their mean."""

    response_s: NDArray[np.float64]
    waiting_s: NDArray[np.float64]
    service_s: NDArray[np.float64]
    first_token_s: NDArray[np.float64]
    bounds: ResponseTimeBounds

    def to_json(self) -> dict[str, Any]:
        """As plain numbers; null for what is not finite."""
        times = ("response_s", "waiting_s", "service_s", "first_token_s")
        lists = {name: [_finite(value) for value in getattr(self, name).tolist()] for name in times}
        means = {name: _finite(float(np.nanmean(getattr(self, name)))) for name in times}
        return {
            "mean": means,
            "bounds_s": [_finite(self.bounds.lower_s), _finite(self.bounds.upper_s)],
            "requests": lists,
        }


async def look(client: AsyncClient, *, hidden_bytes: int) -> Seen:
    """Read plan and records from the live swarm; `hidden_bytes`: hidden size times bytes of the dtype."""
    plan = await client.plan()
    if plan is None:
        raise ValueError("the swarm has no plan yet: wait until it is settled")
    servers = client.network.swarm.view.servers.values()
    online = [s for s in servers if s.state is ServerState.ONLINE and s.model_digest == client.model.digest]
    return Seen(plan=plan, servers=tuple(online), hidden_bytes=hidden_bytes)


def software_s(answers: Sequence[Generation], ways: Ways) -> float:
    """Seconds that each message takes beside links and forwards: the median over requests that ran alone.

    They should have prompts of a token or two and no drafts: then all their forwards are alike. What is left of the
    time between tokens without links and forwards is divided by the number of hops.
    """
    found = []
    for answer in answers:
        hops, gaps = answer.chain.hops, len(answer.tokens) - 1
        if gaps < 1 or not answer.hop_times:
            continue
        around = [*(hop.peer for hop in hops), hops[0].peer]
        links_s = sum(ways.trip_s(*pair) / 2 - ways.message_s for pair in pairwise(around))
        decode_s = sum(hop.compute_s for hop in answer.hop_times) / (gaps + 1)
        token_s = (answer.total_s - answer.first_token_s) / gaps
        found.append((token_s - links_s - decode_s) / len(hops))
    return max(0.0, float(np.median(found))) if found else 0.0


def predict(dispatch: str, requests: Requests, seen: Seen, ways: Ways, *, seed: int = 0) -> Predicted:
    """Play these requests over the swarm as it was seen, under this rule of dispatch."""
    chains = _chains(seen, requests, ways)
    if not chains:
        raise ValueError("there is no chain through the model: nothing can be predicted")
    slots = _slots(seen.plan, requests)
    routing = _routing(dispatch, requests, seen, ways) if dispatch in ROUTED else None
    outcome = _play(
        requests,
        seen,
        ways,
        chains=() if routing else chains,
        make_policy=_policy(dispatch, seen.plan, requests, chains, seed=seed),
        slots=slots,
        make_routing=routing,
    )
    return Predicted(
        response_s=outcome.response_s,
        waiting_s=outcome.placed_s - requests.arrival_s,
        service_s=outcome.finish_s - outcome.placed_s,
        first_token_s=outcome.time_to_first_token_s,
        bounds=_bounds(chains, requests, seen, ways, slots=slots),
    )


def speed_of(offer: Offer) -> StepTimes:
    """What a server's forwards take: its profile, times what live traffic has shown it to be off by."""
    times, prefill, decode = offer.profile.times, _ratio(offer.prefill), _ratio(offer.decode)
    return StepTimes(
        forward_s=times.forward_s * decode,
        prefill=tuple((size, seconds * prefill) for size, seconds in times.prefill),
        decode=tuple((size, seconds * decode) for size, seconds in times.decode),
        head=tuple((size, seconds * decode) for size, seconds in times.head),
    )


def _ratio(check: StepCheck | None) -> float:
    return 1.0 if check is None else check.ratio


def _play(
    requests: Requests,
    seen: Seen,
    ways: Ways,
    *,
    chains: Sequence[PlannedChain],
    make_policy: MakePolicy = JoinFastestFree,
    slots: Slots | None = None,
    make_routing: MakeRouting | None = None,
) -> TokenOutcome:
    servers = [
        TokenServer(
            peer=server.peer,
            speed=speed_of(server.offer),
            cache_tokens=server.cache_tokens * len(server.span),
        )
        for server in seen.servers
        if server.offer is not None and server.span is not None
    ]
    return simulate(
        requests,
        servers,
        link_of=ways.link,
        replan=while_live(chains),
        make_policy=make_policy,
        protocol=Protocol(
            mode=Mode.TOKEN,
            hidden_bytes=seen.hidden_bytes,
            token_bytes=TOKEN_BYTES,
            message_bytes=MESSAGE_BYTES,
            chunk_tokens=None,
            asks_for_place=make_routing is None,
        ),
        slots=slots,
        make_routing=make_routing,
    )


def _mean_tokens(requests: Requests) -> tuple[float, float]:
    return float(requests.input_tokens.mean()), float(requests.output_tokens.mean())


def _slots(plan: SwarmPlan, requests: Requests) -> Slots:
    return Slots(slot_tokens=plan.inputs.slot_tokens, mean_tokens=sum(_mean_tokens(requests)))


def _chains(seen: Seen, requests: Requests, ways: Ways) -> list[PlannedChain]:
    """The plan's chains, or those that GCA finds where the plan has none, as fast as this run's clients judge them."""
    plan, inputs = seen.plan, seen.plan.inputs
    chains = plan.chains or allocate(inputs.profiles(), inputs.model, plan.placement, pair_s=inputs.pair_s or None)
    input_tokens, output_tokens = _mean_tokens(requests)

    def judged_s(chain: Chain) -> float:
        return seen_s(
            plan,
            chain,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            round_trip_s=lambda peer: ways.trip_s(CLIENT, peer),
        )

    return [replace(planned, service_s=judged_s(planned.chain)) for planned in chains]


class _LiveOrder:
    """JFFC as live heads and clients do it: the chain that is now the fastest, unless it is to wait for a longer queue.

    Clients are taken to know all sessions, and every request to be a mean one.
    """

    is_central = True

    def __init__(
        self, chains: Sequence[PlannedChain], capacities: Sequence[int], *, turn_s: Turns, patience: Sequence[float]
    ) -> None:
        self._chains, self._turn_s = chains, turn_s
        self._capacities, self._patience = capacities, patience

    def choose(self, num_sessions: Sequence[int], num_waiting: int = 1) -> int | None:
        sharing = Sharing(self._turn_s)
        for planned, num in zip(self._chains, num_sessions, strict=True):
            sharing.add(planned.chain, num)
        joined = [
            index
            for index, num in enumerate(num_sessions)
            if num < self._capacities[index] and num_waiting >= self._patience[index]
        ]
        return min(joined, key=lambda index: sharing.service_s(self._chains[index]), default=None)


def _policy(
    dispatch: str, plan: SwarmPlan, requests: Requests, chains: Sequence[PlannedChain], *, seed: int
) -> MakePolicy:
    inputs, rng = plan.inputs, random.Random(seed)
    tokens = _mean_tokens(requests)
    turn_s = {peer: times.block.turn_s(*tokens) for peer, times in inputs.times.items()}

    def make(rates: Sequence[float], capacities: Sequence[int]) -> Policy:
        if dispatch == "sed":
            return ShortestExpectedDelay(rates, capacities)
        if dispatch == "jsq":
            return JoinShortestQueue(rates, capacities, rng=rng)
        if dispatch == "random":
            return RandomChain(rates, capacities, rng=rng)
        demand = inputs.arrival_rate, inputs.input_tokens, inputs.output_tokens
        usual = DEFAULT_DEMAND.arrival_rate, DEFAULT_DEMAND.input_tokens, DEFAULT_DEMAND.output_tokens
        queues = [0.0] * len(rates)
        if demand != usual:
            queues = patience_beside(plan.chains, turns_of(inputs.profiles()), arrival_rate=inputs.arrival_rate)
        return _LiveOrder(chains, capacities, turn_s=turn_s, patience=queues)

    return make


def _routing(dispatch: str, requests: Requests, seen: Seen, ways: Ways) -> MakeRouting:
    """PETALS' or BPRR's clients over the placement, with what live clients know."""
    plan, inputs = seen.plan, seen.plan.inputs

    def make(servers: Mapping[PeerId, Server]) -> BprrRouting | PetalsRouting:
        if dispatch == "bprr":
            profiles = [replace(profile, pinned=None) for profile in inputs.profiles() if profile.peer in servers]
            routes = bprr.routes(plan.placement, profiles, inputs.model, pair_s=inputs.pair_s)
            return BprrRouting(routes, servers)
        peers = list(servers)
        trips_s: dict[tuple[PeerId | None, PeerId], float] = {(None, peer): ways.trip_s(CLIENT, peer) for peer in peers}
        trips_s |= {(a, b): ways.trip_s(a, b) for a in peers for b in peers if a != b}
        routes = petals.routes(
            plan.placement,
            inputs.model.num_blocks,
            round_trip_s=trips_s,
            step_s={peer: inputs.times[peer].block.decode_s for peer in peers},
        )
        return PetalsRouting(plan.placement, routes, servers, period_s=SEEN_EVERY_S)

    return make


def _bounds(
    chains: Sequence[PlannedChain], requests: Requests, seen: Seen, ways: Ways, *, slots: Slots
) -> ResponseTimeBounds:
    """Thm. 4 with the time that a mean request takes alone on each chain, from its arrival to its last token."""
    input_tokens, output_tokens = (max(1, round(mean)) for mean in _mean_tokens(requests))
    alone = make_requests([0.0], input_tokens=input_tokens, output_tokens=output_tokens)
    times = [float(_play(alone, seen, ways, chains=[planned], slots=slots).response_s[0]) for planned in chains]
    pairs = [(s, slots.num_sessions(chain.capacity)) for s, chain in zip(times, chains, strict=True) if np.isfinite(s)]
    return response_time_bounds(
        [1 / seconds for seconds, _ in pairs], [places for _, places in pairs], arrival_rate=requests.rate
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
