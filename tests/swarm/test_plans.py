"""A plan says the same wherever its bytes have been, and bytes that say anything else are refused."""

import math
from contextlib import suppress
from dataclasses import replace
from itertools import combinations, permutations
from types import MappingProxyType
from typing import Any

import msgpack
import pytest
from drawn import swarm_plans
from hypothesis import given, settings
from hypothesis import strategies as st
from tampering import assert_typed, paths, replaced, values

from chainserve.errors import NoPlanError, RecordError
from chainserve.planning.times import BlockTimes, ServerTimes
from chainserve.planning.values import ModelSpec, Placement
from chainserve.swarm.identity import Identity
from chainserve.swarm.plan_codec import MAX_PLAN_BYTES
from chainserve.swarm.plans import (
    MAX_INLINE_BYTES,
    PlanInputs,
    PlannedServer,
    PlanRecord,
    SwarmPlan,
    Way,
    digest_of,
    open_plan,
    record_of,
    seal_plan,
)
from chainserve.swarm.records import MAX_EPOCH, MAX_LEASE_S, MAX_RECORD_BYTES, SCHEMA, open_record, seal_payload
from chainserve.types import PeerId, Span

IDENTITY = Identity.generate()
ME = IDENTITY.peer_id
SECRET = b"s" * 32
NOW = 1_800_000_000.0
EXPIRY = NOW + 120

A, B, C = (PeerId(name) for name in "abc")
plans = swarm_plans(planner=ME)


def planned_server(peer: PeerId, *, memory_bytes: float = 6.0, pinned: Span | None = None) -> PlannedServer:
    return PlannedServer(
        peer=peer,
        offered_bytes=10,
        memory_bytes=memory_bytes,
        times=ServerTimes(hop_s=0.01, block=BlockTimes(overhead_s=0.02, prefill_s=0.001, decode_s=0.01)),
        pinned=pinned,
    )


def made(inputs: PlanInputs, **changes: Any) -> SwarmPlan:
    """The plan of these inputs, with everybody at once where it wants them."""
    planned = inputs.plan()
    fields: dict[str, Any] = {
        "epoch": 7,
        "planner": ME,
        "model_digest": "00ff",
        "inputs": inputs,
        "goal": planned.placement,
        "placement": planned.placement,
        "chains": planned.chains,
        "concurrency": planned.chosen.concurrency,
        "bounds": planned.bounds,
    }
    return SwarmPlan(**fields | changes)


INPUTS = PlanInputs(
    model=ModelSpec(num_blocks=4, block_bytes=1.0, slot_bytes=0.1),
    servers=(planned_server(A), planned_server(B), planned_server(C, memory_bytes=3.0, pinned=Span(1, 3))),
    arrival_rate=0.5,
    input_tokens=100.0,
    output_tokens=20.0,
    slot_tokens=2048,
    ways={(A, B): Way(hop_s=0.02, prompt_s=0.1)},
    before=Placement({A: Span(0, 4), C: Span(1, 3)}),
    held=frozenset({A}),
    s_per_byte=1e-9,
    search_effort=100,
    concurrencies=(1, 2, 3),
)
PLAN = made(INPUTS, left_out={PeerId("d"): "record is of another swarm"})
FIELDS = msgpack.unpackb(PLAN.body)
RECORD = record_of(PLAN)


@settings(deadline=None, max_examples=60)
@given(plans)
def test_a_plan_says_the_same_after_its_way_through_bytes(plan: SwarmPlan) -> None:
    same = SwarmPlan.from_body(plan.body, planner=ME)
    assert same == plan
    assert_typed(same, SwarmPlan)
    assert (same.body, same.digest) == (plan.body, plan.digest)
    assert same.inputs.membership == plan.inputs.membership
    assert same.inputs.pair_s == plan.inputs.pair_s
    assert same.is_settled == (plan.goal == plan.placement)


@settings(deadline=None, max_examples=40)
@given(plans)
def test_whoever_has_a_plan_can_work_it_out_again(plan: SwarmPlan) -> None:
    same = SwarmPlan.from_body(plan.body, planner=ME)
    try:
        again = same.inputs.plan()
    except NoPlanError as error:
        assert same.shortage is not None
        assert (error.missing, error.missing_bytes) == (same.shortage.missing, same.shortage.missing_bytes)  # noqa: PT017
        return
    assert again.placement == plan.goal
    assert again.bounds == plan.bounds
    assert again.chosen.concurrency == plan.concurrency
    if plan.is_settled:
        assert again.chains == plan.chains


