"""A plan that is followed beside what servers say of themselves, as lines of text."""

from collections.abc import Container, Iterable, Iterator, Sequence

from chainserve.errors import NoPlanError
from chainserve.planning.values import Placement
from chainserve.swarm.offers import StepCheck
from chainserve.swarm.plans import PlanRecord
from chainserve.swarm.records import Announcement, ServerState
from chainserve.types import PeerId
from chainserve_client.live_plan import LivePlan
from chainserve_client.outlook import bounds_text, chains_text, expectations_text, spares_text, verdict
from chainserve_client.tables import count, printable, short, table, wrapped
from chainserve_client.units import format_bytes, format_seconds

MAX_NAMED = 8
"""Servers that a sentence names; of more it says how many."""


def title(record: PlanRecord, servers: Sequence[Announcement]) -> str:
    """Whose plan it is, and how many of a model's servers have it already."""
    planner = short(record.planner)
    if all(server.peer != record.planner for server in servers):
        planner += " (gone)"
    followers = f"{num_followers(record, servers)} of {count(len(servers), 'server')}"
    return f"plan {record.epoch} by {planner}, followed by {followers}"


def num_followers(record: PlanRecord, servers: Iterable[Announcement]) -> int:
    """Servers that say that they follow this plan."""
    return sum(server.epoch == record.epoch for server in servers)


def plan_text(live: LivePlan, servers: Sequence[Announcement], *, refused: Container[PeerId]) -> Iterator[str]:
    """The plan below its title: what it is for, who moves, its chains, and what to expect.

    Those left out are named, apart from the `refused`, of whom one reads above.
    """
    plan, inputs = live.plan, live.plan.inputs
    yield from wrapped(
        f"for {inputs.arrival_rate:.3g} requests per second of {inputs.input_tokens:,.0f} tokens in and "
        f"{inputs.output_tokens:,.0f} out{_slots(live, servers)}"
    )
    if not inputs.rule.is_ours:
        chains = "" if inputs.rule.has_chains else ", without chains: clients compose routes"
        yield from wrapped(f"for a benchmark placed as {inputs.rule.name} does{chains}")
    if plan.shortage is not None:
        error = NoPlanError(
            plan.shortage.missing, num_blocks=inputs.model.num_blocks, missing_bytes=plan.shortage.missing_bytes
        )
        yield from wrapped(f"{error}; the swarm waits for them")
    yield from _sentence("under way", _moves(plan.placement, servers))
    yield from _sentence("then", _next_moves(plan.placement, plan.goal))
    planned, here = {server.peer for server in inputs.servers}, {server.peer for server in servers}
    yield from _sentence("come since then", map(short, sorted(here - planned - plan.left_out.keys())))
    yield from _sentence("gone since then", map(short, sorted(planned - here)))
    for peer, reason in plan.left_out.items():
        if peer not in refused:
            yield from wrapped(f"left out: {short(peer)} ({printable(reason)})")
    if plan.chains:
        yield ""
        yield from chains_text(live.outlook, name=short)
    if rows := list(_rows(live, servers)):
        yield ""
        yield from _without_empty_columns(rows)
    if plan.chains:
        yield ""
        yield from expectations_text(live.outlook)
        if not plan.is_settled:
            yield f"once all have moved a request takes {bounds_text(plan.bounds)} on average"
        yield from spares_text(live.left_out, list(plan.goal), name=short)


def _slots(live: LivePlan, servers: Iterable[Announcement]) -> str:
    """What a session is, as the model's slots say in the bytes of the first server of the plan."""
    first = live.plan.inputs.servers[0].peer
    for server in servers:
        if server.peer == first and server.offer is not None:
            tokens = live.plan.inputs.model.slot_bytes / server.offer.profile.token_bytes
            return f", sessions of up to {tokens:,.0f} tokens"
    return ""


def _moves(placement: Placement, servers: Iterable[Announcement]) -> Iterator[str]:
    """'abc123 0:10 > 5:15, loading' of every server that is not yet where the plan wants it."""
    for server in servers:
        span = placement.spans.get(server.peer)
        if span is not None and (server.span != span or server.state is not ServerState.ONLINE):
            way = f"{server.span or 'none'} > {span}" if server.span != span else str(span)
            yield f"{short(server.peer)} {way}, {server.state}"


def _next_moves(placement: Placement, goal: Placement) -> Iterator[str]:
    """'abc123 5:15 > 10:20' of every server that will go on from there."""
    for peer, span in goal.spans.items():
        if (before := placement.spans.get(peer)) != span:
            yield f"{short(peer)} {before or 'none'} > {span}"


def _sentence(start: str, parts: Iterable[str]) -> list[str]:
    """'start: one; another', no part of it broken, nothing if there are no parts."""
    every = [part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts]
    if hidden := every[MAX_NAMED:]:
        every = [*every[:MAX_NAMED], f"and {count(len(hidden), 'other')}"]
    return wrapped(f"{start}: {'; '.join(every)}") if every else []


HEAD = ("server", "decode step", "predicted", "prefill step", "predicted", "without it")


def _rows(live: LivePlan, servers: Sequence[Announcement]) -> Iterator[list[str]]:
    """Of every server of which there is something to say: how long its steps take, and what it is worth."""
    for server in servers:
        offer, left_out = server.offer, live.left_out.get(server.peer)
        row = [
            *_step(offer.decode if offer else None),
            *_step(offer.prefill if offer else None),
            verdict(left_out, is_placed=server.peer in live.plan.goal.spans) if left_out else "",
        ]
        if any(row):
            yield [short(server.peer), *row]


def _step(check: StepCheck | None) -> tuple[str, str]:
    """Observed and predicted."""
    return (format_seconds(check.observed_s), format_seconds(check.predicted_s)) if check else ("", "")


def _without_empty_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    kept = [column for column in range(len(HEAD)) if any(row[column] for row in rows)]
    return table([HEAD[column] for column in kept], [[row[c] for c in kept] for row in rows], right=HEAD[1:-1])


def reach_text(servers: Iterable[Announcement]) -> Iterator[str]:
    """What lies between servers, in one line, if any of them has measured it."""
    ways = [reach for server in servers if server.offer for reach in server.offer.reach.values()]
    if not ways:
        return
    trips = [format_seconds(pick(way.round_trip_s for way in ways)) for pick in (min, max)]
    rates = [way.bytes_per_s for way in ways if way.bytes_per_s is not None]
    speeds = [f"{format_bytes(pick(rates))}/s" for pick in (min, max)] if rates else []
    facts = [f"round trips of {_between(trips)}", *([f"rates of {_between(speeds)}"] if speeds else [])]
    yield f"between servers: {', '.join(facts)}"


def _between(ends: Sequence[str]) -> str:
    return ends[0] if ends[0] == ends[-1] else f"{ends[0]} to {ends[-1]}"
