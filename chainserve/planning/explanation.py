"""A plan in words: what was decided for every server and chain, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from chainserve.types import PeerId

if TYPE_CHECKING:
    from chainserve.planning.plan import Plan


def explain(plan: Plan) -> str:
    """The plan as plain text, a line for every server and every chain."""
    return "\n".join(
        [
            *_summary(plan),
            "",
            *_table(("server", "blocks", "slots", "why"), [_server(plan, profile.peer) for profile in plan.profiles]),
            "",
            *_table(("chain", "sessions", "seconds", "hops"), list(_chains(plan))),
        ]
    )


def _summary(plan: Plan) -> Iterator[str]:
    rate, num_sessions = plan.workload.arrival_rate, sum(chain.capacity for chain in plan.chains)
    yield (
        f"{_count(len(plan.placement), 'server')} hold {_count(plan.model.num_blocks, 'block')}: "
        f"{_count(len(plan.chains), 'chain')}, {_count(num_sessions, 'session')} at once, "
        f"{plan.total_rate:.3g} requests/s when full"
    )
    if plan.is_stable:
        yield (
            f"at {rate:.3g} requests/s (load {plan.load:.2f}) a request takes {plan.bounds.lower_s:.3g} to "
            f"{plan.bounds.upper_s:.3g} s on average"
        )
    else:
        yield f"{rate:.3g} requests/s are {plan.missing_rate:.3g} more than that: the queue grows without end"
    chosen, tried = plan.chosen, plan.candidates
    why = "the least lower bound on the response time" if plan.is_stable else "the most requests/s"
    yield (
        f"c = {chosen.concurrency}: with cache reserved for {_count(chosen.concurrency, 'session')} per chain GBP-CR "
        f"gives {why} of {_count(len(tried), 'value')} tried, {tried[0].concurrency} to {tried[-1].concurrency}"
    )
    greedy = plan.greedy.placement.spans
    moved = [peer for peer in greedy if plan.placement[peer] != greedy[peer]]
    if moved:
        yield f"the search moved {_count(len(moved), 'server')} from there"


def _server(plan: Plan, peer: PeerId) -> tuple[str, str, str, str]:
    if peer not in plan.placement.spans:
        return peer, "none", "0", "no room for a block and its cache"
    return peer, str(plan.placement[peer]), str(plan.slots[peer]), _reason(plan, peer)


def _reason(plan: Plan, peer: PeerId) -> str:
    profile = next(profile for profile in plan.profiles if profile.peer == peer)
    if profile.pinned:
        return "pinned by its owner"
    greedy, now = plan.greedy.placement[peer], plan.placement[peer]
    if plan.before is not None and plan.before.spans.get(peer) == now:
        return "stays where it was"
    if greedy != now:
        return f"GBP-CR put it at {greedy}; {'responses are faster' if plan.is_stable else 'more requests/s'} from here"
    if peer in plan.greedy.incomplete:
        return "beside the full chains of GBP-CR, where the fewest servers are"
    chains = enumerate(plan.greedy.chains, 1)
    number = next(number for number, chain in chains if any(hop.peer == peer for hop in chain.chain.hops))
    needed = plan.greedy.num_chains_needed
    beyond = ", beyond what the target load needs" if needed is not None and number > needed else ""
    return f"chain {number} of GBP-CR{beyond}"


def _chains(plan: Plan) -> Iterator[tuple[str, str, str, str]]:
    for number, chain in enumerate(plan.chains, 1):
        hops = " -> ".join(f"{hop.peer}[{hop.span}]" for hop in chain.chain.hops)
        yield str(number), str(chain.capacity), f"{chain.service_s:.3g}", hops


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns as wide as they need to be, the last one as long as it is."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]) for line in lines
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