def test_held_servers_are_planned_where_they_were() -> None:
    assert PLAN.goal[A] == Span(0, 4)
    assert [profile.pinned for profile in INPUTS.profiles()] == [Span(0, 4), None, Span(1, 3)]
    assert INPUTS.membership == {(A, None, 10), (B, None, 10), (C, Span(1, 3), 10)}
    assert INPUTS.pair_s == {(A, B): pytest.approx(0.02 * 20 + 0.1)}


def test_equal_plans_have_equal_bytes_however_their_numbers_are_written() -> None:
    whole = replace(
        INPUTS,
        model=ModelSpec(num_blocks=4, block_bytes=1, slot_bytes=0.1, embedding_bytes=0.0),
        input_tokens=100,
        output_tokens=20,
        servers=tuple(replace(server, memory_bytes=server.memory_bytes) for server in INPUTS.servers),
        before=Placement({C: Span(1, 3), A: Span(0, 4)}),
        held=frozenset([A]),
        ways=MappingProxyType(dict(INPUTS.ways)),
    )
    same = made(whole, left_out=dict(PLAN.left_out))
    assert same == PLAN
    assert same.body == PLAN.body
    ways = [((first, second), Way(hop_s=0)) for first, second in permutations((A, B, C), 2)]
    one, other = (
        made(replace(INPUTS, ways=dict(items), s_per_byte=s_per_byte))
        for items, s_per_byte in ((ways, 0), (ways[::-1], 0.0))
    )
    assert (one, one.body) == (other, other.body)


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 8},
        {"model_digest": "11"},
        {"concurrency": 4},
        {"left_out": {}},
        {"placement": Placement({A: Span(0, 4)})},
        {"inputs": replace(INPUTS, arrival_rate=0.6)},
        {"inputs": replace(INPUTS, slot_tokens=4096)},
        {"inputs": replace(INPUTS, held=frozenset())},
        {"inputs": replace(INPUTS, before=None, held=frozenset())},
        {"inputs": replace(INPUTS, concurrencies=None)},
    ],
)
def test_unlike_plans_have_unlike_digests(change: dict[str, Any]) -> None:
    assert replace(PLAN, **change).digest != PLAN.digest


@settings(deadline=None, max_examples=600)
@given(st.sampled_from(list(paths(FIELDS))), values)
def test_with_any_other_value_in_it_a_plan_is_refused_or_can_be_followed(path: tuple[Any, ...], value: object) -> None:
    body = msgpack.packb(replaced(FIELDS, path, value))
    with suppress(RecordError):
        _assert_can_be_followed(SwarmPlan.from_body(body, planner=ME))


@settings(deadline=None, max_examples=100)
@given(plans, st.data())
def test_any_plan_with_another_value_in_it_is_refused_or_can_be_followed(plan: SwarmPlan, data: st.DataObject) -> None:
    fields = msgpack.unpackb(plan.body)
    path = data.draw(st.sampled_from(list(paths(fields))))
    body = msgpack.packb(replaced(fields, path, data.draw(values)))
    with suppress(RecordError):
        _assert_can_be_followed(SwarmPlan.from_body(body, planner=ME))


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(PLAN.body) - 1), st.integers(0, 255)), min_size=1, max_size=3))
def test_damaged_bytes_are_refused_or_can_be_followed(changes: list[tuple[int, int]]) -> None:
    body = bytearray(PLAN.body)
    for position, byte in changes:
        body[position] = byte
    with suppress(RecordError):
        _assert_can_be_followed(SwarmPlan.from_body(bytes(body), planner=ME))


@settings(deadline=None)
@given(st.binary(max_size=300) | values.map(msgpack.packb))
def test_bytes_that_are_no_plan_are_refused(body: bytes) -> None:
    with pytest.raises(RecordError):
        SwarmPlan.from_body(body, planner=ME)


