"""Pages of prompts that were computed, kept for sessions whose prompt begins alike.

A page is held block by block, as a session may run fewer blocks than are served, and is found under its hash, which
covers all tokens before it. Nothing here locks or knows a budget: `KVCache` does.
"""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from chainserve.protocol.pages import PAGE_TOKENS
from chainserve.types import Span


@dataclass(slots=True, eq=False)
class Page:
    """Keys and values (1, kv_heads, PAGE_TOKENS, dim) of one block; None until they are copied."""

    hash: bytes
    block: int
    states: tuple[Tensor, Tensor] | None = None
    num_pins: int = 0


class PageStore:
    """Pages by hash and block, those used longest ago first."""

    def __init__(self) -> None:
        self._pages: dict[tuple[bytes, int], Page] = {}
        self._num_pinned = 0
        self._span: Span | None = None

    @property
    def cost(self) -> int:
        """What the store holds, in tokens times blocks."""
        return len(self._pages) * PAGE_TOKENS

    @property
    def pinned_cost(self) -> int:
        """What it cannot give up now."""
        return self._num_pinned * PAGE_TOKENS

    def get(self, page_hash: bytes, blocks: Iterable[int]) -> list[Page] | None:
        """The page in all of `blocks`; None if one of them lacks it, or is still being copied."""
        pages = [self._pages.get((page_hash, block)) for block in blocks]
        held = [page for page in pages if page is not None and page.states is not None]
        return held if len(held) == len(pages) else None

    def has(self, page_hash: bytes, block: int) -> bool:
        return (page_hash, block) in self._pages

    def add(self, page_hash: bytes, block: int) -> Page:
        """A page to be filled, which is not there yet; nobody gets it before that."""
        page = self._pages[page_hash, block] = Page(page_hash, block)
        return page

    def drop_unfilled(self, pages: Iterable[Page]) -> None:
        """Drop those of `pages` that were not filled and are still there."""
        for page in pages:
            if page.states is None and self._pages.get((page.hash, page.block)) is page:
                del self._pages[page.hash, page.block]

    def pin(self, pages: Iterable[Page]) -> None:
        """Keep `pages` until each is unpinned as often as it was pinned."""
        for page in pages:
            self._num_pinned += page.num_pins == 0
            page.num_pins += 1

    def unpin(self, pages: Iterable[Page]) -> None:
        """Let `pages` go, and drop those of blocks that are not served any more."""
        for page in pages:
            page.num_pins -= 1
            if page.num_pins == 0:
                self._num_pinned -= 1
                if not self._serves(page):
                    del self._pages[page.hash, page.block]

    def serve(self, span: Span | None) -> None:
        """Drop the pages of blocks outside `span`; pinned ones go when they are unpinned."""
        self._span = span
        for page in [page for page in self._pages.values() if not page.num_pins and not self._serves(page)]:
            del self._pages[page.hash, page.block]

    def _serves(self, page: Page) -> bool:
        return self._span is not None and page.block in self._span

    def touch(self, prefix: Sequence[bytes], blocks: Iterable[int]) -> None:
        """Count as used now. A page goes before those it follows: without them nobody can use it."""
        named = list(blocks)
        for page_hash in reversed(prefix):
            for block in named:
                if page := self._pages.pop((page_hash, block), None):
                    self._pages[page_hash, block] = page

    def evict(self, cost: int, *, sparing: Set[bytes] = frozenset()) -> bool:
        """Drop unpinned pages until `cost` less is held, those used longest ago first; whether that could be done."""
        needed = -(-cost // PAGE_TOKENS)
        if needed <= 0:
            return True
        leaving = []
        for page in self._pages.values():
            if page.num_pins == 0 and page.hash not in sparing:
                leaving.append(page)
                if len(leaving) == needed:
                    break
        for page in leaving:
            del self._pages[page.hash, page.block]
        return len(leaving) == needed

    def check(self, pinned: Iterable[Page]) -> None:
        """AssertionError unless `pinned`, each page as often as a session waits for it, are what is pinned."""
        counts: dict[Page, int] = {}
        for page in pinned:
            counts[page] = counts.get(page, 0) + 1
        assert self._num_pinned == len(counts), (self._num_pinned, len(counts))
        for key, page in self._pages.items():
            assert key == (page.hash, page.block)
            assert page.states is not None
            assert page.states[0].shape[2] == page.states[1].shape[2] == PAGE_TOKENS
            assert page.num_pins == counts.pop(page, 0)
            assert page.num_pins or self._serves(page), page.block
        assert not counts, "a session waits for pages that are gone"


def copy_page(slot: tuple[Tensor, Tensor], index: int) -> tuple[Tensor, Tensor]:
    """Keys and values of page `index` out of a lane's buffers, in memory of their own."""
    keys, values = (each.narrow(2, index * PAGE_TOKENS, PAGE_TOKENS).clone() for each in slot)
    return keys, values


def join_pages(pages: Sequence[Page], max_tokens: int) -> tuple[Tensor, Tensor]:
    """Buffers of a lane, (1, kv_heads, max_tokens, dim), that begin with `pages`."""
    buffers = []
    for parts in zip(*(page.states for page in pages if page.states is not None), strict=True):
        first = parts[0]
        buffer = first.new_empty(1, first.shape[1], max_tokens, first.shape[3])
        torch.cat(parts, dim=2, out=buffer.narrow(2, 0, len(parts) * PAGE_TOKENS))
        buffers.append(buffer)
    keys, values = buffers
    return keys, values
