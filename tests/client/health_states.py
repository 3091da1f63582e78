"""Swarms of every size and state as the health page may meet them, built and not run."""

from dataclasses import replace
from typing import Any

from aiohttp import web
from live_swarms import NOW, peer, plan_of, server, view_of

from chainserve.swarm.offers import Demand, Reach, StepCheck
from chainserve.swarm.plans import SwarmPlan
from chainserve.swarm.records import Announcement, ServerState
from chainserve.swarm.reports import ChainUse, Report
from chainserve.types import Span
from chainserve_client.health.events import Event, Kind
from chainserve_client.health.history import History, Sample
from chainserve_client.health.hub import Hub, encoded
from chainserve_client.health.page import HealthPage
from chainserve_client.health.snapshot import Snapshot
from chainserve_client.health.state import state_json
from chainserve_client.live_plan import examine
from chainserve_client.status import Way

GPUS = (
    ("office", "NVIDIA A100-SXM4-80GB", 76.0, 1.6),
    ("alice", "NVIDIA GeForce RTX 4090", 22.0, 1.2),
    ("bob", "NVIDIA GeForce RTX 3090", 22.0, 0.8),
    ("carol's lab", "NVIDIA RTX A6000", 45.0, 1.0),
    (None, "NVIDIA GeForce RTX 4070 Ti SUPER", 14.0, 0.9),
    ("dave", "Apple M3 Max, mps", 30.0, 0.5),
    ("erin", "NVIDIA GeForce RTX 3080", 9.0, 0.7),
    ("basement", "NVIDIA GeForce RTX 3090", 22.0, 0.8),
    ("a name that its owner has made as long as a name can be, and more", "AMD Radeon RX 7900 XTX", 22.0, 0.7),
    ("frank", "NVIDIA H100 80GB HBM3", 76.0, 2.4),
    ("<b>grace</b>", "NVIDIA L4", 21.0, 0.5),
    ("heidi", "NVIDIA GeForce RTX 4090", 22.0, 1.2),
)
LETTERS = "abcdefghijkl"


def swarm_of(num_servers: int, *, num_blocks: int = 80) -> tuple[list[Announcement], SwarmPlan]:
    """Servers that hold what their plan gives them, with links and load."""
    waiting = []
    for index in range(num_servers):
        name, device, memory_gb, speed = GPUS[index]
        others = [other for other in LETTERS[:num_servers] if other != LETTERS[index]]
        reach = {
            peer(other): Reach(round_trip_s=0.002 * (1 + (index * 7 + at * 5) % 23), bytes_per_s=3e6 * (1 + at % 9))
            for at, other in enumerate(others)
        }
        waiting.append(
            server(
                LETTERS[index],
                memory_gb=max(memory_gb, 1.25 * num_blocks) if num_servers < 3 else memory_gb,
                speed=speed,
                num_blocks=num_blocks,
                model="meta-llama/Llama-3.1-70B-Instruct",
                started_at=NOW - 3000 * (index + 1) ** 2,
                decode=StepCheck(predicted_s=0.031, observed_s=0.034),
                demand=Demand(num_requests=6, window_s=600.0, input_tokens=700.0, output_tokens=180.0),
                reach=reach,
                report=Report(device=device, name=name and name[:64]),
            )
        )
    plan = plan_of(*waiting, **{})
    online = []
    for index, one in enumerate(waiting):
        span = plan.placement.spans.get(one.peer)
        chains = tuple(
            ChainUse(chain=at, num_held=2, used_share=0.4, num_waiting=at % 2, wait_s=12.5 * (at % 2), service_s=21.0)
            for at, chain in enumerate(plan.chains)
            if chain.chain.head == one.peer
        )
        report = one.report and replace(one.report, tokens_per_s=0.0 if span is None else 17.3 + index, chains=chains)
        online.append(
            replace(
                one,
                span=span,
                state=ServerState.ONLINE if span else ServerState.JOINING,
                weight_bytes=len(span or ()) * 10**9,
                cache_tokens=20_000 if span else 0,
                free_tokens=20_000 - 1_300 * (1 + index % 7) if span else 0,
                num_sessions=2 if span else 0,
                report=report,
            )
        )
    return online, plan


