"""Keys and values of the sessions a server holds, within a fixed budget of tokens.

A session reserves room for the longest it may grow to when it opens, so that it never runs out half way. Memory is
taken block by block at first use, as one buffer per lane that never moves: what attention reads are views of it.

What room no session has reserved holds pages of earlier prompts. A session whose prompt begins with such pages adopts
them: they are pinned, and copied into its own buffer of each block when that is first used.

The books (reservations, which pages are there, pins) change under a lock, in the event loop and in the compute thread.
Memory is taken and copied in the compute thread only, and after the books say that there is room.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock

import torch
from torch import Tensor

from chainserve.errors import CacheFullError, StepError
from chainserve.models.attention import Masks, Ragged, split_packed
from chainserve.models.pages import Page, PageStore, copy_page, join_pages
from chainserve.models.rows import table_of
from chainserve.protocol.messages import Step
from chainserve.protocol.pages import PAGE_TOKENS
from chainserve.types import SessionId, Span


@dataclass(slots=True, eq=False)
class _Lane:
    """One sequence: how many tokens it has cached, and per block keys and values (1, kv_heads, max_tokens, dim).

    In blocks that are named in `adopted`, its first tokens are still in these pages.
    """

    length: int = 0
    slots: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    adopted: dict[int, list[Page]] = field(default_factory=dict)
    _addresses: Tensor | None = None

    def addresses(self, span: Span) -> Tensor | None:
        """Where its keys and values of each block are, (2 * blocks,); None before all blocks have memory."""
        if self._addresses is None and len(self.slots) == len(span):
            self._addresses = torch.tensor([part.data_ptr() for block in span for part in self.slots[block]])
        return self._addresses

    def copy_from(self, other: "_Lane") -> None:
        self.length = other.length
        for block, (keys, values) in other.slots.items():
            if block not in self.slots:
                self.slots[block] = (torch.empty_like(keys), torch.empty_like(values))
            for into, source in zip(self.slots[block], (keys, values), strict=True):
                into[:, :, : other.length] = source[:, :, : other.length]


@dataclass(slots=True)
class _Reservation:
    """What a session holds."""

    span: Span
    max_tokens: int
    lanes: list[_Lane]

    @property
    def cost(self) -> int:
        """What counts against the budget: tokens times blocks."""
        return len(self.lanes) * self.max_tokens * len(self.span)


class KVCache:
    """Room for `budget_tokens` tokens in every block of `span`; a session that runs fewer blocks costs less.

    With `span` None there is no room for anything.
    """

    def __init__(self, span: Span | None, *, budget_tokens: int) -> None:
        self.span = span
        self.budget_tokens = budget_tokens
        self._sessions: dict[SessionId, _Reservation] = {}
        self._reserved = 0  # in tokens times blocks
        self._store = PageStore()
        self._store.serve(span)
        self._books = Lock()

    def resize(self, span: Span | None, *, budget_tokens: int) -> None:
        """Serve other blocks, or with more or less room. What sessions have reserved stays theirs until released.

        Kept pages go if their blocks are not served any more, or if there is no room for them.
        """
        with self._books:
            self.span = span
            self.budget_tokens = budget_tokens
            self._store.serve(span)
            self._settle()

    @property
    def reserved(self) -> int:
        """What sessions hold, in tokens times blocks."""
        return self._reserved

    @property
    def kept(self) -> int:
        """What kept pages hold, in tokens times blocks."""
        return self._store.cost

    @property
    def free_tokens(self) -> int:
        """Tokens that sessions over the whole span could still reserve; kept pages make way, unless pinned."""
        return self._free // len(self.span) if self.span else 0

    @property
    def _unreserved(self) -> int:
        """In tokens times blocks; none where less room is left than sessions have reserved."""
        return max(0, self.budget_tokens * len(self.span) - self._reserved) if self.span else 0

    @property
    def _free(self) -> int:
        return max(0, self._unreserved - self._store.pinned_cost)

    def reserve(
        self, session: SessionId, span: Span, *, num_lanes: int, max_tokens: int, prefix: Sequence[bytes] = ()
    ) -> int:
        """Keep room for `num_lanes` sequences of up to `max_tokens` tokens through the blocks of `span`.

        Returns how many tokens lane 0 has already: of the pages that `prefix` names, the leading ones that are kept for
        all of these blocks. CacheFullError if there is not enough room; StepError if the session has a reservation, or
        asks for blocks that are not here or for no room at all.
        """
        with self._books:
            return self._reserve(session, span, num_lanes, max_tokens, prefix)

    def _reserve(self, session: SessionId, span: Span, num_lanes: int, max_tokens: int, prefix: Sequence[bytes]) -> int:
        if session in self._sessions:
            raise StepError(session, "has reserved its cache already")
        if self.span is None or not self.span.covers(span):
            raise StepError(session, f"asks for blocks {span}, this cache serves {self.span or 'none'}")
        if num_lanes < 1 or max_tokens < 1:
            raise StepError(session, f"asks for {num_lanes} lanes of {max_tokens} tokens")
        reservation = _Reservation(span, max_tokens, [_Lane() for _ in range(num_lanes)])
        if reservation.cost > self._free:
            raise CacheFullError(-(-reservation.cost // len(self.span)), free_tokens=self.free_tokens)
        self._reserved += reservation.cost
        self._sessions[session] = reservation
        return self._adopt(reservation, prefix[: max_tokens // PAGE_TOKENS])

    def _adopt(self, reservation: _Reservation, prefix: Sequence[bytes]) -> int:
        """Let a new session have what is kept of `prefix`, and make room for what it reserved; tokens adopted."""
        lane, blocks = reservation.lanes[0], reservation.span
        num_adopted = 0
        for page_hash in prefix:
            pages = self._store.get(page_hash, blocks)
            if pages is None:
                break
            self._store.pin(pages)
            if self._store.pinned_cost > self._unreserved:  # the room is needed for the session itself
                self._store.unpin(pages)
                break
            for page in pages:
                lane.adopted.setdefault(page.block, []).append(page)
            num_adopted += 1
        self._store.touch(prefix[:num_adopted], blocks)
        self._settle()
        lane.length = num_adopted * PAGE_TOKENS
        return lane.length

    def _settle(self) -> None:
        """Drop the kept pages that there is no room for, except for pinned ones."""
        self._store.evict(self._store.cost - self._unreserved)

    def release(self, session: SessionId) -> None:
        """Free what the session holds; nothing happens if it holds nothing."""
        with self._books:
            if reservation := self._sessions.pop(session, None):
                self._reserved -= reservation.cost
                for block in reservation.span:
                    self._let_go(reservation.lanes[0], block)
                self._settle()

    def _let_go(self, lane: _Lane, block: int) -> None:
        """Unpin what a lane has adopted for one block."""
        self._store.unpin(lane.adopted.pop(block, ()))

    def take_over(self, lane: _Lane, block: int, max_tokens: int) -> None:
        """Copy what a lane has adopted for one block to a buffer of its own. Called in the compute thread."""
        if pages := lane.adopted.get(block):  # a release at this moment lets the pages go, but not their memory
            lane.slots[block] = join_pages(pages, max_tokens)
            with self._books:
                self._let_go(lane, block)
                self._settle()

    @torch.inference_mode()
    def keep(self, session: SessionId, prefix: Sequence[bytes]) -> None:
        """Keep the pages that `prefix` names, which begin lane 0, for later sessions, as far as there is room.

        Pages used longest ago make way for them. Called in the compute thread, between forwards. Sessions that come
        meanwhile may have the room back, as they take no memory before this has ended. Nothing happens if the session
        is gone.
        """
        with self._books:
            reservation = self._sessions.get(session)
            if reservation is None or self.span is None:
                return
            lane = reservation.lanes[0]
            prefix = prefix[: lane.length // PAGE_TOKENS]
            blocks = [block for block in reservation.span if block in self.span and block in lane.slots]
            slots = {block: lane.slots[block] for block in blocks}
            self._store.touch(prefix, blocks)
            adding = self._make_place(prefix, blocks)
        try:
            for index, page in adding:
                page.states = copy_page(slots[page.block], index)
        finally:
            with self._books:
                self._store.drop_unfilled(page for _, page in adding)
                self._store.touch(prefix, blocks)

    def _make_place(self, prefix: Sequence[bytes], blocks: Sequence[int]) -> list[tuple[int, Page]]:
        """Pages to fill, with their place in `prefix`: those that are not kept, until the room ends."""
        adding: list[tuple[int, Page]] = []
        sparing = frozenset(prefix)
        for index, page_hash in enumerate(prefix):
            for block in blocks:
                if self._store.has(page_hash, block):
                    continue
                if not self._store.evict(self._store.cost + PAGE_TOKENS - self._unreserved, sparing=sparing):
                    return adding
                adding.append((index, self._store.add(page_hash, block)))
        return adding

    def length(self, session: SessionId, lane: int) -> int:
        """Tokens cached in a lane."""
        return self._lane(session, lane).length

    def truncate(self, session: SessionId, lane: int, length: int) -> None:
        """Forget positions from `length` on; StepError if there are fewer."""
        held = self._lane(session, lane)
        if not 0 <= length <= held.length:
            raise StepError(session, f"lane {lane} has {held.length} tokens, it cannot be cut to {length}")
        held.length = length

    @torch.inference_mode()
    def reorder(self, session: SessionId, sources: Sequence[int]) -> None:
        """Let lane i continue from what lane sources[i] has cached (beam search); a lane may be named often."""
        reservation = self._reservation(session)
        old = reservation.lanes
        new = [self._lane(session, source) for source in sources]
        for block in reservation.span:  # of lane 0, if it has not run yet
            self.take_over(old[0], block, reservation.max_tokens)
        if len(new) != len(old):
            raise StepError(session, f"has {len(old)} lanes, a reordering names {len(new)}")
        spare = [lane for lane in old if lane not in new]
        for index, lane in enumerate(new):
            if lane in new[:index]:  # the first to continue from a lane takes it over, the others copy it
                new[index] = spare.pop()
                new[index].copy_from(lane)
        reservation.lanes = new

    def begin(self, steps: Sequence[Step], span: Span) -> "PackedCache":
        """Check `steps` through the blocks of `span` and make ready to run them as one packed batch.

        Lanes are truncated to where their steps start. StepError, before anything changes, if a step does not
        fit what its session has reserved and cached, or if two are for the same lane.
        """
        parts: dict[tuple[SessionId, int], _Part] = {}
        for step in steps:
            reservation = self._reservation(step.session)
            lane = self._lane(step.session, step.lane)
            end = step.start + step.num_tokens
            if reservation.span != span:
                raise StepError(step.session, f"has reserved blocks {reservation.span}, not {span}")
            if (step.session, step.lane) in parts:
                raise StepError(step.session, f"lane {step.lane} has two steps in one batch")
            if step.num_tokens < 1 or not 0 <= step.start <= lane.length:
                raise StepError(
                    step.session,
                    f"lane {step.lane} has {lane.length} tokens: no step goes from {step.start} to {end}",
                )
            if end > reservation.max_tokens:
                raise StepError(
                    step.session,
                    f"lane {step.lane} may grow to {reservation.max_tokens} tokens, a step goes to {end}",
                )
            parts[step.session, step.lane] = _Part(lane, step.start, end, reservation.max_tokens)
        for part in parts.values():
            part.lane.length = part.start
        return PackedCache(list(parts.values()), self.take_over)

    def check(self) -> None:
        """AssertionError unless the books add up and no lane exceeds what it reserved; not while a forward runs."""
        reserved = sum(reservation.cost for reservation in self._sessions.values())
        assert self._reserved == reserved, (self._reserved, reserved)
        lanes = [lane for reservation in self._sessions.values() for lane in reservation.lanes]
        self._store.check(page for lane in lanes for pages in lane.adopted.values() for page in pages)
        assert self._store.cost <= max(self._unreserved, self._store.pinned_cost), (self._store.cost, self._unreserved)
        for reservation in self._sessions.values():
            for lane in reservation.lanes:
                assert 0 <= lane.length <= reservation.max_tokens, lane.length
                assert all(block in reservation.span for block in lane.slots), list(lane.slots)
                assert not lane.slots.keys() & lane.adopted.keys(), (list(lane.slots), list(lane.adopted))

    def _reservation(self, session: SessionId) -> _Reservation:
        try:
            return self._sessions[session]
        except KeyError:
            raise StepError(session, "has no cache reserved here") from None

    def _lane(self, session: SessionId, lane: int) -> _Lane:
        lanes = self._reservation(session).lanes
        if not 0 <= lane < len(lanes):
            raise StepError(session, f"has lanes 0 to {len(lanes) - 1}, not {lane}")
        return lanes[lane]


@dataclass(frozen=True, slots=True)
class _Part:
    """Positions [start, end) of one lane, within a packed batch."""

    lane: _Lane
    start: int
    end: int
    max_tokens: int


class PackedCache:
    """What the blocks see as their cache during one packed forward pass."""

    def __init__(self, parts: Sequence[_Part], take_over: Callable[[_Lane, int, int], None]) -> None:
        self._parts = parts
        self._take_over = take_over
        self._num_new = [part.end - part.start for part in parts]
        self._masks = Masks()

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_args: object, **_kwargs: object
    ) -> tuple[Ragged, Ragged]:
        """Store new keys and values (1, kv_heads, total, dim) of one block; give back all that its lanes hold."""
        all_keys, all_values = [], []
        pieces = zip(split_packed(keys, self._num_new), split_packed(values, self._num_new), strict=True)
        for part, (k, v) in zip(self._parts, pieces, strict=True):
            if part.lane.adopted:
                self._take_over(part.lane, layer_idx, part.max_tokens)
            if (slot := part.lane.slots.get(layer_idx)) is None:
                slot = part.lane.slots[layer_idx] = (_room(k, part.max_tokens), _room(v, part.max_tokens))
            slot[0].narrow(2, part.start, k.shape[2]).copy_(k)
            slot[1].narrow(2, part.start, v.shape[2]).copy_(v)
            all_keys.append(slot[0].narrow(2, 0, part.end))
            all_values.append(slot[1].narrow(2, 0, part.end))
        return Ragged(all_keys, self._num_new, self._masks), Ragged(all_values, self._num_new, self._masks)

    def table(self, span: Span) -> Tensor | None:
        """The batch as rows (`rows.table_of`); None if one of its lanes has no memory yet in some block."""
        positions: list[int] = []
        rooms: list[int] = []
        addresses: list[Tensor] = []
        for part in self._parts:
            if (own := part.lane.addresses(span)) is None:
                return None
            num_new = part.end - part.start
            positions += range(part.start, part.end)
            rooms += [part.max_tokens] * num_new
            addresses += [own] * num_new
        return table_of(positions, rooms, addresses)

    def get_seq_length(self, _layer_idx: int = 0) -> int:
        """Asked by families that would number positions themselves; we always give them the positions."""
        return 0

    def commit(self) -> None:
        """The pass is complete: the lanes now hold its tokens."""
        for part in self._parts:
            part.lane.length = part.end


def _room(new: Tensor, max_tokens: int) -> Tensor:
    """An uninitialized buffer (1, kv_heads, max_tokens, dim) for what looks like `new`."""
    return new.new_empty(1, new.shape[1], max_tokens, new.shape[3])
