"""Records come from other machines: only what a member has sealed, whole and in time, is believed."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainserve.errors import RecordError
from chainserve.swarm import records
from chainserve.swarm.identity import Identity
from chainserve.swarm.records import Announcement, ServerState, open_record, seal, unseal
from chainserve.types import PeerId, Span

IDENTITY = Identity.generate()
SECRET = b"s" * 32
NOW = 1_800_000_000.0
EXPIRY = NOW + 30

texts = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=64)


@st.composite
def announcements(draw: st.DrawFn) -> Announcement:
    num_blocks = draw(st.integers(1, 200))
    start = draw(st.integers(0, num_blocks - 1))
    cache_tokens = draw(st.integers(0, 10**9))
    return Announcement(
        peer=IDENTITY.peer_id,
        state=draw(st.sampled_from(ServerState)),
        model=draw(texts),
        model_digest=draw(texts),
        num_blocks=num_blocks,
        span=Span(start, draw(st.integers(start + 1, num_blocks))),
        dtype=draw(texts),
        cache_tokens=cache_tokens,
        free_tokens=draw(st.integers(0, cache_tokens)),
        addresses=tuple(draw(st.lists(texts, max_size=4))),
        version=draw(texts),
        started_at=draw(st.floats(0, 1e12)),
    )


SEALED = seal(
    Announcement(
        peer=IDENTITY.peer_id,
        state=ServerState.ONLINE,
        model="tiny",
        model_digest="00ff",
        num_blocks=4,
        span=Span(0, 4),
        dtype="float32",
        cache_tokens=10,
        free_tokens=5,
        addresses=("ws://127.0.0.1:1/link",),
        version="0.1.0",
        started_at=1.0,
    ),
    IDENTITY,
    SECRET,
    expires_at=EXPIRY,
)


@settings(deadline=None)
@given(announcements())
def test_an_announcement_says_the_same_after_its_way_through_a_seal(announcement: Announcement) -> None:
    data = seal(announcement, IDENTITY, SECRET, expires_at=EXPIRY)
    assert open_record(data, SECRET, now=NOW) == announcement
    assert unseal(data, SECRET).expires_at == EXPIRY


@settings(deadline=None)
@given(st.binary(max_size=600))
def test_bytes_of_chance_are_refused(data: bytes) -> None:
    with pytest.raises(RecordError):
        open_record(data, SECRET, now=NOW)


@settings(deadline=None, max_examples=300)
@given(st.integers(0, len(SEALED) - 1), st.integers(1, 255))
def test_a_record_with_a_changed_byte_is_refused(position: int, change: int) -> None:
    data = bytearray(SEALED)
    data[position] ^= change
    with pytest.raises(RecordError):
        open_record(bytes(data), SECRET, now=NOW)


def test_a_record_cut_off_or_with_more_behind_is_refused() -> None:
    for data in (*(SEALED[:length] for length in range(0, len(SEALED), 7)), SEALED + b"\0", SEALED * 20):
        with pytest.raises(RecordError):
            open_record(data, SECRET, now=NOW)


def test_the_record_of_another_swarm_is_refused() -> None:
    with pytest.raises(RecordError, match="of another swarm"):
        open_record(SEALED, b"t" * 32, now=NOW)


def test_a_record_counts_until_its_expiry() -> None:
    assert open_record(SEALED, SECRET, now=EXPIRY - 0.001)
    with pytest.raises(RecordError, match=r"expired 2\.0 s ago"):
        open_record(SEALED, SECRET, now=EXPIRY + 2)
    assert unseal(SEALED, SECRET).expires_at == EXPIRY  # the seal itself holds


def test_a_record_from_a_clock_far_ahead_is_refused() -> None:
    with pytest.raises(RecordError, match="expires in 7200 s, at most 3600"):
        open_record(SEALED, SECRET, now=EXPIRY - 7200)


def test_nobody_seals_for_another_peer(announce: Callable[..., Announcement], identities: list[Identity]) -> None:
    with pytest.raises(ValueError, match="cannot seal a record of"):
        seal(announce(identities[0].peer_id), identities[1], SECRET, expires_at=EXPIRY)


def test_the_peer_of_a_record_is_the_one_whose_key_signed_it(
    announce: Callable[..., Announcement], identities: list[Identity]
) -> None:
    thief = identities[0]
    body, _, _ = msgpack.unpackb(SEALED)
    resigned = msgpack.packb([body, thief.public_key, thief.sign(records._to_sign(body, SECRET))])
    assert open_record(resigned, SECRET, now=NOW).peer == thief.peer_id
    with pytest.raises(RecordError, match="not signed by its peer"):
        open_record(msgpack.packb([body, IDENTITY.public_key, thief.sign(b"")]), SECRET, now=NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": True},
        {"schema": "1"},
        {"state": "sleeping"},
        {"state": 1},
        {"model": ""},
        {"model": "two\nlines"},
        {"model": "x" * 513},
        {"model_digest": None},
        {"num_blocks": 0},
        {"num_blocks": True},
        {"num_blocks": 10**6},
        {"span": [0]},
        {"span": [0, True]},
        {"span": [2, 2]},
        {"span": [0, 5]},
        {"span": "0:4"},
        {"cache_tokens": -1, "free_tokens": -1},
        {"cache_tokens": 2**63, "free_tokens": 0},
        {"free_tokens": 11},
        {"free_tokens": 1.0},
        {"addresses": "ws://127.0.0.1"},
        {"addresses": [1]},
        {"addresses": ["a"] * 33},
        {"addresses": [""]},
        {"started_at": 1},
        {"started_at": math.inf},
        {"started_at": -1.0},
    ],
)
def test_a_member_who_seals_nonsense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RecordError):
        open_record(_sealed_fields(changes), SECRET, now=NOW)


def test_every_field_is_needed() -> None:
    fields = msgpack.unpackb(unseal(SEALED, SECRET).payload)
    for name in fields:
        with pytest.raises(RecordError, match=name):
            open_record(_seal_payload(msgpack.packb({**fields, name: None})), SECRET, now=NOW)


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\xff" * 40, msgpack.packb([1, 2]), msgpack.packb({1: 2})])
def test_a_payload_that_is_no_map_is_refused(payload: bytes) -> None:
    with pytest.raises(RecordError):
        open_record(_seal_payload(payload), SECRET, now=NOW)


@pytest.mark.parametrize("expires_at", [math.nan, math.inf, 1, "soon"])
def test_an_expiry_that_is_no_time_is_refused(expires_at: object) -> None:
    payload = unseal(SEALED, SECRET).payload
    with pytest.raises(RecordError):
        open_record(_seal_payload(payload, expires_at=expires_at), SECRET, now=NOW)


def test_fields_that_later_versions_add_are_ignored() -> None:
    assert open_record(_sealed_fields({"colour": "blue"}), SECRET, now=NOW) == open_record(SEALED, SECRET, now=NOW)


def test_a_newer_schema_is_refused_for_that_reason_though_its_seal_holds() -> None:
    data = _sealed_fields({"schema": 2, "span": "elsewhere"})
    with pytest.raises(RecordError, match="schema 2, this version reads 1"):
        open_record(data, SECRET, now=NOW)
    assert unseal(data, SECRET).peer == IDENTITY.peer_id


def test_an_announcement_that_cannot_be_is_not_made(announce: Callable[..., Announcement]) -> None:
    with pytest.raises(ValueError, match="blocks 20:31 of 30"):
        announce(IDENTITY.peer_id, span=Span(20, 31))
    with pytest.raises(ValueError, match="2 of 1 cache tokens free"):
        announce(IDENTITY.peer_id, cache_tokens=1, free_tokens=2)
    with pytest.raises(ValueError, match="peer"):
        announce(PeerId(""))


def test_a_record_that_would_be_refused_for_its_size_is_not_made(announce: Callable[..., Announcement]) -> None:
    huge = replace(announce(IDENTITY.peer_id), addresses=("x" * 512,) * 32)
    with pytest.raises(ValueError, match="at most 16384"):
        seal(huge, IDENTITY, SECRET, expires_at=EXPIRY)


def _sealed_fields(changes: dict[str, Any]) -> bytes:
    return _seal_payload(msgpack.packb(msgpack.unpackb(unseal(SEALED, SECRET).payload) | changes))


def _seal_payload(payload: bytes, *, expires_at: object = EXPIRY) -> bytes:
    """What a member could sign who does not use our code."""
    body = msgpack.packb([expires_at, payload])
    sealed: bytes = msgpack.packb([body, IDENTITY.public_key, IDENTITY.sign(records._to_sign(body, SECRET))])
    return sealed
