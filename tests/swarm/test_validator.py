"""What a node stores for others is sealed by its own peer, under the swarm's key, with the seal's own expiry."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgpack
import pytest

from chainserve.swarm.identity import Identity
from chainserve.swarm.records import Announcement, seal
from chainserve.swarm.validator import RecordValidator

KEY, SECRET, EXPIRY = b"key of the swarm", b"s" * 32, 1_800_000_000.0


@dataclass(frozen=True)
class Record:
    key: bytes
    subkey: bytes
    value: bytes
    expiration_time: float


@pytest.fixture
def record(announce: Callable[..., Announcement], identities: list[Identity]) -> Record:
    peer = identities[0]
    sealed = seal(announce(peer.peer_id), peer, SECRET, expires_at=EXPIRY)
    return Record(KEY, msgpack.packb(peer.peer_id), msgpack.packb(sealed), EXPIRY)


def test_a_sealed_record_passes_unchanged_even_when_expired(record: Record) -> None:
    validator = RecordValidator(KEY, SECRET)
    assert validator.validate(record)
    assert validator.sign_value(record) == validator.strip_value(record) == record.value
    assert validator.num_refused == 0


def test_records_that_do_not_fit_are_refused_and_counted(
    record: Record, announce: Callable[..., Announcement], identities: list[Identity]
) -> None:
    other = identities[1]
    foreign = seal(announce(other.peer_id), other, b"t" * 32, expires_at=EXPIRY)
    refused = [
        replace(record, key=b"another key"),
        replace(record, subkey=msgpack.packb(other.peer_id)),
        replace(record, subkey=msgpack.packb(None)),
        replace(record, subkey=b""),
        replace(record, expiration_time=EXPIRY + 1),
        replace(record, value=b""),
        replace(record, value=b"\xc1"),
        replace(record, value=msgpack.packb("text")),
        replace(record, value=record.value + b"\0"),
        replace(record, value=msgpack.packb(foreign), subkey=msgpack.packb(other.peer_id)),
    ]
    validator = RecordValidator(KEY, SECRET)
    assert [validator.validate(each) for each in refused] == [False] * len(refused)
    assert validator.num_refused == len(refused)


def test_a_peer_that_offers_bad_records_is_logged_once(record: Record, caplog: pytest.LogCaptureFixture) -> None:
    validator = RecordValidator(KEY, SECRET)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            validator.validate(replace(record, expiration_time=0.0))
    assert [entry.getMessage() for entry in caplog.records] == [
        f"refused a record of {record.subkey!r}: record expires at another time than its seal says"
    ]
