"""A session on one chain: messages in at the head, out at the tail, until the chain breaks."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable

from chainserve.errors import ProtocolError, SessionLostError, SessionRefusedError
from chainserve.protocol.messages import Choice, Close, Failed, FailureCode, Leaving, Message, Stalled
from chainserve.protocol.session import ClientSession, Output, Phase
from chainserve.types import Chain, PeerId

OPEN_TIMEOUT_PER_HOP_S = 10.0
"""Longer than a server tries to reach the next, so that who is named is the one that could not be reached."""
STEP_TIMEOUT_S = 600.0
"""For a step at most, whatever is known of the servers. Lost ones are noticed by their neighbours within seconds."""
SLACK_S, SLACK = 5.0, 10.0
"""A step is late this long after this many times what was predicted: whoever has it is asked whether it goes on."""
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
        self.began_s = time.monotonic()
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

    async def send(self, message: Message) -> None:
        """Send a message of the session's own."""
        await self._send(message)

    async def outputs(self, num_tokens: int) -> AsyncGenerator[Output | Choice, None]:
        """What the chain gives until the step that was sent has ended, one of `num_tokens` tokens.

        In token mode the step ends with the last token, and each token after the first is expected as soon as a step of
        one token takes. SessionLostError if the chain broke.
        """
        since_s = time.monotonic()
        while self.state.phase is Phase.STEPPING:
            for output in await self._next_outputs(num_tokens, since_s=since_s):
                yield output
                num_tokens, since_s = 1, time.monotonic()
        self._raise_if_lost()

    async def _next_outputs(self, num_tokens: int, *, since_s: float) -> list[Output | Choice]:
        """The next outputs; none if the session is over, or they are late but under way."""
        left_s = timeout_s = since_s + STEP_TIMEOUT_S - time.monotonic()
        if self._predict is not None:
            timeout_s = min(timeout_s, SLACK_S + SLACK * self._predict(num_tokens))
        try:
            async with asyncio.timeout(timeout_s):
                return await self._receive()
        except TimeoutError:
            return await self._find_the_late(is_patient=timeout_s < left_s)

    async def _receive(self, *, is_asking: bool = False) -> list[Output | Choice]:
        """What comes next; with `is_asking` nothing, if the answer is that the step has to wait for others."""
        outputs: list[Output | Choice] = []
        while self.state.phase is Phase.STEPPING and not outputs:
            message = await self._inbox.get()
            if isinstance(message, Stalled):
                if is_asking:
                    break
                continue  # the outputs were quicker
            try:
                outputs += self.state.receive(message)
            except ProtocolError as error:
                self.state.receive(Failed(self.state.id, self.chain.tail, FailureCode.BAD_MESSAGE, str(error)))
                await self._send(Close(self.state.id))
        return outputs

    async def close(self) -> None:
        """Free the session's cache along the chain."""
        message = self.state.close()
        self._on_close()
        if message is not None:
            self.deliver(message)  # wakes a step that still waits
            await self._send(message)

    async def _find_the_late(self, *, is_patient: bool) -> list[Output | Choice]:
        """Ask the chain who holds up the step; if nobody says, it is the head's fault.

        The session ends unless the outputs come, or, where that `is_patient`, the step has to wait for others.
        """
        await self._send(self.state.stalled())
        try:
            async with asyncio.timeout(BLAME_S):
                return await self._receive(is_asking=is_patient)
        except TimeoutError:
            self.state.receive(Failed(self.state.id, self.chain.head, FailureCode.STALLED, "no output in time"))
            await self._send(Close(self.state.id))
            return []

    def _raise_if_lost(self) -> None:
        if failure := self.state.failure:
            raise SessionLostError(failure.peer, f"{failure.detail} ({failure.code})", code=failure.code)
        if self.state.phase is Phase.OVER:
            raise SessionLostError(self.chain.head, "the session was closed here", code=CLOSED_HERE)
