"""What a node stores for others is sealed by its own peer, under the swarm's key, with the seal's own expiry."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgpack
import pytest

from chainserve.errors import RecordError
from chainserve.swarm.identity import Identity
from chainserve.swarm.records import Announcement, seal
from chainserve.swarm.validator import MAX_NAME_CHARS, MAX_NAMES, MAX_REASON_CHARS, RecordValidator
from chainserve.types import PeerId

KEY, PLANS_KEY = b"key of the servers", b"key of the plans"
SECRET, EXPIRY = b"s" * 32, 1_800_000_000.0


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
    validator = RecordValidator([KEY, PLANS_KEY], SECRET)
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
    validator = RecordValidator([KEY, PLANS_KEY], SECRET)
    assert [validator.validate(each) for each in refused] == [False] * len(refused)
    assert validator.num_refused == len(refused)


def test_a_peer_that_offers_bad_records_is_logged_once(record: Record, caplog: pytest.LogCaptureFixture) -> None:
    validator = RecordValidator([KEY, PLANS_KEY], SECRET)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            validator.validate(replace(record, expiration_time=0.0))
    assert [entry.getMessage() for entry in caplog.records] == [
        f"refused a record of {msgpack.unpackb(record.subkey)}: record expires at another time than its seal says"
    ]


def test_records_pass_under_each_of_the_keys_and_under_no_other(record: Record) -> None:
    validator = RecordValidator([KEY, PLANS_KEY], SECRET)
    assert [validator.validate(replace(record, key=key)) for key in (KEY, PLANS_KEY, b"", KEY + PLANS_KEY)] == [
        True,
        True,
        False,
        False,
    ]
    assert validator.num_refused == 2
    assert not RecordValidator([], SECRET).validate(record)


def test_who_is_refused_is_named_with_the_last_reason(record: Record) -> None:
    validator = RecordValidator([KEY], SECRET)
    peer = msgpack.unpackb(record.subkey)
    assert validator.refused == {}
    validator.validate(replace(record, expiration_time=0.0))
    assert validator.refused == {peer: "record expires at another time than its seal says"}
    validator.validate(replace(record, value=msgpack.packb("text")))
    assert validator.refused == {peer: "record is not sealed"}
    validator.validate(replace(record, subkey=msgpack.packb("another")))
    assert validator.refused["another"] == f"record is sealed by {peer}"
    validator.validate(record)  # a good one in between excuses nothing: another peer may have brought it
    assert set(validator.refused) == {peer, "another"}


@pytest.mark.parametrize(
    ("subkey", "name"),
    [
        (msgpack.packb("x" * 1000), "x" * MAX_NAME_CHARS),
        (msgpack.packb("two\nlines"), repr(msgpack.packb("two\nlines"))),
        (msgpack.packb(7), repr(b"\x07")),
        (b"", "b''"),
        (b"\xc1", repr(b"\xc1")),
        (b"\x91" * 1000 + b"\xc0", repr(b"\x91" * 1000)[:MAX_NAME_CHARS]),  # lists in lists in lists
        (b"\xff" * 1000, repr(b"\xff" * 1000)[:MAX_NAME_CHARS]),
    ],
)
def test_names_that_strangers_make_up_are_short_and_printable(record: Record, subkey: bytes, name: str) -> None:
    validator = RecordValidator([KEY], SECRET)
    assert not validator.validate(replace(record, subkey=subkey))
    assert list(validator.refused) == [name]
    assert len(name) <= MAX_NAME_CHARS
    assert name.isprintable()


def test_only_so_many_are_named_and_with_so_many_words(record: Record, caplog: pytest.LogCaptureFixture) -> None:
    validator = RecordValidator([KEY], SECRET)
    for number in range(MAX_NAMES + 50):
        validator.validate(replace(record, subkey=msgpack.packb(f"p{number}")))
    assert validator.num_refused == MAX_NAMES + 50
    assert len(validator.refused) == len(caplog.records) == MAX_NAMES
    validator.refuse(PeerId("p0"), RecordError("why " * 1000))
    assert validator.refused[PeerId("p0")] == ("why " * 1000)[:MAX_REASON_CHARS]
    validator.refuse(PeerId("one more"), RecordError("why"))
    assert "one more" not in validator.refused
