"""Where blocks go: greedy block placement with cache reservation (GBP-CR; Sun et al. 2026, Alg. 1).

Beyond the paper: the embedding and the head take memory on the servers at the model's ends, which go first to those
that give up the fewest blocks for them where no chain comes about otherwise; pinned servers keep the blocks their
owners chose, and servers that are left when the required rate is reached are placed too.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from chainserve.planning.values import (
    ROUNDING,
    ModelSpec,
    Placement,
    PlannedChain,
    ServerProfile,
    by_peer,
    check_pinned,
    how_many,
    require,
)
from chainserve.types import Chain, Hop, PeerId, Span


@dataclass(frozen=True)
class GreedyPlacement:
    """What GBP-CR decided, and where the paper's stop fell."""

    placement: Placement
    chains: tuple[PlannedChain, ...]  # disjoint, in the order in which they were completed; capacity: the concurrency
    num_needed: int | None  # servers on chains when the required rate was reached; None: it was not, or none was given
    num_chains_needed: int | None  # chains at that moment: K(c) of Eq. 9
    incomplete: tuple[PeerId, ...]  # servers that are placed but complete no chain of their own, pinned ones apart
    unfit: tuple[PeerId, ...]  # servers without room for a block and its cache, anywhere


def blocks_that_fit(profile: ServerProfile, model: ModelSpec, *, concurrency: int) -> int:
    """Blocks a server holds with cache for `concurrency` sessions, embedding and head apart: m_j(c) (Eq. 6)."""
    block_bytes = model.block_bytes_on(profile) + model.slot_bytes * concurrency
    return min(how_many(profile.memory_bytes, block_bytes), model.num_blocks)


def span_at(profile: ServerProfile, model: ModelSpec, *, cursor: int, concurrency: int) -> Span | None:
    """The most blocks that fit a server with their cache, from the cursor on or else up to the model's last (Alg. 1).

    They are fewer than `blocks_that_fit` where the embedding or the head comes with them; None if these leave no room
    for the block at the cursor.
    """
    for num_blocks in range(blocks_that_fit(profile, model, concurrency=concurrency), 0, -1):
        start = min(cursor, model.num_blocks - num_blocks)
        span = Span(start, start + num_blocks)
        space = profile.memory_bytes - model.end_bytes(span)
        if how_many(space, model.block_bytes_on(profile) + model.slot_bytes * concurrency) >= num_blocks:
            return span
    return None


def weights_fit(profile: ServerProfile, model: ModelSpec, span: Span) -> bool:
    """Whether a server has the memory for the weights of a span, cache apart."""
    return model.weight_bytes_on(profile, span) <= profile.memory_bytes * (1 + ROUNDING)


def slots_beside(profile: ServerProfile, model: ModelSpec, span: Span) -> int:
    """Cache slots that a server has left beside the weights of its span: R_j; ValueError if these do not fit."""
    weight_bytes = model.weight_bytes_on(profile, span)
    if not weights_fit(profile, model, span):
        raise ValueError(
            f"blocks {span} take {weight_bytes:.10g} bytes, {profile.peer} has {profile.memory_bytes:.10g}: "
            f"{weight_bytes - profile.memory_bytes:.10g} too few"
        )
    return how_many(profile.memory_bytes * (1 + ROUNDING) - weight_bytes, model.slot_bytes)


def greedy_placement(
    profiles: Sequence[ServerProfile],
    model: ModelSpec,
    *,
    concurrency: int,
    required_rate: float | None = None,
    place_all: bool = True,
) -> GreedyPlacement:
    """Place servers by rising amortized time on chains that share none, one chain after the other (Alg. 1).

    `required_rate` is lambda / (rho_bar c), in sessions per second of one place on every chain. Once the chains reach
    it the paper stops; with `place_all` the other servers are placed just so. Pinned servers are always placed; where
    the open chain meets the span of one that has slots for it, the chain goes on there before it takes a free server.
    A free server takes fewer blocks where an end of the model does not fit beside those of Eq. 6, and waits for
    another cursor where none fits. If no chain reaches the model's end like that, servers that can hold its ends may
    have been taken for other blocks: two of them are then kept for the ends of the first chain. ValueError for bad
    numbers, two profiles of one server, and a pinned span that leaves the model or does not fit its server.
    """
    if concurrency < 1:
        raise ValueError(f"a chain holds at least one session at once, not {concurrency}")
    if required_rate is not None:
        require("required_rate", required_rate)
    servers = by_peer(profiles)
    check_pinned(servers.values(), model)
    queues = _Queues(servers.values(), model, concurrency=concurrency)
    placed = _place(queues, required_rate=required_rate, place_all=place_all)
    if not placed.chains and queues.keep_ends():
        placed = _place(queues, required_rate=required_rate, place_all=place_all)
    return placed


