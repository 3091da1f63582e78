"""The blocks that this server holds, and how it moves from some to others while it serves.

With the model's first block comes the token embedding, with its last block norm and head. What stays is served all the
time, and never read again. What is new is loaded beside what is old where memory allows; else the old goes first. At no
moment do weights, activations and cache together take more than the memory given.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from chainserve.models.cache import KVCache
from chainserve.models.ends import End, Ends, end_skeleton, ends_of
from chainserve.models.load import LoadReport, load_weights
from chainserve.models.runner import Runner
from chainserve.models.skeleton import Skip, blocks_of, build_skeleton
from chainserve.planning.moves import overlap
from chainserve.protocol.messages import FailureCode
from chainserve.runtime.background import in_background
from chainserve.swarm.records import ServerState
from chainserve.types import Span
from chainserve_server.engine import Engine
from chainserve_server.prepare import Prepared
from chainserve_server.sessions import Sessions

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Held:
    """Blocks in memory with the ends that come with them, and what runs them."""

    span: Span
    runner: Runner
    modules: dict[int, nn.Module]
    ends: dict[End, Ends]


class Blocks:
    """Holds, loads and gives up blocks; the engine runs them, the sessions use them."""

    def __init__(
        self,
        prepared: Prepared,
        engine: Engine,
        sessions: Sessions,
        *,
        grace_s: float,
        on_change: Callable[[], None],
    ) -> None:
        """Sessions that a move gets in the way of have `grace_s` to finish; `on_change`: there is news to announce."""
        self._prepared = prepared
        self._engine = engine
        self._sessions = sessions
        self._grace_s = grace_s
        self._on_change = on_change
        self._held: Held | None = None
        self._session_ended = asyncio.Event()
        self.state = ServerState.LOADING if prepared.pinned else ServerState.JOINING
        self.span: Span | None = prepared.pinned
        """What is announced: blocks that are served, or the state says why not."""
        self.weight_bytes = 0
        """Memory that weights take now, those that are being loaded included."""
        self.loaded_share: float | None = None
        """Of what is being loaded, what has been read; None: nothing is being loaded."""

    @property
    def cache(self) -> KVCache:
        return self._engine.cache

    @property
    def cache_tokens(self) -> int:
        """Tokens that the cache holds in total, or will once the first blocks are there: plans count on it."""
        if self.state is not ServerState.LOADING or self.span is None:
            return self.cache.budget_tokens
        prepared = self._prepared
        return prepared.cache_tokens(self.span, prepared.left_bytes(prepared.weight_bytes(self.span)))

    @property
    def free_tokens(self) -> int:
        """Tokens of those that no session has reserved."""
        return self.cache_tokens if self.state is ServerState.LOADING else self.cache.free_tokens

    def session_ended(self) -> None:
        """Tell that a session is over, or a few: a move may wait for it."""
        self._session_ended.set()

    async def hold(self, span: Span) -> LoadReport:
        """Serve these blocks, and no others, when this returns."""
        prepared = self._prepared
        before = self._held.span if self._held else None
        keep = overlap(before, span)
        copied_bytes = prepared.profile.head_bytes if self._has_to_unpack(span) else 0
        if copied_bytes and prepared.left_bytes(prepared.weight_bytes(span), copied_bytes) < 0:
            keep, copied_bytes = None, 0  # no room for a copy, not even without cache
        new_bytes = prepared.weight_bytes(span) - prepared.weight_bytes(keep) + copied_bytes
        if before is None:
            self._say(ServerState.LOADING, span)
        else:
            await self._released()
            left_bytes = prepared.left_bytes(prepared.weight_bytes(before), new_bytes)
            if self._reserved_bytes() <= left_bytes:
                self._resize(before, left_bytes=left_bytes)
                self._on_change()
            else:
                left_bytes = prepared.left_bytes(prepared.weight_bytes(span), copied_bytes)
                await self._give_up(keep, left_bytes=left_bytes)
                self._say(ServerState.ONLINE if keep else ServerState.LOADING, keep or span)
        held, report = await self._load(span, new_bytes)
        if self._held is not None and not span.covers(self._held.span):
            self._narrow(keep)
            await self._end_outside(span)
        left_bytes = prepared.left_bytes(prepared.weight_bytes(span))
        await self._engine.between_iterations(lambda: self._use(held, left_bytes=left_bytes))
        self._sessions.span, self._sessions.closed_because = span, None
        self._say(ServerState.ONLINE, span)
        return report

    async def _give_up(self, keep: Span | None, *, left_bytes: int) -> None:
        """Drop what does not stay, and sessions until their cache takes no more than `left_bytes`."""
        assert self._held is not None
        self._narrow(keep)
        fits_bytes = min(left_bytes, self._prepared.left_bytes(self.weight_bytes))  # beside what is not dropped yet
        self._resize(keep, left_bytes=fits_bytes)
        await self._end_outside(keep, most_bytes=left_bytes)
        held, _ = await self._load(keep, 0) if keep else (None, None)
        await self._engine.between_iterations(lambda: self._use(held, left_bytes=left_bytes))

    def _narrow(self, keep: Span | None) -> None:
        """Take new sessions only for blocks that stay."""
        assert self._held is not None
        self._sessions.span = keep
        if keep is None:
            self._sessions.closed_because = "moves to other blocks"
        self._say(ServerState.ONLINE if keep else ServerState.DRAINING, keep or self._held.span)

    async def _end_outside(self, keep: Span | None, *, most_bytes: float = float("inf")) -> None:
        """Let sessions go on elsewhere that run other blocks; end them, or those in the way, after a while."""

        def in_the_way() -> bool:
            return bool(self._sessions.outside(keep)) or self._reserved_bytes() > most_bytes

        self._sessions.leave(self._sessions.outside(keep))
        with suppress(TimeoutError):
            async with asyncio.timeout(self._grace_s):
                while True:
                    self._session_ended.clear()  # first, so that none is missed that ends while we wait for the cache
                    await self._released()
                    if not in_the_way():
                        return
                    await self._session_ended.wait()
        self._sessions.end(self._sessions.outside(keep), FailureCode.NOT_SERVING, "the server moved to other blocks")
        await self._released()
        for session in reversed(self._sessions.outside(None)):  # those that came last have the least to do again
            if not in_the_way():
                break
            self._sessions.end([session], FailureCode.NOT_SERVING, "the server needs its memory for other blocks")
            await self._released()

    async def _released(self) -> None:
        """Wait until the cache of what has ended is free."""
        await self._engine.between_iterations(lambda: None)

    def _has_to_unpack(self, span: Span) -> bool:
        """Whether the head's weights are in an order of their own, and an embedding comes that shares them."""
        ends = self._held.ends if self._held else {}
        is_alone = list(ends) == [End.HEAD] and ends[End.HEAD].is_packed
        return self._prepared.profile.is_tied and is_alone and len(ends_of(span, self._prepared.source.num_blocks)) == 2

    async def _load(self, span: Span, new_bytes: int) -> tuple[Held, LoadReport]:
        """Bring in what of the span is not here, in a thread, and leave alone what is: it runs."""
        prepared = self._prepared
        config, wanted = prepared.source.config, ends_of(span, prepared.source.num_blocks)
        ends = {end: there for end, there in self._held.ends.items() if end in wanted} if self._held else {}
        before = list(ends.values())
        if self._has_to_unpack(span):
            del ends[End.HEAD]  # which runs meanwhile
        stays = {block: module for block, module in self._held.modules.items() if block in span} if self._held else {}
        self.weight_bytes += new_bytes
        new_block_bytes = sum(prepared.block_bytes[block] for block in span if block not in stays)
        num_new_ends = len(set(wanted) - ends.keys())

        def read(skeleton: PreTrainedModel, *, begin: float, end: float) -> LoadReport:
            def tell(share: float) -> None:
                self.loaded_share = begin + (end - begin) * share if new_bytes else None

            return load_weights(
                skeleton,
                prepared.source,
                dtype=prepared.dtype,
                device=prepared.device,
                progress=new_bytes > 0,
                on_share=tell,
            )

        def load() -> tuple[Held, LoadReport]:
            skeleton = build_skeleton(config, span)
            blocks = blocks_of(skeleton.base_model)
            for block in stays:
                blocks[block] = Skip(blocks[block])
            share = min(1.0, new_block_bytes / max(1, new_bytes)) if num_new_ends else 1.0
            report = read(skeleton, begin=0.0, end=share)
            for block, module in stays.items():
                blocks[block] = module
            for end in wanted:
                if end not in ends:
                    end_model = end_skeleton(config, end, beside=(*ends.values(), *before))
                    step = (1 - share) / num_new_ends
                    report += read(end_model, begin=share, end=share + step)
                    share += step
                    ends[end] = Ends(end_model, beside=ends.values())
            runner = Runner(skeleton, span, self.cache, ends=Ends.joined(ends.values()))
            runner.warm_up()
            return Held(span, runner, {block: runner.blocks[block] for block in span}, ends), report

        self.loaded_share = 0.0 if new_bytes else None
        try:
            return await in_background(load)
        finally:
            self.loaded_share = None

    def _use(self, held: Held | None, *, left_bytes: int) -> None:
        """Run these blocks from the next iteration on, and drop the others; `left_bytes` are for cache."""
        span = held.span if held else None
        self._held = held
        self._engine.runner = held.runner if held else None
        self.weight_bytes = self._prepared.weight_bytes(span)
        self._resize(span, left_bytes=left_bytes)

    def _resize(self, span: Span | None, *, left_bytes: int) -> None:
        """Give the cache so much memory; None: no room for anything."""
        self.cache.resize(span, budget_tokens=self._prepared.cache_tokens(span, left_bytes) if span else 0)

    def _reserved_bytes(self) -> int:
        return self.cache.reserved * self._prepared.profile.token_bytes

    def _say(self, state: ServerState, span: Span) -> None:
        self.state, self.span = state, span
        self._on_change()
