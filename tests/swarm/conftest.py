"""Identities are slow to make, so tests share a few; announcements have many fields, so tests name only some."""

from collections.abc import Callable
from typing import Any

import pytest

from chainserve.swarm.identity import Identity
from chainserve.swarm.records import Announcement, ServerState
from chainserve.types import PeerId, Span


@pytest.fixture(scope="session")
def identities() -> list[Identity]:
    return [Identity.generate() for _ in range(4)]


@pytest.fixture
def announce() -> Callable[..., Announcement]:
    def build(peer: PeerId, **changes: Any) -> Announcement:
        fields: dict[str, Any] = {
            "state": ServerState.ONLINE,
            "model": "tiny",
            "model_digest": "0123456789abcdef",
            "num_blocks": 30,
            "span": Span(0, 10),
            "dtype": "float32",
            "cache_tokens": 4096,
            "free_tokens": 1024,
            "addresses": ("ws://127.0.0.1:8300/link",),
            "version": "0.1.0",
            "started_at": 1_700_000_000.0,
        }
        return Announcement(peer=peer, **fields | changes)

    return build
