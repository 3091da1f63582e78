"""From a request to its answer: find the model, generate all choices at once, write what comes.

The swarm is read as fast as it gives, so that servers are free for others when an answer is complete, however slowly
it is read: what is not written yet waits here, no more than the answer is long, and no more than MAX_WAITING pieces.
A reader who takes nothing for STALL_S is cut off. When the connection breaks aiohttp cancels the handler, which ends
the sessions.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager

from aiohttp import web

from chainserve.errors import ChainserveError
from chainserve_client.client import AsyncClient
from chainserve_client.gateway.answers import DONE, Answer, event, hop_times, route
from chainserve_client.gateway.asked import Asked
from chainserve_client.gateway.errors import api_error, context_exceeded
from chainserve_client.gateway.form import Form
from chainserve_client.generation import Generation, Piece, Stream
from chainserve_client.parameters import GenerationOptions

MAX_WAITING = 4096
STALL_S = 60.0
ROUTE = "x-chainserve-route"

Item = tuple[int, Piece | Generation | ChainserveError]
"""Of the choice with this index: more of it, its end, or what ended it."""


async def streams_of(client: AsyncClient, form: Form, asked: Asked, *, max_wait_s: float | None) -> list[Stream]:
    """A stream for every choice, none begun yet; RequestError if the prompt or a parameter cannot be."""
    streams = []
    for prompt in asked.prompts:
        ids = await asyncio.to_thread(form.encode, client, prompt)
        grammar = form.grammar(client, prompt)
        for number in range(asked.num_choices):
            options = GenerationOptions(**asked.options)
            options["max_new_tokens"] = _max_tokens(asked, form, len(ids), client.text.max_position)
            options["seed"] = None if asked.seed is None else (asked.seed + number) % 2**63
            options["max_wait_s"] = max_wait_s
            options["grammar"] = grammar
            streams.append(client.stream(ids, **options))
    return streams


def _max_tokens(asked: Asked, form: Form, num_prompt_tokens: int, limit: int | None) -> int:
    """How long the answer may be: as asked, else the usual length as far as the model's context goes."""
    max_tokens = asked.max_tokens or form.default_max_tokens
    if limit is None:
        return max_tokens
    if asked.max_tokens is None:
        max_tokens = max(1, min(max_tokens, limit - num_prompt_tokens))
    if num_prompt_tokens + max_tokens > limit:
        raise context_exceeded(num_prompt_tokens, max_tokens, limit=limit)
    return max_tokens


async def answer_whole(streams: Sequence[Stream], answer: Answer) -> web.Response:
    """All choices, when they are complete."""
    with first_error():
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_result(stream)) for stream in streams]
    generations = [task.result() for task in tasks]
    slowest = max(generations, key=lambda generation: generation.total_s)
    headers = {
        ROUTE: route(slowest.chain),
        "x-chainserve-hops": hop_times(slowest),
        "x-chainserve-queue-ms": f"{1000 * slowest.waited_s:.0f}",
        "x-chainserve-first-token-ms": f"{1000 * slowest.first_token_s:.0f}",
        "x-chainserve-tokens-per-s": f"{slowest.tokens_per_second:.1f}",
    }
    return web.json_response(answer.whole(generations), headers=headers)


async def answer_stream(request: web.Request, streams: Sequence[Stream], answer: Answer) -> web.StreamResponse:
    """All choices as they come. What goes wrong before the first piece is raised, after it an event of the stream."""
    items: asyncio.Queue[Item] = asyncio.Queue(MAX_WAITING)
    with first_error():
        async with asyncio.TaskGroup() as group:
            pumps = [group.create_task(_pump(index, stream, items)) for index, stream in enumerate(streams)]
            try:
                first = await items.get()
                if isinstance(first[1], ChainserveError):
                    raise first[1]
                headers = {
                    "Content-Type": "text/event-stream",
                    "Cache-Control": "no-cache",
                    ROUTE: route(first[1].chain),
                }
                response = web.StreamResponse(headers=headers)
                await response.prepare(request)
                await _write(request, response, first, items, answer, num_choices=len(streams))
            finally:
                for pump in pumps:
                    pump.cancel()
    return response


async def _write(
    request: web.Request,
    response: web.StreamResponse,
    item: Item,
    items: asyncio.Queue[Item],
    answer: Answer,
    *,
    num_choices: int,
) -> None:
    """Write events, from this item on, until all choices have ended."""
    begun: set[int] = set()
    ended: dict[int, Generation] = {}
    while True:
        index, what = item
        data = b"" if index in begun else answer.first(index)
        begun.add(index)
        if isinstance(what, Piece):
            data += answer.piece(index, what)
        elif isinstance(what, Generation):
            data += answer.last(index, what)
            ended[index] = what
        else:
            await _send(request, response, event(api_error(what).body) + DONE)
            return
        if len(ended) == num_choices:
            await _send(request, response, data + answer.usage([ended[index] for index in range(num_choices)]) + DONE)
            return
        if data:
            await _send(request, response, data)
        item = await items.get()


async def _send(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
    """Write, at the reader's pace; ConnectionResetError if it takes nothing for too long."""
    try:
        async with asyncio.timeout(STALL_S):
            await response.write(data)
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError(f"the reader took nothing for {STALL_S:.0f} s") from None


async def _pump(index: int, stream: Stream, items: asyncio.Queue[Item]) -> None:
    """Put what a stream gives where it can wait."""
    try:
        async with aclosing(stream):
            async for piece in stream:
                await items.put((index, piece))
        await items.put((index, stream.result))
    except ChainserveError as error:
        await items.put((index, error))


async def _result(stream: Stream) -> Generation:
    async with aclosing(stream):
        async for _ in stream:
            pass
    return stream.result


@contextmanager
def first_error() -> Iterator[None]:
    """One error instead of a group: the first one ended the others."""
    try:
        yield
    except ExceptionGroup as group:
        raise group.exceptions[0] from group