def _place(queues: "_Queues", *, required_rate: float | None, place_all: bool) -> GreedyPlacement:
    model, concurrency = queues.model, queues.concurrency
    spans = {peer: span for peer, (_, span) in queues.pinned.items()}
    chains: list[PlannedChain] = []
    num_taken, rate, needed = 0, 0.0, None
    hops: list[Hop] = []
    counted_s, service_s = 0.0, 0.0  # Alg. 1 counts all blocks that a server takes, Eq. 2 those that the chain runs
    cursor = 0
    while (found := queues.take(cursor)) is not None:
        profile, span = found
        spans.setdefault(profile.peer, span)
        num_taken += 1
        hops.append(Hop(profile.peer, Span(cursor, span.end)))
        counted_s += profile.span_s(len(span))
        service_s += profile.span_s(span.end - cursor)
        cursor = span.end
        if cursor < model.num_blocks:
            continue
        chains.append(PlannedChain(Chain(tuple(hops)), concurrency, service_s))
        rate += 1 / counted_s
        hops, counted_s, service_s, cursor = [], 0.0, 0.0, 0
        if needed is None and required_rate is not None and rate * (1 + ROUNDING) >= required_rate:
            needed = num_taken, len(chains)
            if not place_all:
                break

    passed_over = queues.left() if place_all or needed is None else []
    late = _where_fewest(passed_over, spans.values(), model, concurrency=concurrency)
    return GreedyPlacement(
        placement=Placement(spans | late),
        chains=tuple(chains),
        num_needed=needed and needed[0],
        num_chains_needed=needed and needed[1],
        incomplete=(*(hop.peer for hop in hops if hop.peer not in queues.pinned), *late),
        unfit=tuple(queues.unfit),
    )


