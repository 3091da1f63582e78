"""What is asked, as a stream of what comes back: here a swarm by its token; `endpoint` has servers of OpenAI's API."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, fields, replace

from chainserve_client.bench.load import Due
from chainserve_client.bench.prompts import token_prompt
from chainserve_client.bench.timing import Change, Route, route_of
from chainserve_client.client import AsyncClient
from chainserve_client.parameters import GenerationOptions
from chainserve_client.token_session import HopTime


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """Something of an answer has come, or is told of it; what is not told is empty."""

    num_tokens: int = 0
    """That came now."""
    waited_s: float | None = None
    """From when it was sent until it had its place."""
    chain: Route = ()
    hops: tuple[HopTime, ...] = ()
    changes: tuple[Change, ...] = ()
    num_input_tokens: int | None = None
    num_output_tokens: int | None = None
    """In all, where the pieces that come may not be single tokens."""

    def then(self, later: "Arrival") -> "Arrival":
        """What is known when something more has been told."""
        told = {each.name: getattr(later, each.name) for each in fields(later)}
        return replace(self, **{name: value for name, value in told.items() if value not in (None, ())})


Target = Callable[[Due], AsyncIterator[Arrival]]
"""Sends a request, and gives what comes."""


def swarm(
    client: AsyncClient, *, seed: int, timeout_s: float, num_shared: int = 0, max_drafts: int | None = None
) -> Target:
    """A swarm: prompts of exactly as many tokens as are due, and answers that go on past the model's end token."""
    usual = GenerationOptions(ignore_end=True, timeout_s=timeout_s)
    if max_drafts is not None:
        usual["max_drafts"] = max_drafts

    vocabulary = [token for token in range(client.text.vocab_size) if token not in client.text.end_tokens]

    async def ask(due: Due) -> AsyncIterator[Arrival]:
        prompt = token_prompt(due.index, due.num_input_tokens, seed=seed, vocabulary=vocabulary, num_shared=num_shared)
        stream = client.stream(prompt, **GenerationOptions(**usual, max_new_tokens=due.num_output_tokens))
        async with aclosing(stream):
            async for piece in stream:
                yield Arrival(num_tokens=1, chain=route_of(piece.chain))
        result = stream.result
        changes = tuple(Change(each.peer, each.reason, each.stall_s) for each in result.recoveries)
        yield Arrival(waited_s=result.waited_s, chain=route_of(result.chain), hops=result.hop_times, changes=changes)

    return ask
