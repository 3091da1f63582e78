"""The token loop: embed, send through the chain, head, sample, until the end."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import torch

from chainserve.errors import RequestLostError, SessionLostError
from chainserve.models.ends import Ends
from chainserve.types import Chain
from chainserve_client.parameters import Parameters
from chainserve_client.sampling import Sampler
from chainserve_client.session import Recovery, Session
from chainserve_client.text import Decode, TextStream


@dataclass(frozen=True, slots=True)
class Piece:
    """One new token, the text that became certain with it (maybe none), and the chain that it came over."""

    token: int
    text: str
    chain: Chain


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
    first_token_s: float
    """From the request to its first token."""
    total_s: float
    recoveries: tuple[Recovery, ...] = ()
    """Servers that were lost on the way, and what it took to go on without them."""

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
    session: Session,
    ends: Ends,
    prompt: Sequence[int],
    parameters: Parameters,
    *,
    end_tokens: frozenset[int],
    decode: Decode,
    executor: Executor,
    started: float,
) -> AsyncGenerator[Piece | Generation, None]:
    """Continue `prompt` over an open session: pieces, and the `Generation` as the last item.

    `executor` runs what torch computes; `started` is the time.monotonic() of the request. RequestLostError, with what
    has come so far, if its servers are lost and no others take over, or if it takes too long.
    """
    loop = asyncio.get_running_loop()
    sampler = Sampler(parameters)
    stream = TextStream(decode, parameters.stop)
    tokens: list[int] = []
    texts: list[str] = []
    first_token_s = 0.0

    def choose(output: torch.Tensor) -> tuple[int, torch.Tensor]:
        token = sampler.next_token(ends.logits(output)[-1])
        return token, ends.embed(torch.tensor([token]))

    hidden = await loop.run_in_executor(executor, ends.embed, torch.tensor(prompt))
    while True:
        try:
            async with asyncio.timeout(max(0.0, started + parameters.timeout_s - time.monotonic())):
                [output] = await session.step(hidden, [len(hidden)], [1])
        except SessionLostError as error:
            raise RequestLostError(error.peer, error.reason, tokens=tuple(tokens), text="".join(texts)) from error
        except TimeoutError as error:
            late = f"the request did not end within {parameters.timeout_s:g} s"
            raise RequestLostError(session.chain.head, late, tokens=tuple(tokens), text="".join(texts)) from error
        token, hidden = await loop.run_in_executor(executor, choose, output)
        tokens.append(token)
        if len(tokens) == 1:
            first_token_s = time.monotonic() - started
        ended = token in end_tokens
        texts.append("" if ended else stream.push(token))
        stopped = ended or stream.stopped
        last = stopped or len(tokens) == parameters.max_new_tokens
        if last:
            texts[-1] += stream.finish()
        yield Piece(token, texts[-1], session.chain)
        if last:
            break
    yield Generation(
        text="".join(texts),
        tokens=tuple(tokens),
        finish_reason="stop" if stopped else "length",
        num_prompt_tokens=len(prompt),
        chain=session.chain,
        first_token_s=first_token_s,
        total_s=time.monotonic() - started,
        recoveries=tuple(session.recoveries),
    )
