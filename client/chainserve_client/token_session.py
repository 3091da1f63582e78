"""A session in token mode that outlives its servers: tokens come, and go on over another chain when theirs breaks.

Servers embed and sample; the client knows token ids only. After a loss the tokens so far are the prompt of the new
chain. What is drawn depends on seed and position alone, so the answer is what it would have been without the loss.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from chainserve.errors import SessionLostError
from chainserve.protocol.messages import Choice, Spent
from chainserve.types import Chain, PeerId
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

    def __init__(self, line: Lifeline, ids: list[int]) -> None:
        """`ids` are the prompt, and grow by what comes: whoever opens another chain looks there."""
        self.line = line
        self._ids = ids
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
                yield choice
                if await self.line.move_if_leaving():
                    return
