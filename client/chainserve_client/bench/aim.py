"""Whom the requests are for: a swarm, or a server of OpenAI's API; as a value that client processes can be given."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chainserve_client.bench.targets import Target

DISPATCHES = ("jffc", "petals", "bprr", "sed", "jsq", "random")


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """Whom to ask, by a join token or a URL, and how."""

    token: str | None = field(default=None, repr=False)
    url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    model: str | None = None
    dispatch: str = DISPATCHES[0]
    is_full_length: bool = False
    timeout_s: float = 600.0
    seed: int = 0
    num_shared: int = 0
    max_drafts: int | None = None


@asynccontextmanager
async def target_of(aim: Aim) -> "AsyncIterator[Target]":
    """Connect, and give what requests are sent with."""
    if aim.url is None:
        async with _swarm(aim) as target:
            yield target
    else:
        async with _endpoint(aim, aim.url) as target:
            yield target


@asynccontextmanager
async def _swarm(aim: Aim) -> "AsyncIterator[Target]":
    from chainserve_client.bench.targets import swarm
    from chainserve_client.client import AsyncClient

    assert aim.token is not None
    more: dict[str, Any] = {} if aim.dispatch == DISPATCHES[0] else {"dispatch": aim.dispatch}
    async with await AsyncClient.connect(aim.token, model=aim.model, **more) as client:
        yield swarm(
            client,
            seed=aim.seed,
            timeout_s=aim.timeout_s,
            num_shared=aim.num_shared,
            max_drafts=aim.max_drafts,
        )


@asynccontextmanager
async def _endpoint(aim: Aim, url: str) -> "AsyncIterator[Target]":
    import aiohttp

    from chainserve_client.bench.endpoint import Endpoint

    endpoint = Endpoint(
        url=url,
        model=aim.model or "",
        key=aim.api_key,
        is_full_length=aim.is_full_length,
        seed=aim.seed,
        num_shared=aim.num_shared,
        timeout_s=aim.timeout_s,
    )
    timeout = aiohttp.ClientTimeout(total=None)  # each request has its own
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as http:
        await endpoint.look(http)
        yield lambda due: endpoint.ask(http, due)
