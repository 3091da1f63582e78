"""Records come from other machines: only what a member has sealed, whole and in time, is believed."""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from drawn import announcements
from hypothesis import given, settings
from hypothesis import strategies as st
from tampering import Path, assert_typed, paths, replaced, values

from chainserve.errors import RecordError
from chainserve.planning.profile import BlockProfile, StepTimes
from chainserve.swarm import records
from chainserve.swarm.identity import Identity
from chainserve.swarm.offers import Demand, Offer, Reach, StepCheck
from chainserve.swarm.records import SCHEMA, Announcement, ServerState, open_record, seal, unseal
from chainserve.swarm.reports import ChainUse, Report, fit_name
from chainserve.types import PeerId, Span

IDENTITY = Identity.generate()
SECRET = b"s" * 32
NOW = 1_800_000_000.0
EXPIRY = NOW + 30

TIMES = StepTimes(
    forward_s=0.001, prefill=((8, 0.01), (512, 0.1)), decode=((1, 0.002), (16, 0.01)), head=((1, 0.003), (2, 0.004))
)
PROFILE = BlockProfile(
    times=TIMES,
    block_bytes=1000,
    embedding_bytes=300,
    head_bytes=310,
    is_tied=True,
    token_bytes=16,
    activation_bytes=200,
)
OFFER = Offer(
    memory_bytes=10**9,
    profile=PROFILE,
    prefill=StepCheck(predicted_s=0.1, observed_s=0.12),
    decode=StepCheck(predicted_s=0.01, observed_s=0.012),
    reach={PeerId("near"): Reach(round_trip_s=0.01, bytes_per_s=1e8), PeerId("far"): Reach(round_trip_s=0.2)},
    demand=Demand(num_requests=7, window_s=60.0, input_tokens=100.0, output_tokens=20.0),
)
REPORT = Report(
    device="NVIDIA GeForce RTX 4090",
    name="alice",
    tokens_per_s=12.5,
    loaded_share=0.4,
    chains=(ChainUse(chain=0, num_held=2, used_share=0.5, num_waiting=1, wait_s=3.0, service_s=None),),
)
ANNOUNCED = Announcement(
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
    weight_bytes=4000,
    epoch=3,
    offer=OFFER,
    report=REPORT,
)
SEALED = seal(ANNOUNCED, IDENTITY, SECRET, expires_at=EXPIRY)
FIELDS = msgpack.unpackb(unseal(SEALED, SECRET).payload)


@settings(deadline=None)
@given(announcements(IDENTITY.peer_id))
def test_an_announcement_says_the_same_after_its_way_through_a_seal(announcement: Announcement) -> None:
    data = seal(announcement, IDENTITY, SECRET, expires_at=EXPIRY)
    opened = open_record(data, SECRET, now=NOW)
    assert opened == announcement
    assert_typed(opened, Announcement)
    assert unseal(data, SECRET).expires_at == EXPIRY