def snapshot_of(servers: list[Announcement], plan: SwarmPlan, *, silent: tuple[int, ...] = (), **more: Any) -> Snapshot:
    """A moment of them, where some do not answer."""
    quiet = frozenset(servers[index].peer for index in silent)
    ways = {
        one.peer: Way("direct" if index % 4 else "relayed", 0.004 * (index + 1))
        for index, one in enumerate(servers)
        if one.peer not in quiet
    }
    live = {plan.model_digest: examine(plan, is_thorough=len(servers) <= 3)}
    return Snapshot(swarm="home", view=view_of(servers, plan), ways=ways, silent=quiet, plans=live, **more)


def healthy(num_servers: int) -> Snapshot:
    return snapshot_of(*swarm_of(num_servers, num_blocks=80 if num_servers > 3 else 30))


def broken(num_servers: int) -> Snapshot:
    """Without those who hold the last block."""
    servers, plan = swarm_of(num_servers, num_blocks=80 if num_servers > 3 else 30)
    gone = [i for i, one in enumerate(servers) if one.span and one.span.end == one.num_blocks]
    return snapshot_of(servers, plan, silent=tuple(gone))


def loading(num_servers: int) -> Snapshot:
    """All of them load, to different shares; the last one waits for blocks."""
    servers, plan = swarm_of(num_servers, num_blocks=80 if num_servers > 3 else 30)
    begun = []
    for share, one in zip([0.12, 0.83, 0.4] * 4, servers, strict=False):
        report = one.report and replace(one.report, loaded_share=share)
        if one.span is not None:
            begun.append(replace(one, state=ServerState.LOADING, num_sessions=0, report=report))
    if num_servers > 3:
        first = begun[0]
        begun[0] = replace(first, span=Span(0, 5), state=ServerState.DRAINING)
    return snapshot_of(begun, plan)


class StillWatch:
    """What the page needs of a `Watch`, over one moment that does not pass."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.hub = Hub()
        self.state = state_json(snapshot)
        self.history = History()
        self.happened = []
        names = [(one.peer, one.report.name if one.report else None) for one in snapshot.view.servers.values()]
        kinds = (Kind.JOINED, Kind.ONLINE, Kind.EPOCH, Kind.LOST, Kind.BROKEN, Kind.RECOVERED, Kind.WHOLE, Kind.MOVED)
        for index, kind in enumerate(kinds):
            who, name = names[index % len(names)]
            self.happened.append(
                Event(
                    at=NOW - 3 - 211 * (len(kinds) - index),
                    kind=kind,
                    model="meta-llama/Llama-3.1-70B-Instruct",
                    peer=who,
                    name=name,
                    before=Span(4, 19),
                    after=Span(8, 23),
                    missing=(Span(12, 30),),
                    epoch=7,
                )
            )
        for minute in range(1440):
            wave = (minute % 240) / 240
            self.history.add(
                Sample(
                    at=NOW - 60 * (1440 - minute),
                    load=0.2 + 0.6 * wave * wave,
                    tokens_per_s=40 * wave + minute % 7,
                    num_waiting=max(0.0, 9 * wave - 6),
                    num_online=len(names) - (300 < minute < 340),
                )
            )

    def events_json(self) -> list[dict[str, Any]]:
        return [event.to_json() for event in reversed(self.happened)]

    def plans_json(self) -> list[dict[str, Any]]:
        return []

    def welcome(self) -> list[bytes]:
        samples = [sample.to_json() for sample in self.history.samples()]
        return [
            encoded("clock", {"now": NOW}),
            encoded("state", self.state),
            encoded("events", self.events_json()),
            encoded("history", samples),
        ]


def application(snapshot: Snapshot) -> web.Application:
    """The page over one moment."""
    app = web.Application()
    HealthPage(StillWatch(snapshot)).add_to(app)  # type: ignore[arg-type]
    return app