def _assert_can_be_followed(plan: SwarmPlan) -> None:
    """Nobody stumbles over a plan that was believed: neither who follows it, nor who plans after it."""
    assert_typed(plan, SwarmPlan)
    assert SwarmPlan.from_body(plan.body, planner=ME) == plan
    assert plan.planner == ME
    assert 0 < plan.epoch <= MAX_EPOCH
    inputs, num_blocks = plan.inputs, plan.inputs.model.num_blocks
    assert inputs.servers
    assert inputs.membership
    assert all(math.isfinite(seconds) for seconds in inputs.pair_s.values())
    assert inputs.arrival_rate > 0
    assert inputs.input_tokens + inputs.output_tokens > 0
    assert len(inputs.profiles()) == len(inputs.servers)
    peers = {server.peer for server in inputs.servers}
    for placement in (plan.goal, plan.placement, inputs.before or Placement({})):
        assert peers.issuperset(placement)
        assert all(span.end <= num_blocks for span in placement.spans.values())
    for chain in plan.chains:
        assert chain.chain.num_blocks == num_blocks
        assert all(plan.placement[hop.peer].covers(hop.span) for hop in chain.chain.hops)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"epoch": 0}, "epoch 0"),
        ({"epoch": 2**53 + 1}, "epoch 9007199254740993"),
        ({"epoch": True}, "bool where a whole number belongs"),
        ({"model": [10_001, False, 1.0, 0.1, 0.0, 0.0]}, "a model of 10001 blocks"),
        ({"model": [4, False, math.nan, 0.1, 0.0, 0.0]}, "block_bytes is nan"),
        ({"model": [4, False, 1.0, 0.1, 0.0]}, "not enough values"),
        ({"servers": []}, "server 0 of 0"),
        ({"servers": FIELDS["servers"][::-1]}, "not in order"),
        ({"servers": FIELDS["servers"][:1] * 3}, "twice"),
        ({"servers": [[*row[:2], [2, 5], *row[3:]] for row in FIELDS["servers"]]}, "the model has 4 blocks"),
        ({"servers": [[*row[:3], 0.0, *row[4:]] for row in FIELDS["servers"]]}, "memory_bytes of a is 0"),
        ({"servers": [[*row[:5], 0.0, 0.0, 0.0, 0.0, 0.0, None] for row in FIELDS["servers"]]}, "block_s of a is 0"),
        ({"servers": [[*row[:9], -1.0, row[10]] for row in FIELDS["servers"]]}, "head_s is -1.0"),
        ({"servers": [[*row[:9], math.inf, row[10]] for row in FIELDS["servers"]]}, "head_s is inf"),
        ({"servers": [[*row[:9], row[10]] for row in FIELDS["servers"]]}, "not enough values"),
        ({"servers": [[*row[:10], 0.0] for row in FIELDS["servers"]]}, "block_bytes of a is 0"),
        ({"servers": [[*row[:10], 1.0, None] for row in FIELDS["servers"]]}, "too many values"),
        ({"demand": [0.0, 100.0, 20.0]}, "arrival_rate is 0"),
        ({"demand": [math.nan, 100.0, 20.0]}, "arrival_rate is nan"),
        ({"demand": [0.5, math.inf, 20.0]}, "input_tokens is inf"),
        ({"demand": [0.5, 100.0, 0.0]}, "output_tokens is 0"),
        ({"slot_tokens": 0}, "slot_tokens is 0"),
        ({"slot_tokens": -1}, "slot_tokens is -1"),
        ({"slot_tokens": 2048.0}, "float where a whole number belongs"),
        ({"ways": [[0, 3, 0.1, 0.0]]}, "server 3 of 3"),
        ({"ways": [[0, -1, 0.1, 0.0]]}, "server -1 of 3"),
        ({"ways": [[0, 1, -0.1, 0.0]]}, "hop_s is -0.1"),
        ({"ways": [[0, 1, 1e308, 0.0]]}, "seconds of all ways is inf"),
        ({"before": [[0, 0, 5]]}, "blocks outside the model"),
        ({"before": None}, None),
        ({"before": []}, None),  # nobody was anywhere: nobody is held there
        ({"held": [1]}, "KeyError"),
        ({"s_per_byte": -1.0}, "s_per_byte is -1.0"),
        ({"s_per_byte": math.nan}, "s_per_byte is nan"),
        ({"search_effort": math.inf}, "float where a whole number belongs"),
        ({"concurrencies": []}, "sessions of"),
        ({"goal": [[0, 0, 4], [0, 0, 2]]}, "placed twice"),
        ({"goal": [[0, 2, 2]]}, "not a span"),
        ({"placement": [[0, 0, 3], [1, 0, 4], [2, 1, 3]]}, "do not hold"),
        ({"placement": []}, "KeyError"),
        ({"chains": [[1, 1.0, [[0, 3]]]]}, "do not hold"),
        ({"chains": [[1, 1.0, [[0, 4], [0, 4]]]]}, "not a span"),
        ({"chains": [[1, 1.0, []]]}, "do not hold"),
        ({"chains": [[0, 1.0, [[0, 4]]]]}, "at least one session"),
        ({"chains": [[1, math.nan, [[0, 4]]]]}, "service_s is nan"),
        ({"concurrency": -1}, "-1 sessions"),
        ({"bounds": [math.nan, 1.0]}, "bounds of nan"),
        ({"bounds": [-1.0, 1.0]}, "bounds of -1.0"),
        ({"shortage": 0}, "not fit"),
        ({"shortage": [[4], 1.0]}, "outside the model are missing"),
        ({"shortage": [[3], math.inf]}, "missing_bytes is inf"),
        ({"left_out": {f"p{number}": "" for number in range(65)}}, "too many are left out"),
        ({"left_out": {"p": 1}}, "int where text belongs"),
        ({"model_digest": b"00ff"}, "bytes where text belongs"),
    ],
)
def test_a_plan_of_nonsense_is_refused(change: dict[str, Any], fact: str | None) -> None:
    body = msgpack.packb(FIELDS | change)
    if fact is None:
        assert SwarmPlan.from_body(body, planner=ME).inputs.profiles()[0].pinned is None
        return
    with pytest.raises(RecordError, match=fact):
        SwarmPlan.from_body(body, planner=ME)