@settings(deadline=None, max_examples=500)
@given(st.sampled_from(list(paths(FIELDS))), values)
def test_with_any_other_value_in_it_a_record_is_refused_or_of_the_right_types(path: Path, value: object) -> None:
    data = _seal_payload(msgpack.packb(replaced(FIELDS, path, value)))
    with suppress(RecordError):
        opened = open_record(data, SECRET, now=NOW)
        assert_typed(opened, Announcement)
        assert open_record(seal(opened, IDENTITY, SECRET, expires_at=EXPIRY), SECRET, now=NOW) == opened


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_a_member_that_signs_damaged_bytes_is_refused_or_of_the_right_types(data: st.DataObject) -> None:
    payload = bytearray(unseal(SEALED, SECRET).payload)
    for position in data.draw(st.lists(st.integers(0, len(payload) - 1), min_size=1, max_size=3)):
        payload[position] = data.draw(st.integers(0, 255))
    with suppress(RecordError):
        assert_typed(open_record(_seal_payload(bytes(payload)), SECRET, now=NOW), Announcement)


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
        {"started_at": math.nan},
        {"span": None},
        {"span": None, "state": "loading"},
        {"span": None, "state": "draining"},
        {"span": None, "state": "joining", "pinned": True},
        {"span": [4, 8]},
        {"span": [-1, 2]},
        {"pinned": 1},
        {"pinned": None},
        {"weight_bytes": -1},
        {"weight_bytes": 2**50},
        {"weight_bytes": True},
        {"weight_bytes": 1.0},
        {"epoch": -1},
        {"epoch": 2**53 + 1},
        {"epoch": True},
        {"epoch": 1.0},
    ],
)
def test_a_member_who_seals_nonsense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RecordError):
        open_record(_sealed_fields(changes), SECRET, now=NOW)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"memory_bytes": 2**50}, "memory of 1125899906842624 bytes"),  # a petabyte
        ({"memory_bytes": 0}, "memory of 0 bytes"),
        ({"memory_bytes": True}, "bool where a whole number belongs"),
        ({"memory_bytes": 1e9}, "float where a whole number belongs"),
        ({"prefill": 0}, "not an offer"),
        ({"prefill": [0.1]}, "not an offer"),
        ({"prefill": [0.1, math.nan]}, "observed_s is nan"),
        ({"decode": [0.0, 0.1]}, "predicted_s is 0"),
        ({"decode": [5e-324, 0.1]}, "predicted_s is 5e-324"),
        ({"decode": [0.1, -0.1]}, "observed_s is -0.1"),
        ({"decode": [True, 0.1]}, "bool where a number belongs"),
        ({"reach": None}, "not an offer"),
        ({"reach": {f"p{number}": [0.1, None] for number in range(33)}}, "the way to 33 peers, at most 32"),
        ({"reach": {"": [0.1, None]}}, "peer in reach '' is not"),
        ({"reach": {"two\nlines": [0.1, None]}}, "peer in reach"),
        ({"reach": {b"bytes": [0.1, None]}}, "bytes where text belongs"),
        ({"reach": {"p": [-0.1, None]}}, "round_trip_s is -0.1"),
        ({"reach": {"p": [math.inf, None]}}, "round_trip_s is inf"),
        ({"reach": {"p": [None, None]}}, "NoneType where a number belongs"),
        ({"reach": {"p": [0.1, 0.0]}}, "bytes_per_s is 0"),
        ({"reach": {"p": [0.1, "fast"]}}, "str where a number belongs"),
        ({"demand": False}, "not an offer"),
        ({"demand": [1, 0.0, 1.0, 1.0]}, "window_s is 0"),
        ({"demand": [1.5, 60.0, 1.0, 1.0]}, "float where a whole number belongs"),
        ({"demand": [-1, 60.0, 1.0, 1.0]}, "num_requests is -1"),
        ({"demand": [1, 60.0, math.inf, 1.0]}, "input_tokens is inf"),
        ({"demand": [1, 60.0, 1.0, math.nan]}, "output_tokens is nan"),
    ],
)
def test_an_offer_of_nonsense_is_refused(change: dict[str, Any], fact: str) -> None:
    with pytest.raises(RecordError, match=fact):
        open_record(_sealed_fields({"offer": FIELDS["offer"] | change}), SECRET, now=NOW)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"block_bytes": 2**50}, "block_bytes is 1125899906842624"),
        ({"token_bytes": 0}, "token_bytes is 0"),
        ({"activation_bytes": -1}, "activation_bytes is -1"),
        ({"activation_bytes": 2**46 + 1}, "activation_bytes is"),
        ({"embedding_bytes": 1.5}, "float where a whole number belongs"),
        ({"is_tied": 1}, "int where true or false belongs"),
        ({"is_tied": None}, "NoneType where true or false belongs"),
    ],
)
def test_a_profile_of_nonsense_is_refused(change: dict[str, Any], fact: str) -> None:
    profile = FIELDS["offer"]["profile"] | change
    with pytest.raises(RecordError, match=fact):
        open_record(_sealed_fields({"offer": FIELDS["offer"] | {"profile": profile}}), SECRET, now=NOW)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"forward_s": -0.1}, "forward_s is -0.1"),
        ({"forward_s": math.nan}, "forward_s is nan"),
        ({"forward_s": 3601.0}, "forward_s is 3601"),
        ({"forward_s": False}, "bool where a number belongs"),
        ({"prefill": []}, "at least two"),
        ({"prefill": [[8, 0.1], [8, 0.1]]}, "rising"),
        ({"prefill": [[8, 0.1], [10**10, 0.1]]}, "size of a step is 10000000000"),
        ({"prefill": [[8, math.inf], [9, 0.1]]}, "prefill at size 8 is inf"),
        ({"decode": [[1, 1e-300], [2, 0.1]]}, "seconds of a step is 1e-300"),
        ({"decode": [[1, 0.1], [2, 5000.0]]}, "seconds of a step is 5000"),
        ({"decode": [[True, 0.1], [2, 0.1]]}, "bool where a whole number belongs"),
        ({"decode": [[number, 0.1] for number in range(1, 66)]}, "a profile of 65 sizes, at most 64"),
    ],
)
def test_times_of_nonsense_are_refused(change: dict[str, Any], fact: str) -> None:
    profile = FIELDS["offer"]["profile"]
    offer = FIELDS["offer"] | {"profile": profile | {"times": profile["times"] | change}}
    with pytest.raises(RecordError, match=fact):
        open_record(_sealed_fields({"offer": offer}), SECRET, now=NOW)