class _Queues:
    """Servers for the open chain to take, each of them once."""

    def __init__(self, profiles: Iterable[ServerProfile], model: ModelSpec, *, concurrency: int) -> None:
        self.model = model
        self.concurrency = concurrency
        self.pinned: dict[PeerId, tuple[ServerProfile, Span]] = {}
        self.pinned_slots: dict[PeerId, int] = {}
        self.unfit: list[PeerId] = []
        self.taken: set[PeerId] = set()
        self.pinned_at: dict[int, deque[ServerProfile]] = {}  # per cursor
        self.free_beside: dict[float, deque[ServerProfile]] = {}  # per bytes of embedding or head at the cursor
        amortized: list[tuple[float, PeerId, ServerProfile]] = []
        ends = {0, model.num_blocks // 2, model.num_blocks - 1}  # what holds for one block between them does for all
        for profile in profiles:
            if (span := profile.pinned) is not None:
                self.pinned[profile.peer] = profile, span
                self.pinned_slots[profile.peer] = slots_beside(profile, model, span)
            elif not any(self._span_at(block, profile) for block in ends):
                self.unfit.append(profile.peer)
            else:
                num_blocks = blocks_that_fit(profile, model, concurrency=concurrency)
                amortized.append((profile.span_s(num_blocks) / num_blocks, profile.peer, profile))
        self.free = [profile for *_, profile in sorted(amortized, key=lambda item: item[:2])]  # Eq. 8
        self.opening: ServerProfile | None = None  # kept for the first chain
        self.closing: ServerProfile | None = None

    def keep_ends(self) -> bool:
        """Begin anew, and keep the ends of the first chain for those that give up the fewest blocks for them.

        Without pinned servers this makes a chain wherever there is one at all. False if nothing would change.
        """
        last = self.model.num_blocks - 1
        openings = self._fewest_lost(0) if self.model.embedding_bytes else []
        closings = self._fewest_lost(last) if self.model.head_bytes else []
        pairs = [
            (lost + also_lost, opening, closing)
            for lost, opening in openings or [(0, None)]
            for also_lost, closing in closings or [(0, None)]
            if opening is not closing
        ]
        if not pairs:
            return False
        _, self.opening, self.closing = min(pairs, key=lambda pair: pair[0])
        self.taken.clear()
        self.pinned_at.clear()
        self.free_beside.clear()
        return True

    def _fewest_lost(self, cursor: int) -> Sequence[tuple[int, ServerProfile | None]]:
        """The two servers that give up the fewest blocks for an end; none are needed where a pinned server has it."""
        if any(cursor in span for _, span in self.pinned.values()):
            return []
        lost = [
            (blocks_that_fit(profile, self.model, concurrency=self.concurrency) - len(span), profile)
            for profile in self.free
            if (span := self._span_at(cursor, profile))
        ]
        return sorted(lost, key=lambda item: item[0])[:2]

    def take(self, cursor: int) -> tuple[ServerProfile, Span] | None:
        """The next server for a chain that has come to the cursor, and the blocks it brings: a pinned one first."""
        if cursor not in self.pinned_at:
            self.pinned_at[cursor] = deque(self._meeting(cursor))
        if (profile := self._first(self.pinned_at[cursor])) is not None:
            return profile, Span(cursor, self.pinned[profile.peer][1].end)
        if (kept := self._kept_for(cursor)) is not None:
            return kept
        # Whether a server fits depends only on the end of the model that comes with the cursor's block.
        end_bytes = self.model.end_bytes(Span(cursor, cursor + 1))
        if end_bytes not in self.free_beside:
            self.free_beside[end_bytes] = deque(
                profile
                for profile in self.free
                if profile is not self.opening and profile is not self.closing and self._span_at(cursor, profile)
            )
        if (profile := self._first(self.free_beside[end_bytes])) is None:
            return None
        span = self._span_at(cursor, profile)
        assert span is not None, profile
        return profile, span

    def _kept_for(self, cursor: int) -> tuple[ServerProfile, Span] | None:
        """The server kept for an end of the model, if it can go on from the cursor up to that end, and its blocks."""
        for profile in (self.opening if cursor == 0 else None, self.closing):
            if profile is None or profile.peer in self.taken:
                continue
            span = self._span_at(cursor, profile)
            if span is not None and (profile is self.opening or span.end == self.model.num_blocks):
                self.taken.add(profile.peer)
                return profile, span
        return None

    def left(self) -> list[ServerProfile]:
        """Free servers that no chain has taken."""
        return [profile for profile in self.free if profile.peer not in self.taken]

    def _span_at(self, cursor: int, profile: ServerProfile) -> Span | None:
        return span_at(profile, self.model, cursor=cursor, concurrency=self.concurrency)

    def _meeting(self, cursor: int) -> list[ServerProfile]:
        """Pinned servers with cache from the cursor on: the furthest-reaching first, then the fastest, then by id."""
        ranked = sorted(
            (-span.end, profile.span_s(span.end - cursor), peer)
            for peer, (profile, span) in self.pinned.items()
            if cursor in span and self.pinned_slots[peer] >= self.concurrency * (span.end - cursor)
        )
        return [self.pinned[peer][0] for *_, peer in ranked]

    def _first(self, queue: deque[ServerProfile]) -> ServerProfile | None:
        """The first that no chain has taken yet; it is taken now."""
        while queue:
            profile = queue.popleft()
            if profile.peer not in self.taken:
                self.taken.add(profile.peer)
                return profile
        return None


def _where_fewest(
    profiles: Iterable[ServerProfile], placed: Iterable[Span], model: ModelSpec, *, concurrency: int
) -> dict[PeerId, Span]:
    """One after the other the span that fits and whose blocks the fewest servers hold, the first of equals."""
    num_holders = [0] * model.num_blocks
    for span in placed:
        for block in span:
            num_holders[block] += 1
    spans: dict[PeerId, Span] = {}
    for profile in profiles:
        before = list(accumulate(num_holders, initial=0))  # holders of all blocks before a boundary
        fitting = (span_at(profile, model, cursor=start, concurrency=concurrency) for start in range(model.num_blocks))
        _, span = min(((before[span.end] - before[span.start]) / len(span), span) for span in fitting if span)
        spans[profile.peer] = span
        for block in span:
            num_holders[block] += 1
    return spans