def test_every_field_of_a_plan_is_needed() -> None:
    for name in FIELDS:
        with pytest.raises(RecordError, match=name):
            SwarmPlan.from_body(msgpack.packb({key: value for key, value in FIELDS.items() if key != name}), planner=ME)


def test_a_plan_that_is_too_large_is_not_read() -> None:
    with pytest.raises(RecordError, match="at most 16777216"):
        SwarmPlan.from_body(bytes(MAX_PLAN_BYTES + 1), planner=ME)


def test_only_the_bytes_that_a_record_names_are_its_plan() -> None:
    assert RECORD.open(PLAN.body) == PLAN
    other = replace(PLAN, concurrency=9)
    with pytest.raises(RecordError, match="not those that its record names"):
        RECORD.open(other.body)
    with pytest.raises(RecordError, match="not those that its record names"):
        RECORD.open(PLAN.body + b"\0")
    with pytest.raises(RecordError, match="of epoch 7, its record of epoch 8"):
        replace(RECORD, epoch=8).open(PLAN.body)
    with pytest.raises(RecordError, match="of epoch 7"):
        replace(RECORD, model_digest="of another model").open(PLAN.body)


def test_a_plan_is_of_whoever_sealed_its_record() -> None:
    copied = replace(RECORD, planner=A)
    assert copied.open(PLAN.body) == replace(PLAN, planner=A)
    assert RECORD.open(PLAN.body).planner == ME


def test_a_record_that_names_bytes_which_are_no_plan_leads_to_none() -> None:
    body = msgpack.packb({"epoch": 7})
    with pytest.raises(RecordError, match="do not fit"):
        replace(RECORD, digest=digest_of(body)).open(body)


records = st.builds(
    PlanRecord,
    planner=st.sampled_from([A, B, C]),
    epoch=st.integers(1, 4),
    model_digest=st.just("00ff"),
    digest=st.sampled_from(["0", "1"]),
    body=st.none(),
)


@given(st.lists(records, min_size=3, max_size=3))
def test_of_any_two_plans_one_supersedes_the_other_and_never_both(three: list[PlanRecord]) -> None:
    first, second, third = three
    for one, other in combinations(three, 2):
        alike = (one.epoch, one.planner) == (other.epoch, other.planner)
        assert one.supersedes(other) + other.supersedes(one) == (not alike)
    if first.supersedes(second) and second.supersedes(third):
        assert first.supersedes(third)
    assert not first.supersedes(first)
    assert first.supersedes(None)


