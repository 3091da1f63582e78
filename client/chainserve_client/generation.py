"""From tokens as they come to pieces of text, until the end."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from chainserve.errors import GrammarError, RequestLostError, SessionLostError
from chainserve.protocol.messages import FailureCode, Logprobs
from chainserve.types import Chain
from chainserve_client.lifeline import Recovery
from chainserve_client.parameters import Parameters
from chainserve_client.text import Decode, TextStream
from chainserve_client.token_session import HopTime, TokenSession


@dataclass(frozen=True, slots=True)
class Piece:
    """One new token, the text that became certain with it (maybe none), and the chain that it came over."""

    token: int
    text: str
    chain: Chain
    logprobs: Logprobs | None = None
    """If they were asked for."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What a request gave, and where and how fast it ran."""

    text: str
    tokens: tuple[int, ...]
    """New tokens, the end token included."""
    finish_reason: str
    """'stop' at an end token or a stop text, 'length' at max_new_tokens."""
    num_prompt_tokens: int
    chain: Chain
    waited_s: float
    """From the request until it had its place on a chain, and its session was being opened there."""
    first_token_s: float
    """From the request to its first token."""
    total_s: float
    logprobs: tuple[Logprobs, ...] = ()
    """Of each new token, if they were asked for."""
    recoveries: tuple[Recovery, ...] = ()
    """Servers that were lost on the way, and what it took to go on without them."""
    hop_times: tuple[HopTime, ...] = ()
    """What it has taken of each server of its chain: of the last one, if it ran over several."""

    @property
    def tokens_per_second(self) -> float:
        """Speed of decoding; of the whole request if it gave one token only."""
        if len(self.tokens) == 1:
            return 1 / self.total_s
        return (len(self.tokens) - 1) / (self.total_s - self.first_token_s)


class Stream(AsyncIterator[Piece]):
    """Pieces as they come. `result` is there once they have all come."""

    def __init__(self, pieces: AsyncGenerator[Piece | Generation, None]) -> None:
        self._pieces = pieces
        self._result: Generation | None = None

    @property
    def result(self) -> Generation:
        """The whole generation; RuntimeError before the end."""
        if self._result is None:
            raise RuntimeError("the stream has not come to its end")
        return self._result

    async def __anext__(self) -> Piece:
        item = await anext(self._pieces)
        if isinstance(item, Generation):
            self._result = item
            item = await anext(self._pieces)  # ends the iteration
        assert isinstance(item, Piece)
        return item

    async def aclose(self) -> None:
        """Stop generating and free the session's cache."""
        await self._pieces.aclose()


async def generate(
    session: TokenSession,
    parameters: Parameters,
    *,
    num_prompt_tokens: int,
    end_tokens: frozenset[int],
    decode: Decode,
    started: float,
) -> AsyncGenerator[Piece | Generation, None]:
    """Continue the prompt of a session that has just been opened: pieces, and the `Generation` as the last item.

    Tokens of `end_tokens` give no text; `started` is the time.monotonic() of the request. RequestLostError, with what
    has come so far, if its servers are lost and no others take over, or if it takes too long.
    """
    waited_s = session.line.current.began_s - started
    stream = TextStream(decode, parameters.stop)
    pieces: list[Piece] = []
    first_token_s = 0.0
    stopped = False
    async with aclosing(session.tokens()) as choices:
        while not stopped and len(pieces) < parameters.max_new_tokens:
            try:
                async with asyncio.timeout(max(0.0, started + parameters.timeout_s - time.monotonic())):
                    choice = await anext(choices)
            except SessionLostError as error:
                if error.code == FailureCode.BAD_GRAMMAR:
                    raise GrammarError(error.reason) from error
                raise lost(error.peer, error.reason, pieces) from error
            except TimeoutError as error:
                late = f"the request did not end within {parameters.timeout_s:g} s"
                raise lost(session.chain.head, late, pieces) from error
            first_token_s = first_token_s or time.monotonic() - started
            for index, token in enumerate(choice.ids):
                ended = token in end_tokens
                text = "" if ended else stream.push(token)
                stopped = ended or stream.stopped
                is_last = stopped or len(pieces) + 1 == parameters.max_new_tokens
                text += stream.finish() if is_last else ""
                logprobs = choice.logprobs[index] if choice.logprobs else None
                pieces.append(Piece(token, text, session.chain, logprobs))
                yield pieces[-1]
                if is_last:
                    break
    yield Generation(
        text="".join(piece.text for piece in pieces),
        tokens=tuple(piece.token for piece in pieces),
        finish_reason="stop" if stopped else "length",
        num_prompt_tokens=num_prompt_tokens,
        chain=session.chain,
        waited_s=waited_s,
        first_token_s=first_token_s,
        total_s=time.monotonic() - started,
        logprobs=tuple(piece.logprobs for piece in pieces if piece.logprobs is not None),
        recoveries=tuple(session.recoveries),
        hop_times=session.hop_times,
    )


def lost(peer: str, reason: str, pieces: list[Piece]) -> RequestLostError:
    """The error of a generation that broke off, with what had come."""
    text = "".join(piece.text for piece in pieces)
    return RequestLostError(peer, reason, tokens=tuple(piece.token for piece in pieces), text=text)
