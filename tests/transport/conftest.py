"""Each test of links runs under asyncio's loop and under uvloop."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop
from pairs import MakePair, MakePeers, Pair, Peer, transports

from chainserve.swarm.identity import Identity
from chainserve.transport.handshake import Credentials
from chainserve.types import PeerId


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, Any]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def credentials() -> list[Credentials]:
    """Of three peers of one swarm."""
    return [Credentials(Identity.generate(), b"s" * 32) for _ in range(3)]


@pytest.fixture
async def make_pair(credentials: list[Credentials], tmp_path: Path) -> AsyncIterator[MakePair]:
    """Make a pair of the kind asked for; options go to the transports."""
    async with AsyncExitStack() as stack:

        async def make(kind: str, *, far_secret: bytes = b"s" * 32, **options: Any) -> Pair:
            near_of, far_of = credentials[0], replace(credentials[1], secret=far_secret)
            near, far = await stack.enter_async_context(transports(kind, near_of, far_of, tmp_path, **options))
            pair = Pair(near, far, near_of.identity.peer_id, far_of.identity.peer_id)
            stack.callback(pair.done.set)
            await far.listen(pair.accept)
            return pair

        yield make


@pytest.fixture
async def make_peers(credentials: list[Credentials], tmp_path: Path) -> AsyncIterator[MakePeers]:
    async with AsyncExitStack() as stack:

        async def make(kind: str, **options: Any) -> tuple[Peer, Peer]:
            near, far = await stack.enter_async_context(transports(kind, credentials[0], credentials[1], tmp_path))
            directory: dict[PeerId, Peer] = {}
            a = Peer(credentials[0].identity.peer_id, [near], directory, **options)
            b = Peer(credentials[1].identity.peer_id, [far], directory, **options)
            for peer in (a, b):
                await peer.links.listen()
                stack.push_async_callback(peer.links.close)
            return a, b

        yield make


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack
