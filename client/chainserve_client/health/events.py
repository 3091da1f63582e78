"""What happened between two moments: who came and went, who moved, which blocks went missing."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from chainserve.swarm.records import Announcement, ServerState
from chainserve.types import PeerId, Span
from chainserve_client.health.servers import spans_json
from chainserve_client.health.snapshot import Snapshot
from chainserve_client.health.verdict import judge
from chainserve_client.live_json import span_json


class Kind(StrEnum):
    """Of events."""

    JOINED = "joined"
    RESTARTED = "restarted"
    ONLINE = "online"  # has loaded its blocks
    MOVED = "moved"  # to other blocks
    LEFT = "left"  # said goodbye, or has not been heard of for a lease
    LOST = "lost"  # does not answer any more
    RECOVERED = "recovered"  # answers again
    EPOCH = "epoch"  # there is a new plan
    BROKEN = "broken"  # blocks went missing
    WHOLE = "whole"  # every block is served again


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened."""

    at: float  # swarm time, in unix seconds
    kind: Kind
    model: str
    peer: PeerId | None = None
    name: str | None = None  # as the server's owner calls it
    before: Span | None = None
    after: Span | None = None
    missing: tuple[Span, ...] = ()
    epoch: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "at": self.at,
            "kind": self.kind,
            "model": self.model,
            "peer": self.peer,
            "name": self.name,
            "from_blocks": span_json(self.before),
            "to_blocks": span_json(self.after),
            "missing_blocks": spans_json(self.missing),
            "epoch": self.epoch,
        }


def events_between(before: Snapshot, after: Snapshot) -> list[Event]:
    """What happened, servers first, then what it means for the models."""
    return [*_of_servers(before, after), *_of_models(before, after)]


def _of_servers(before: Snapshot, after: Snapshot) -> Iterator[Event]:
    old, new = before.view.servers, after.view.servers
    for peer in sorted(old.keys() - new.keys()):
        if peer not in before.silent:  # of the others it was told when they fell silent
            yield _event(after, Kind.LEFT, old[peer], before=old[peer].span)
    for peer, server in new.items():
        was = old.get(peer)
        if was is None:
            yield _event(after, Kind.JOINED, server, now=server.span)
            continue
        if was.started_at != server.started_at:
            yield _event(after, Kind.RESTARTED, server, now=server.span)
        if peer in after.silent - before.silent:
            yield _event(after, Kind.LOST, server, before=server.span)
        elif peer in before.silent - after.silent and was.started_at == server.started_at:
            yield _event(after, Kind.RECOVERED, server, now=server.span)
        if was.span != server.span:
            yield _event(after, Kind.MOVED, server, before=was.span, now=server.span)
        if server.state is ServerState.ONLINE and was.state in (ServerState.LOADING, ServerState.JOINING):
            yield _event(after, Kind.ONLINE, server, now=server.span)


def _of_models(before: Snapshot, after: Snapshot) -> Iterator[Event]:
    for digest in after.view.models().keys() & before.view.models().keys():
        name = after.view.models()[digest][0].model
        at = after.view.taken_at
        was, now = judge(before, digest).missing, judge(after, digest).missing
        if now and now != was:
            yield Event(at=at, kind=Kind.BROKEN, model=name, missing=now)
        elif was and not now:
            yield Event(at=at, kind=Kind.WHOLE, model=name)
        plan, plan_before = after.view.plan(digest), before.view.plan(digest)
        if plan is not None and (plan_before is None or plan.digest != plan_before.digest):
            yield Event(at=at, kind=Kind.EPOCH, model=name, epoch=plan.epoch, peer=plan.planner)


def _event(
    after: Snapshot, kind: Kind, server: Announcement, *, before: Span | None = None, now: Span | None = None
) -> Event:
    return Event(
        at=after.view.taken_at,
        kind=kind,
        model=server.model,
        peer=server.peer,
        name=server.report.name if server.report else None,
        before=before,
        after=now,
    )
