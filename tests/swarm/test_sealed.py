"""Records on their way to those who read no DHT: what is passed on arrives, within limits, and nothing else does."""

import contextlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tampering import values

from chainserve.errors import RecordError
from chainserve.swarm.records import MAX_RECORD_BYTES
from chainserve.swarm.sealed import MAX_RECORDS, SealedView

records = st.lists(st.binary(max_size=50), max_size=5).map(tuple)


@given(records, records, st.floats(0, 1e12))
def test_what_is_passed_on_arrives_with_the_time(
    servers: tuple[bytes, ...], plans: tuple[bytes, ...], now: float
) -> None:
    sealed = SealedView(servers, plans)
    assert SealedView.from_bytes(sealed.to_bytes(now=now)) == (sealed, now)


@given(
    st.binary(max_size=200) | values.map(msgpack.packb) | st.lists(values, min_size=3, max_size=3).map(msgpack.packb)
)
def test_anything_else_raises_nothing_but_record_errors(data: bytes) -> None:
    with contextlib.suppress(RecordError):
        SealedView.from_bytes(data)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [1.0, [], [], []],
        [1, [], []],
        [float("nan"), [], []],
        [1.0, ["text"], []],
        [1.0, [b"record", None], []],
        [1.0, [], {}],
        [1.0, [[b"record"]], []],
        [1.0, b"", []],
        [1.0, [bytes(MAX_RECORD_BYTES + 1)], []],
        [1.0, [b""] * (MAX_RECORDS + 1), []],
    ],
)
def test_what_is_no_view_is_refused(fields: object) -> None:
    with pytest.raises(RecordError):
        SealedView.from_bytes(msgpack.packb(fields))


def test_more_records_than_are_taken_are_not_passed_on() -> None:
    sealed, _ = SealedView.from_bytes(SealedView((b"",) * (MAX_RECORDS + 1)).to_bytes(now=1.0))
    assert len(sealed.servers) == MAX_RECORDS


def test_nothing_deep_or_cut_off_is_read() -> None:
    whole = SealedView((b"record",)).to_bytes(now=1.0)
    for length in range(len(whole)):
        with pytest.raises(RecordError):
            SealedView.from_bytes(whole[:length])
    with pytest.raises(RecordError):
        SealedView.from_bytes(b"\x91" * 10_000)
    with pytest.raises(RecordError):
        SealedView.from_bytes(whole + b"\0")