def test_the_higher_epoch_counts_and_of_equals_the_smaller_id() -> None:
    record = replace(RECORD, planner=B)
    assert replace(record, epoch=8, planner=C).supersedes(record)
    assert replace(record, planner=A).supersedes(record)
    assert record.supersedes(replace(PLAN, epoch=6, planner=A))
    assert not record.supersedes(replace(PLAN, planner=A))


@settings(deadline=None, max_examples=40)
@given(plans)
def test_the_record_of_a_plan_says_the_same_after_its_way_through_a_seal(plan: SwarmPlan) -> None:
    record = record_of(plan)
    opened = open_plan(seal_plan(record, IDENTITY, SECRET, expires_at=EXPIRY), SECRET, now=NOW)
    assert opened == record
    assert opened.body is not None
    assert opened.open(opened.body) == plan


def test_the_bytes_of_a_large_plan_do_not_travel_in_its_record() -> None:
    def plan_of(num_left_out: int, chars: int) -> SwarmPlan:
        names = {PeerId(f"p{number:03}"): "x" * chars for number in range(num_left_out)}
        return replace(PLAN, left_out=names)

    size = len(plan_of(60, 100).body)
    fits, large = (plan_of(60, 100 + (MAX_INLINE_BYTES - size) // 60 + more) for more in (0, 1))
    assert len(fits.body) <= MAX_INLINE_BYTES < len(large.body)
    assert record_of(fits).body == fits.body
    record = record_of(large)
    assert record.body is None
    opened = open_plan(seal_plan(record, IDENTITY, SECRET, expires_at=EXPIRY), SECRET, now=NOW)
    assert opened == record
    assert opened.open(large.body) == large
    with pytest.raises(ValueError, match="at most 16384"):
        seal_plan(replace(record, body=bytes(MAX_RECORD_BYTES)), IDENTITY, SECRET, expires_at=EXPIRY)


def test_nobody_seals_a_plan_of_another_peer(identities: list[Identity]) -> None:
    with pytest.raises(ValueError, match="cannot seal a plan of"):
        seal_plan(RECORD, identities[0], SECRET, expires_at=EXPIRY)


def test_the_record_of_a_plan_counts_in_its_own_swarm_and_time_only() -> None:
    sealed = seal_plan(RECORD, IDENTITY, SECRET, expires_at=EXPIRY)
    assert open_plan(sealed, SECRET, now=EXPIRY - 0.001) == RECORD
    with pytest.raises(RecordError, match="of another swarm"):
        open_plan(sealed, b"t" * 32, now=NOW)
    with pytest.raises(RecordError, match=r"expired 2\.0 s ago"):
        open_plan(sealed, SECRET, now=EXPIRY + 2)
    with pytest.raises(RecordError, match="expires in 3601 s, at most 3600"):
        open_plan(sealed, SECRET, now=EXPIRY - MAX_LEASE_S - 1)
    with pytest.raises(RecordError, match="record's addresses is NoneType"):
        open_record(sealed, SECRET, now=NOW)


SEALED_FIELDS = {"schema": SCHEMA, "epoch": 7, "model_digest": "00ff", "digest": RECORD.digest, "body": PLAN.body}


def _open(fields: object) -> PlanRecord:
    """What a member could sign who does not use our code."""
    return open_plan(seal_payload(msgpack.packb(fields), IDENTITY, SECRET, expires_at=EXPIRY), SECRET, now=NOW)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 1},
        {"schema": None},
        {"epoch": 0},
        {"epoch": -1},
        {"epoch": 2**53 + 1},
        {"epoch": True},
        {"epoch": 7.0},
        {"model_digest": None},
        {"model_digest": b"00ff"},
        {"digest": 1},
        {"body": "text"},
        {"body": [1]},
        {"body": False},
    ],
)
def test_a_member_who_seals_a_plan_of_nonsense_is_refused(change: dict[str, Any]) -> None:
    assert _open(SEALED_FIELDS) == RECORD
    with pytest.raises(RecordError):
        _open(SEALED_FIELDS | change)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from([(), *paths(SEALED_FIELDS)]), values)
def test_with_any_other_value_in_it_the_record_of_a_plan_is_refused_or_of_the_right_types(
    path: tuple[Any, ...], value: object
) -> None:
    with suppress(RecordError):
        assert_typed(_open(replaced(SEALED_FIELDS, path, value)), PlanRecord)