USE = [0, 2, 0.5, 1, 3.0, None]


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"device": "\x1b[2J"}, "not 1 to 64 printable"),
        ({"device": 7}, "int where text belongs"),
        ({"name": ""}, "not 1 to 64 printable"),
        ({"name": "a" * 65}, "not 1 to 64 printable"),
        ({"tokens_per_s": -1.0}, "-1.0 tokens per second"),
        ({"tokens_per_s": float("nan")}, "nan tokens per second"),
        ({"tokens_per_s": True}, "bool where a number belongs"),
        ({"loaded_share": 1.5}, "1.5 of the weights"),
        ({"chains": [USE] * 49}, "49 chains, at most 48"),
        ({"chains": [USE[:5]]}, "not a report"),
        ({"chains": [[-1, *USE[1:]]]}, "chain is -1"),
        ({"chains": [[*USE[:2], 1.1, *USE[3:]]]}, "1.1 of the room"),
        ({"chains": [[*USE[:4], float("inf"), None]]}, "inf s"),
        ({"chains": [[*USE[:5], -0.5]]}, "-0.5 s"),
        ({"chains": 3}, "not a report"),
    ],
)
def test_reports_of_nonsense_are_refused(change: dict[str, Any], fact: str) -> None:
    with pytest.raises(RecordError, match=fact):
        open_record(_sealed_fields({"report": FIELDS["report"] | change}), SECRET, now=NOW)


@pytest.mark.parametrize(("device", "told"), [("RTX\x00 4090 ", "RTX 4090"), ("x" * 90, "x" * 64), ("\n", "unknown")])
def test_a_device_is_told_as_far_as_it_can_be(device: str, told: str) -> None:
    assert Report(device=fit_name(device)).device == told


def test_every_field_is_needed_but_for_the_offer_and_the_report() -> None:
    for name in FIELDS.keys() - {"span", "quant", "offer", "report"}:
        with pytest.raises(RecordError, match=name):
            open_record(_sealed_fields({name: None}), SECRET, now=NOW)
    for name in FIELDS.keys() - {"offer", "report"}:
        without = {key: value for key, value in FIELDS.items() if key != name}
        with pytest.raises(RecordError, match=name):
            open_record(_seal_payload(msgpack.packb(without)), SECRET, now=NOW)
    assert open_record(_sealed_fields({"offer": None}), SECRET, now=NOW).offer is None
    earlier = {key: value for key, value in FIELDS.items() if key != "report"}
    assert open_record(_seal_payload(msgpack.packb(earlier)), SECRET, now=NOW).report is None
    for name in FIELDS["report"]:
        report = {key: value for key, value in FIELDS["report"].items() if key != name}
        with pytest.raises(RecordError, match=name):
            open_record(_sealed_fields({"report": report}), SECRET, now=NOW)
    for name in FIELDS["offer"]:
        offer = {key: value for key, value in FIELDS["offer"].items() if key != name}
        with pytest.raises(RecordError, match=name):
            open_record(_sealed_fields({"offer": offer}), SECRET, now=NOW)


@pytest.mark.parametrize("state", [ServerState.JOINING, ServerState.OFFLINE])
def test_only_who_joins_or_has_left_is_without_blocks(state: ServerState) -> None:
    assert open_record(_sealed_fields({"span": None, "state": state}), SECRET, now=NOW).span is None


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
    data = _sealed_fields({"schema": SCHEMA + 1, "span": "elsewhere"})
    with pytest.raises(RecordError, match=f"schema {SCHEMA + 1}, this version reads {SCHEMA}"):
        open_record(data, SECRET, now=NOW)
    assert unseal(data, SECRET).peer == IDENTITY.peer_id


def test_an_announcement_that_cannot_be_is_not_made(announce: Callable[..., Announcement]) -> None:
    with pytest.raises(ValueError, match="blocks 20:31 of 30"):
        announce(IDENTITY.peer_id, span=Span(20, 31))
    with pytest.raises(ValueError, match="2 of 1 cache tokens free"):
        announce(IDENTITY.peer_id, cache_tokens=1, free_tokens=2)
    with pytest.raises(ValueError, match="peer"):
        announce(PeerId(""))
    with pytest.raises(ValueError, match="online without blocks"):
        announce(IDENTITY.peer_id, span=None)


def test_a_record_that_would_be_refused_for_its_size_is_not_made(announce: Callable[..., Announcement]) -> None:
    huge = replace(announce(IDENTITY.peer_id), addresses=("x" * 512,) * 32)
    with pytest.raises(ValueError, match="at most 16384"):
        seal(huge, IDENTITY, SECRET, expires_at=EXPIRY)


def _sealed_fields(changes: dict[str, Any]) -> bytes:
    return _seal_payload(msgpack.packb(FIELDS | changes))


def _seal_payload(payload: bytes, *, expires_at: object = EXPIRY) -> bytes:
    """What a member could sign who does not use our code."""
    body = msgpack.packb([expires_at, payload])
    sealed: bytes = msgpack.packb([body, IDENTITY.public_key, IDENTITY.sign(records._to_sign(body, SECRET))])
    return sealed
