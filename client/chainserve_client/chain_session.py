"""A session on one chain: hidden states in at the head, out at the tail, until the chain breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from chainserve.errors import SessionLostError, SessionRefusedError
from chainserve.protocol.messages import Activations, Close, Failed, FailureCode, Leaving, Message
from chainserve.protocol.session import ClientSession, Phase
from chainserve.types import Chain, PeerId

if TYPE_CHECKING:
    import torch  # clients that send no activations do without

CHUNK_TOKENS = 512
"""Tokens per message of a long prompt: servers down the chain work on one while the next is on its way."""
OPEN_TIMEOUT_PER_HOP_S = 10.0
"""Longer than a server tries to reach the next, so that who is named is the one that could not be reached."""
STEP_TIMEOUT_S = 600.0
"""For a step on servers of which nothing is known. Lost ones are noticed by their neighbours within seconds."""
SLACK_S, SLACK = 5.0, 10.0
"""A step is late this long after this many times what was predicted: others' prompts may be in its way."""
BLAME_S = 10.0
"""So long the servers have to say who holds up a step: longer than it takes to find one of them silent."""

CLOSED_HERE = "closed-here"
"""Code of a session that was not lost but closed, while a step was under way."""

SendToHead = Callable[[Message], Awaitable[None]]
Predict = Callable[[int], float]
"""Seconds of a step of so many tokens."""


class ChainSession:
    """Drives one `ClientSession` over the link to its head. Use one caller at a time."""

    def __init__(
        self,
        state: ClientSession,
        *,
        send: SendToHead,
        on_close: Callable[[], None],
        predict: Predict | None = None,  # None: nothing is known of the servers
    ) -> None:
        self.state = state
        self._predict = predict
        self._send = send
        self._on_close = on_close
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self.leaving: PeerId | None = None
        """A server of the chain that is about to give up its blocks."""

    @property
    def chain(self) -> Chain:
        return self.state.chain

    def deliver(self, message: Message) -> None:
        """Take a message for this session from whichever link it came over."""
        if isinstance(message, Leaving):
            self.leaving = message.peer
            return
        self._inbox.put_nowait(message)

    async def open(self) -> None:
        """Reserve cache at every hop; SessionRefusedError names the server that did not."""
        await self._send(self.state.open())
        timeout_s = OPEN_TIMEOUT_PER_HOP_S * len(self.chain.hops)
        try:
            async with asyncio.timeout(timeout_s):
                while self.state.phase is Phase.OPENING:
                    self.state.receive(await self._inbox.get())
        except TimeoutError:
            raise SessionRefusedError(self.chain.head, f"no answer within {timeout_s:.0f} s") from None
        if failure := self.state.failure:
            raise SessionRefusedError(failure.peer, failure.detail, code=failure.code)

    async def step(
        self, hidden: torch.Tensor, num_tokens: Sequence[int], num_outputs: Sequence[int]
    ) -> list[torch.Tensor]:
        """Continue every lane and return its outputs.

        `hidden` (sum of num_tokens, hidden size) holds the lanes' tokens one lane after another; the result has
        for each lane a tensor (num_outputs[lane], hidden size). SessionLostError if the chain broke.
        """
        import torch

        from chainserve.models.wire import from_wire, to_wire

        for chunks in self.state.step(num_tokens, num_outputs, chunk_tokens=CHUNK_TOKENS):
            first, last = chunks[0], chunks[-1]
            rows = hidden[first.first : last.first + last.step.num_tokens]
            await self._send(Activations(tuple(chunk.step for chunk in chunks), to_wire(rows)))
        outputs: list[list[torch.Tensor]] = [[] for _ in num_tokens]

        async def receive() -> None:
            while self.state.phase is Phase.STEPPING:
                for output in self.state.receive(await self._inbox.get()):
                    rows = from_wire(output.tensor, dtype=hidden.dtype, device=hidden.device)
                    outputs[output.lane].append(rows)

        timeout_s = STEP_TIMEOUT_S
        if self._predict is not None:
            timeout_s = min(timeout_s, SLACK_S + SLACK * self._predict(len(hidden)))
        try:
            async with asyncio.timeout(timeout_s):
                await receive()
        except TimeoutError:
            await self._find_the_late(receive, f"no output within {timeout_s:.1f} s")
        self._raise_if_lost()
        empty = hidden[:0]
        return [torch.cat(parts) if parts else empty for parts in outputs]

    async def reorder(self, sources: Sequence[int]) -> None:
        """Let lane i continue from what lane sources[i] has cached."""
        await self._send(self.state.reorder(sources))

    async def close(self) -> None:
        """Free the session's cache along the chain."""
        message = self.state.close()
        self._on_close()
        if message is not None:
            self.deliver(message)  # wakes a step that still waits
            await self._send(message)

    async def _find_the_late(self, receive: Callable[[], Awaitable[None]], detail: str) -> None:
        """Ask the chain who holds up the step, which ends the session; if nobody says, it is the head's fault."""
        await self._send(self.state.stalled())
        try:
            async with asyncio.timeout(BLAME_S):
                await receive()
        except TimeoutError:
            self.state.receive(Failed(self.state.id, self.chain.head, FailureCode.STALLED, detail))
            await self._send(Close(self.state.id))

    def _raise_if_lost(self) -> None:
        if failure := self.state.failure:
            raise SessionLostError(failure.peer, f"{failure.detail} ({failure.code})", code=failure.code)
        if self.state.phase is Phase.OVER:
            raise SessionLostError(self.chain.head, "the session was closed here", code=CLOSED_HERE)
