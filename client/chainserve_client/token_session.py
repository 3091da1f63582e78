"""A session in token mode that outlives its servers: tokens come, and go on over another chain when theirs breaks.

Servers embed and sample; the client knows token ids only. After a loss the tokens so far are the prompt of the new
chain. What is drawn depends on seed and position alone, so the answer is what it would have been without the loss.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from chainserve.errors import SessionLostError
from chainserve.protocol.messages import Choice, Spent
from chainserve.protocol.session import Phase
from chainserve.types import Chain, PeerId
from chainserve_client.chain_session import ChainSession
from chainserve_client.drafting import Drafting
from chainserve_client.lifeline import Lifeline, Recovery


@dataclass(frozen=True, slots=True)
class HopTime:
    """What a request has taken of one server, as that has measured it."""

    peer: PeerId
    queue_s: float
    """Seconds that its steps waited there for their turn."""
    compute_s: float
    """Seconds of the forwards that ran them, beside those of other requests."""


class TokenSession:
    """The tokens of one request. Use one caller at a time."""

    def __init__(self, line: Lifeline, ids: list[int], *, drafting: Drafting | None = None) -> None:
        """`ids` are the prompt, and grow by what comes: whoever opens another chain looks there.

        With `drafting` the head waits for drafts of this client's.
        """
        self.line = line
        self._ids = ids
        self._drafting = drafting
        self._draft: asyncio.Task[None] | None = None  # under way
        self._spent: tuple[Spent, ...] = ()

    @property
    def chain(self) -> Chain:
        """The chain it runs on now."""
        return self.line.current.chain

    @property
    def recoveries(self) -> Sequence[Recovery]:
        """How it went on elsewhere."""
        return self.line.recoveries

    @property
    def hop_times(self) -> tuple[HopTime, ...]:
        """What the servers of this chain say that the session has taken of them; empty before its first tokens."""
        hops = self.chain.hops
        if len(self._spent) != len(hops):
            return ()
        pairs = zip(hops, self._spent, strict=True)
        return tuple(HopTime(hop.peer, each.waited_us / 1e6, each.computed_us / 1e6) for hop, each in pairs)

    async def tokens(self) -> AsyncGenerator[Choice, None]:
        """Tokens as the tail chooses them, up to the last one; SessionLostError if no chain could go on."""
        while True:
            try:
                async with aclosing(self._on_this_chain()) as choices:
                    async for choice in choices:
                        yield choice
                        if choice.is_last:
                            return
            except SessionLostError as error:
                await self.line.replace(error)

    async def close(self) -> None:
        """Free the session's cache along the chain."""
        await self._end_draft()
        if self._drafting is not None:
            self._drafting.close()
        await self.line.close()

    async def _on_this_chain(self) -> AsyncGenerator[Choice, None]:
        """Tokens until the chain breaks, or a server of it is about to leave and another chain has been opened."""
        current, num_known = self.line.current, len(self._ids)
        self._spent = ()
        async with aclosing(current.outputs(num_known)) as outputs:
            async for choice in outputs:
                assert isinstance(choice, Choice)
                self.line.arrived(num_known)
                self._ids += choice.ids
                self._spent = choice.spent
                await self._end_draft()
                if self._drafting is not None and current.state.phase is Phase.STEPPING:
                    self._draft = asyncio.create_task(self._draft_on(current, self._drafting, choice))
                yield choice
                if await self.line.move_if_leaving():
                    return

    async def _draft_on(self, current: ChainSession, drafting: Drafting, choice: Choice) -> None:
        """Send what may follow a choice; then learn, if that was nothing, whether it would have been right."""
        ids = list(self._ids)
        drafts = await drafting.propose(ids, choice)
        if current.state.phase is not Phase.STEPPING:
            return  # lost meanwhile
        await current.send(current.state.drafts(drafts))
        if not drafts:
            await drafting.try_one(ids)

    async def _end_draft(self) -> None:
        """Wait for the drafts under way; those of a chain that broke are not wanted any more."""
        draft, self._draft = self._draft, None
        if draft is not None:
            draft.cancel()
            await asyncio.wait([draft])
