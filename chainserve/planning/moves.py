"""In which order servers move from where they are to where a plan wants them, so that nothing is uncovered.

A server that moves keeps serving the blocks which it holds now and will hold then: it gives up the others, loads
what is new beside what stays, and serves all of it when that is done. What it gives up has to be served by others.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping

from chainserve.planning.values import Placement
from chainserve.types import PeerId, Span

SEARCH_EFFORT = 4096
"""Beginnings that are tried, times servers: a second of one core at most."""


def overlap(before: Span | None, after: Span | None) -> Span | None:
    """The blocks of both spans; None if there are none."""
    if before is None or after is None:
        return None
    start, end = max(before.start, after.start), min(before.end, after.end)
    return Span(start, end) if start < end else None


def next_step(serving: Mapping[PeerId, Span], goal: Placement) -> Placement:
    """What every server of `goal` has to hold next, on the way from what servers serve now.

    No block that is served now goes unserved, even if those that move do so at the same time, in any order. A server
    that is not in `goal` goes on and is relied on. Those whose turn has not come stay where they are. The step equals
    what is served now, as far as that is in `goal`, if nobody can move: see `stuck`.
    """
    step, _ = _search(serving, goal)
    return step


def stuck(serving: Mapping[PeerId, Span], goal: Placement) -> frozenset[PeerId]:
    """The servers that cannot get to their goal without uncovering a block that is served; empty if all can.

    As few as any order leaves behind, where few servers move; else as few as were found.
    """
    _, waiting = _search(serving, goal)
    return waiting


def awaiting(step: Placement, serving: Mapping[PeerId, Span], arriving: Mapping[PeerId, Span]) -> Placement:
    """The step, but for servers that may have come to other blocks by now, which nobody can know yet.

    `arriving`: servers on their way, and where to. What they would give up there has to be served by others that stay;
    else they go on to where they were sent, and take their step when it is known that they are there. What they have
    given up on their way nobody relies on: servers that the step takes from such blocks stay, too.
    """
    sure = {peer: set(span).intersection(arriving.get(peer, span)) for peer, span in serving.items()}
    staying = _count({peer: blocks.intersection(step.spans.get(peer, blocks)) for peer, blocks in sure.items()})
    where = {**serving, **arriving}
    going_on = {
        peer: where[peer]
        for peer, span in step.spans.items()
        if not all(staying[block] for block in sure.get(peer, set()).union(arriving.get(peer, ())).difference(span))
    }
    return Placement({**step.spans, **going_on})


def _search(serving: Mapping[PeerId, Span], goal: Placement) -> tuple[Placement, frozenset[PeerId]]:
    """The first step of the way on which the fewest are left behind, and those.

    As many move at once as can. That may take from others the last that could be spared: then it tries beginnings in
    which fewer move, the shortest first.
    """
    most = SEARCH_EFFORT // max(1, len(goal))
    best: tuple[Placement, frozenset[PeerId]] | None = None
    beginnings: deque[tuple[Mapping[PeerId, Span], Placement | None]] = deque([(serving, None)])
    seen: set[frozenset[PeerId]] = set()
    while beginnings:
        now, first = beginnings.popleft()
        waiting = _left_behind(now, goal)
        if best is None or len(waiting) < len(best[1]):
            best = first or _step(now, goal), waiting
        if not waiting:
            break
        for movers in sorted(_beginnings(now, goal), key=waiting.isdisjoint)[: most - len(seen)]:
            moved = {**now, **{peer: goal[peer] for peer in movers}}
            if (pending := frozenset(_pending(moved, goal))) not in seen:
                seen.add(pending)
                beginnings.append((moved, first or Placement({peer: moved[peer] for peer in goal})))
    assert best is not None
    return best


def _left_behind(serving: Mapping[PeerId, Span], goal: Placement) -> frozenset[PeerId]:
    """Who has not got to the goal when, step by step, as many as can have moved."""
    while True:
        moved = {**serving, **_step(serving, goal).spans}
        if moved == serving:
            return frozenset(_pending(serving, goal))
        serving = moved


def _step(serving: Mapping[PeerId, Span], goal: Placement) -> Placement:
    """All servers move that can, those first that give up the fewest blocks; of equals by id."""
    num_serving = _count(serving)
    step = {peer: serving.get(peer, goal[peer]) for peer in goal}
    pending = _pending(serving, goal)
    for peer in sorted(pending, key=lambda peer: (len(pending[peer]), peer)):
        if all(num_serving[block] > 1 for block in pending[peer]):
            num_serving.subtract(pending[peer])
            step[peer] = goal[peer]
    return Placement(step)


def _beginnings(serving: Mapping[PeerId, Span], goal: Placement) -> list[list[PeerId]]:
    """Who may move first: those whom nobody can need where they are; without such, any one of those that can."""
    num_serving, pending = _count(serving), _pending(serving, goal)
    num_left = num_serving - _count(pending)
    spare = [peer for peer in pending if all(num_left[block] > 0 for block in pending[peer])]
    if spare:
        return [spare]
    return [[peer] for peer in pending if all(num_serving[block] > 1 for block in pending[peer])]


def _pending(serving: Mapping[PeerId, Span], goal: Placement) -> dict[PeerId, set[int]]:
    """Servers that have yet to move, with the blocks that they give up by that."""
    return {peer: set(serving.get(peer, ())).difference(goal[peer]) for peer in goal if serving.get(peer) != goal[peer]}


def _count(blocks: Mapping[PeerId, Iterable[int]]) -> Counter[int]:
    """By block, how many servers have it."""
    return Counter(block for peer in blocks for block in blocks[peer])
