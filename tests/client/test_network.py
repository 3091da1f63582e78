"""Which chain a client takes, and what it says if there is none."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest

from chainserve.errors import NoChainError, PromptTooLongError
from chainserve.protocol.messages import Answer, Ask, Opened, Topic
from chainserve.swarm.records import Announcement, ServerState
from chainserve.types import PeerId, SessionId, Span
from chainserve_client.dispatch import choose_chain
from chainserve_client.network import Network


def server(name: str, start: int, end: int, *, cache: int = 100, free: int | None = None) -> Announcement:
    return Announcement(
        peer=PeerId(name),
        state=ServerState.ONLINE,
        model="m",
        model_digest="d",
        num_blocks=4,
        span=Span(start, end),
        dtype="float32",
        cache_tokens=cache,
        free_tokens=cache if free is None else free,
        addresses=(),
        version="0",
        started_at=0.0,
    )


def peers(servers: list[Announcement], num_tokens: int) -> list[PeerId]:
    return [hop.peer for hop in choose_chain(servers, num_blocks=4, num_tokens=num_tokens).hops]


def test_servers_with_room_now_are_taken_before_a_shorter_chain_without() -> None:
    servers = [server("full", 0, 4, free=5), server("a", 0, 2), server("b", 2, 4)]
    assert peers(servers, 5) == ["full"]
    assert peers(servers, 6) == ["a", "b"]


def test_if_none_has_room_now_one_that_can_have_it_is_taken() -> None:
    assert peers([server("small", 0, 4, cache=50, free=50), server("busy", 0, 4, free=0)], 80) == ["busy"]


def test_a_request_longer_than_any_cache_is_told_the_longest_there_is() -> None:
    servers = [server("a", 0, 2, cache=300), server("b", 2, 4, cache=70), server("c", 0, 4, cache=50)]
    with pytest.raises(PromptTooLongError, match="need 71 tokens of cache, the servers hold at most 70") as caught:
        choose_chain(servers, num_blocks=4, num_tokens=71)
    assert caught.value.limit == 70


def test_servers_that_wait_for_blocks_are_not_in_any_chain() -> None:
    waiting = replace(server("a", 0, 4), span=None, state=ServerState.JOINING)
    assert peers([waiting, server("b", 0, 4)], 5) == ["b"]


def test_missing_blocks_are_named_whatever_the_length() -> None:
    with pytest.raises(NoChainError, match="blocks 2:4"):
        choose_chain([server("a", 0, 2)], num_blocks=4, num_tokens=10**9)


async def test_what_belongs_to_no_session_is_no_sessions() -> None:
    network = Network(cast(Any, SimpleNamespace(refresh=AsyncMock())))
    network.connect_to(cast(Any, SimpleNamespace(send=AsyncMock())))
    for message in (Answer(Topic.PLAN, "digest", b"body"), Ask(Topic.PLAN, "digest"), Opened(SessionId(bytes(16)))):
        network.handle(PeerId("a"), message)
    network._watching.cancel()
