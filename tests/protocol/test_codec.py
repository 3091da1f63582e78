"""The codec: what is sent arrives, and nothing else does."""

import contextlib
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chainserve.errors import FrameError
from chainserve.protocol.codec import DETAIL_CHARS, VERSION, Frame, decode, encode
from chainserve.protocol.fields import Limits
from chainserve.protocol.messages import (
    WIRE_TYPES,
    Activations,
    Admit,
    Admitted,
    Answer,
    Ask,
    Beat,
    Choice,
    Close,
    Drafts,
    Failed,
    FailureCode,
    Leaving,
    Logprobs,
    Open,
    Opened,
    Probe,
    Queued,
    Reorder,
    Sampled,
    Spent,
    Stalled,
    Step,
    Topic,
    WireTensor,
    row_bytes,
)
from chainserve.protocol.pages import HASH_BYTES
from chainserve.protocol.sampling import MAX_DRAFTS, MAX_GRAMMAR_BYTES, MAX_LOGPROBS, Sampling
from chainserve.types import Hop, PeerId, SessionId, Span

LIMITS = Limits()
SESSION = SessionId(bytes(range(16)))
OTHER = SessionId(bytes(16))
HOPS = (Hop(PeerId("A"), Span(0, 3)), Hop(PeerId("B"), Span(3, 7)))
OPEN = Open(SESSION, "digest", hops=HOPS, position=1, client=PeerId("C"), num_lanes=2, max_tokens=100)
SAMPLING = Sampling(
    num_prompt_tokens=5,
    temperature=0.7,
    seed=3,
    logit_bias=((7, -1.5), (0, 2.0)),
    end_tokens=(2,),
    num_logprobs=2,
    max_drafts=4,
    grammar='start: "é"',
)
TOKEN_OPEN = replace(OPEN, num_lanes=1, sampling=SAMPLING, prefix=(bytes(16), bytes(range(16))), num_cached=16)
PROMPT_OPEN = replace(TOKEN_OPEN, position=0, num_cached=0, ids=(1, 2, 70_000))
CHOICE = Choice(
    SESSION,
    9,
    (4, 5),
    is_last=True,
    logprobs=(Logprobs(-0.5, ((4, -0.5), (1, -2.0))), Logprobs(-1.0, ())),
    spent=(Spent(1, 2), Spent(0, 2**32 - 1)),
)
SAMPLED = Sampled((CHOICE, Choice(OTHER, 0, (1,), is_last=False)))
ADMIT = Admit(SESSION, HOPS, epoch=7, num_tokens=2048)
ACTIVATIONS = Activations(
    (
        Step(SESSION, 0, start=5, num_tokens=2, num_outputs=1, sequence=3),
        Step(OTHER, 1, start=0, num_tokens=1, num_outputs=0, ids=(7,), spent=(Spent(5, 6),)),
    ),
    WireTensor("bfloat16", (3, 4), bytes(range(24))),
)
MESSAGES: list[Frame] = [
    ADMIT,
    replace(ADMIT, has_begun=True),
    Admitted(SESSION, 5000),
    Queued(SESSION, 3, 12_000),
    Stalled(SESSION, 17),
    Leaving(SESSION, PeerId("B")),
    OPEN,
    TOKEN_OPEN,
    PROMPT_OPEN,
    Opened(SESSION),
    ACTIVATIONS,
    SAMPLED,
    Drafts(SESSION, 9, (4, 70_000)),
    Drafts(SESSION, 9, ()),
    Reorder(SESSION, (1, 0, 0)),
    Close(SESSION),
    Failed(SESSION, PeerId("B"), FailureCode.CACHE_FULL, "12 tokens\nfree"),
    Ask(Topic.PLAN, "digest"),
    Answer(Topic.VIEW, "7", bytes(range(100))),
    Answer(Topic.TEXT, "digest", b""),
    Beat(1, 2, 3),
    Probe(100),
]

sessions = st.binary(min_size=16, max_size=16).map(SessionId)
peers = st.text("123ABCabc", min_size=1, max_size=50).map(PeerId)
counts = st.integers(1, 1000)
sequences = st.integers(0, LIMITS.max_sequence)
waits = st.integers(0, LIMITS.max_wait_ms)


@st.composite
def chains(draw: st.DrawFn) -> tuple[Hop, ...]:
    lengths = draw(st.lists(st.integers(1, 20), min_size=1, max_size=8))
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    return tuple(Hop(draw(peers), Span(end - length, end)) for end, length in zip(ends, lengths, strict=True))


tokens = st.integers(0, LIMITS.max_vocab - 1)
penalties = st.floats(-2, 2)
samplings = st.builds(
    Sampling,
    num_prompt_tokens=counts,
    temperature=st.floats(0, 2),
    top_p=st.floats(0.01, 1),
    top_k=st.integers(0, 100),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.5, 2),
    presence_penalty=penalties,
    frequency_penalty=penalties,
    seed=st.integers(0, 2**63 - 1),
    logit_bias=st.lists(st.tuples(tokens, penalties), max_size=3).map(tuple),
    end_tokens=st.lists(tokens, min_size=1, max_size=3).map(tuple),
    num_logprobs=st.none() | st.integers(0, MAX_LOGPROBS),
    max_drafts=st.integers(0, 63),
    drafts_by_client=st.booleans(),
    grammar=st.none() | st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
)
logprobs = st.builds(Logprobs, st.floats(-20, 0), st.lists(st.tuples(tokens, st.floats(-20, 0)), max_size=3).map(tuple))


@st.composite
def choices(draw: st.DrawFn) -> Choice:
    ids = tuple(draw(st.lists(tokens, min_size=1, max_size=4)))
    known = tuple(draw(st.just([]) | st.lists(logprobs, min_size=len(ids), max_size=len(ids))))
    return Choice(draw(sessions), draw(counts), ids, draw(st.booleans()), known)


@st.composite
def opens(draw: st.DrawFn) -> Open:
    hops = draw(chains())
    position = draw(st.integers(0, len(hops) - 1))
    lanes = draw(st.integers(1, LIMITS.max_lanes))
    prefix = tuple(draw(st.lists(st.binary(min_size=HASH_BYTES, max_size=HASH_BYTES), max_size=4)))
    how = draw(st.none() | samplings)
    place = hops, position, draw(peers), lanes, draw(counts)
    ids = tuple(draw(st.lists(tokens, max_size=9)))
    return Open(draw(sessions), draw(peers), *place, how, prefix, draw(counts), ids)


@st.composite
def steps(draw: st.DrawFn) -> Step:
    num_tokens = draw(st.integers(1, 5))
    start = draw(st.integers(0, LIMITS.max_position - num_tokens))
    lane = draw(st.integers(0, LIMITS.max_lanes - 1))
    num_outputs = draw(st.integers(0, num_tokens))
    ids = tuple(draw(st.just([]) | st.lists(tokens, min_size=num_tokens, max_size=num_tokens)))
    return Step(draw(sessions), lane, start, num_tokens, num_outputs, draw(sequences), ids)


@st.composite
def activations(draw: st.DrawFn) -> Activations:
    packed = tuple(draw(st.lists(steps(), min_size=1, max_size=6)))
    dtype, hidden = draw(st.sampled_from(sorted(WIRE_TYPES))), draw(st.integers(1, 9))
    num_tokens = sum(step.num_tokens for step in packed)
    size = num_tokens * row_bytes(dtype, hidden)
    return Activations(packed, WireTensor(dtype, (num_tokens, hidden), draw(st.binary(min_size=size, max_size=size))))


lanes = st.lists(st.integers(0, LIMITS.max_lanes - 1), min_size=1, max_size=LIMITS.max_lanes).map(tuple)
times = st.integers(0, 2**63 - 1)
messages = st.one_of(
    opens(),
    activations(),
    st.builds(Opened, sessions, counts),
    st.lists(choices(), min_size=1, max_size=3).map(lambda made: Sampled(tuple(made))),
    st.builds(Drafts, sessions, counts, st.lists(counts, max_size=MAX_DRAFTS).map(tuple)),
    sessions.map(Close),
    st.builds(Reorder, sessions, lanes, sequences),
    st.builds(Admit, sessions, chains(), st.integers(0, LIMITS.max_epoch), counts, st.booleans()),
    st.builds(Admitted, sessions, waits),
    st.builds(Queued, sessions, counts, waits),
    st.builds(Stalled, sessions, sequences),
    st.builds(Leaving, sessions, peers),
    st.builds(Failed, sessions, peers, st.sampled_from(FailureCode), st.text(max_size=DETAIL_CHARS)),
    st.builds(Ask, st.sampled_from(Topic), peers),
    st.builds(Answer, st.sampled_from(Topic), peers, st.binary(max_size=1000)),
    st.builds(Beat, times, times, times),
    st.builds(Probe, st.integers(0, 1000)),
)


def refusal(frame: bytes, limits: Limits = LIMITS) -> FrameError:
    with pytest.raises(FrameError) as caught:
        decode(frame, limits)
    return caught.value


def forge(frame: bytes, change: Callable[[list[Any]], None]) -> bytes:
    """The same frame with other fields in its header."""
    length = int.from_bytes(frame[4:8], "little")
    fields = msgpack.unpackb(frame[8 : 8 + length])
    change(fields)
    header = msgpack.packb(fields)
    start = 8 + length + -(8 + length) % 16
    padding = bytes(-(8 + len(header)) % 16)
    return frame[:4] + len(header).to_bytes(4, "little") + header + padding + frame[start:]


@given(messages)
def test_what_is_sent_arrives(message: Frame) -> None:
    assert decode(encode(message), LIMITS) == message


def test_the_tensor_is_a_view_into_the_frame_at_a_multiple_of_16_bytes() -> None:
    frame = encode(ACTIVATIONS)
    message = decode(memoryview(frame), LIMITS)
    assert isinstance(message, Activations)
    assert isinstance(message.tensor.data, memoryview)
    assert message.tensor.data.obj is frame
    assert (len(frame) - len(message.tensor.data)) % 16 == 0


def test_a_tensor_of_other_than_bytes_is_sent_as_its_bytes() -> None:
    floats = memoryview(bytes(8)).cast("f")
    step = Step(SESSION, 0, start=0, num_tokens=1, num_outputs=1)
    message = decode(encode(Activations((step,), WireTensor("float32", (1, 2), floats))), LIMITS)
    assert isinstance(message, Activations)
    assert message.tensor.data == bytes(8)


def test_the_body_of_an_answer_is_a_view_into_the_frame() -> None:
    frame = encode(Answer(Topic.PLAN, "digest", memoryview(bytes(8)).cast("f")))
    message = decode(frame, LIMITS)
    assert isinstance(message, Answer)
    assert isinstance(message.body, memoryview)
    assert message.body.obj is frame
    assert message.body == bytes(8)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_truncation_is_refused(message: Frame) -> None:
    frame = encode(message)
    for length in range(len(frame)):
        refusal(frame[:length])


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_trailing_bytes_are_refused(message: Frame) -> None:
    for extra in (b"\0", bytes(16), b"x" * 100):
        assert refusal(encode(message) + extra).reason in ("trailing", "tensor")


@given(st.binary(max_size=300))
@example(b"cs\x01\x01\0\0\0\0" + bytes(8))
@example(b"cs\x01\x03\xff\xff\xff\xff")
def test_random_bytes_are_refused_and_nothing_else(data: bytes) -> None:
    refusal(data)


@given(st.integers(1, 20), st.binary(max_size=200), st.binary(max_size=50))
def test_random_headers_raise_nothing_but_frame_errors(kind: int, header: bytes, tensor: bytes) -> None:
    padding = bytes(-(8 + len(header)) % 16)
    frame = b"cs" + bytes((VERSION, kind)) + len(header).to_bytes(4, "little") + header + padding + tensor
    with contextlib.suppress(FrameError):
        decode(frame, LIMITS)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.just(msgpack.Timestamp(1, 2))
    | st.just(SESSION),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=3) | st.integers(0, 3), inner),
    max_leaves=30,
)


@given(st.sampled_from(MESSAGES), st.data())
def test_fields_of_any_type_raise_nothing_but_frame_errors(message: Frame, data: st.DataObject) -> None:
    def change(fields: list[Any]) -> None:
        fields[data.draw(st.integers(0, len(fields) - 1))] = data.draw(anything)

    with contextlib.suppress(FrameError):
        decode(forge(encode(message), change), LIMITS)


@given(messages, st.data())
def test_mutated_frames_raise_nothing_but_frame_errors(message: Frame, data: st.DataObject) -> None:
    frame = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 5))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FrameError):
        decode(bytes(frame), LIMITS)


def test_another_magic_is_foreign() -> None:
    assert refusal(b"GET / HTTP/1.1\r\n\r\n").reason == "foreign"


def test_another_version_is_refused_by_name() -> None:
    frame = bytearray(encode(OPEN))
    frame[2] = VERSION + 1
    error = refusal(bytes(frame))
    assert error.reason == "version"
    assert f"version {VERSION + 1}" in str(error)


def test_an_unknown_kind_is_refused() -> None:
    frame = bytearray(encode(OPEN))
    frame[3] = 99
    assert refusal(bytes(frame)).reason == "kind"


def test_a_frame_over_the_limit_is_refused_before_it_is_looked_at() -> None:
    assert refusal(b"nonsense" * 100, replace(LIMITS, max_frame_bytes=799)).reason == "too-large"


def test_a_header_over_the_limit_is_refused() -> None:
    assert refusal(encode(OPEN), replace(LIMITS, max_header_bytes=20)).reason == "too-large"


def test_padding_must_be_zero() -> None:
    frame = bytearray(encode(Opened(SESSION)))
    frame[-1] = 1
    assert refusal(bytes(frame)).reason == "header"


def test_numbers_of_everything_are_limited() -> None:
    assert refusal(encode(ACTIVATIONS), replace(LIMITS, max_steps=1)).reason == "field"
    assert refusal(encode(ACTIVATIONS), replace(LIMITS, max_tokens=2)).reason == "too-large"
    assert refusal(encode(ACTIVATIONS), replace(LIMITS, max_hidden=3)).reason == "field"
    assert refusal(encode(ACTIVATIONS), replace(LIMITS, max_lanes=1)).reason == "field"
    assert refusal(encode(ACTIVATIONS), replace(LIMITS, max_position=6)).reason == "field"
    assert refusal(encode(OPEN), replace(LIMITS, max_hops=1)).reason == "field"
    assert refusal(encode(OPEN), replace(LIMITS, max_blocks=6)).reason == "field"
    assert refusal(encode(OPEN), replace(LIMITS, max_position=99)).reason == "field"
    assert refusal(encode(OPEN), replace(LIMITS, max_name_chars=5)).reason == "field"
    assert refusal(encode(Ask(Topic.PLAN, "digest")), replace(LIMITS, max_name_chars=5)).reason == "field"
    assert refusal(encode(Answer(Topic.PLAN, "digest", b"12")), replace(LIMITS, max_name_chars=5)).reason == "field"
    assert (
        refusal(encode(Answer(Topic.PLAN, "digest", b"12")), replace(LIMITS, max_answer_bytes=1)).reason == "too-large"
    )
    assert refusal(encode(Probe(2)), replace(LIMITS, max_probe_bytes=1)).reason == "too-large"


def test_answers_and_probes_arrive_up_to_their_limits() -> None:
    for message in (Answer(Topic.PLAN, "digest", bytes(LIMITS.max_answer_bytes)), Probe(LIMITS.max_probe_bytes)):
        frame = encode(message)
        assert decode(frame, LIMITS) == message
        assert refusal(frame + b"\0").reason == "too-large"


@pytest.mark.parametrize("message", [Answer(Topic.PLAN, "digest", b"body"), Probe(4)], ids=["Answer", "Probe"])
@pytest.mark.parametrize("size", [-1, 3, 5, 2**64 - 1, True, None, "4", 4.0])
def test_a_payload_of_another_size_than_announced_is_refused(message: Frame, size: object) -> None:
    refusal(forge(encode(message), lambda fields: fields.__setitem__(-1, size)))


@pytest.mark.parametrize("name", ["", "x" * 257, "two\nlines", b"digest", 7, None])
@pytest.mark.parametrize(
    "message", [Answer(Topic.PLAN, "digest", b"body"), Ask(Topic.PLAN, "digest")], ids=["Answer", "Ask"]
)
def test_what_is_asked_for_has_a_short_name(message: Frame, name: object) -> None:
    assert refusal(forge(encode(message), lambda fields: fields.__setitem__(1, name))).reason == "field"


@pytest.mark.parametrize("topic", ["", "gossip", "PLAN", b"plan", 7, None, ["plan"]])
@pytest.mark.parametrize(
    "message", [Answer(Topic.PLAN, "digest", b"body"), Ask(Topic.PLAN, "digest")], ids=["Answer", "Ask"]
)
def test_an_unknown_topic_is_refused(message: Frame, topic: object) -> None:
    assert refusal(forge(encode(message), lambda fields: fields.__setitem__(0, topic))).reason == "field"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (0, SESSION[:15]),
        (0, "x" * 16),
        (1, ""),
        (1, "two\nlines"),
        (2, []),
        (2, [["A", 0, 3], ["B", 4, 7]]),  # a gap
        (2, [["A", 1, 3], ["B", 3, 7]]),  # does not begin at block 0
        (2, [["A", 0, 3], ["B", 3, 3]]),  # empty
        (2, [["A", 0, 3], ["B", 3]]),
        (2, [["A", False, 3], ["B", 3, 7]]),
        (3, 2),
        (3, -1),
        (3, True),
        (3, 1.0),
        (5, 0),
        (6, 0),
        (7, []),
        (7, [1] * 13),
        (7, "greedy"),
        (8, b"not 16"),
        (8, None),
        (9, -1),
    ],
)
def test_an_open_that_makes_no_sense_is_refused(field: int, value: object) -> None:
    refusal(forge(encode(OPEN), lambda fields: fields.__setitem__(field, value)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (1, True),  # lane
        (1, -1),
        (2, -1),  # start
        (3, 0),  # num_tokens
        (3, 3),  # more than the tensor has
        (4, 3),  # num_outputs over num_tokens
        (4, -1),
    ],
)
def test_a_step_that_makes_no_sense_is_refused_with_all_sessions_of_its_frame(field: int, value: object) -> None:
    frame = forge(encode(ACTIVATIONS), lambda fields: fields[2][0].__setitem__(field, value))
    assert refusal(frame).sessions == (SESSION, OTHER)


@pytest.mark.parametrize(
    ("message", "field", "value"),
    [
        (ADMIT, 1, []),
        (ADMIT, 1, [["A", 1, 3]]),
        (ADMIT, 1, [["A", 0, 3], ["B", 4, 5]]),
        (ADMIT, 4, 1),
        (ADMIT, 2, -1),
        (ADMIT, 2, 2**53 + 1),
        (ADMIT, 3, 0),
        (ADMIT, 3, LIMITS.max_position * LIMITS.max_lanes + 1),
        (ADMIT, 3, True),
        (Admitted(SESSION, 1), 1, -1),
        (Queued(SESSION, 1, 1), 1, -1),
        (Queued(SESSION, 1, 1), 2, 1.5),
        (Stalled(SESSION, 1), 1, LIMITS.max_sequence + 1),
        (Leaving(SESSION, PeerId("B")), 1, "B" * 257),
    ],
)
def test_a_message_about_a_place_that_makes_no_sense_is_refused(message: Frame, field: int, value: object) -> None:
    error = refusal(forge(encode(message), lambda fields: fields.__setitem__(field, value)))
    assert error.sessions == (SESSION,)


@pytest.mark.parametrize("dtype", ["float64", "", 4, None, "bfloat16\0"])
def test_a_tensor_of_unknown_dtype_is_refused(dtype: object) -> None:
    assert refusal(forge(encode(ACTIVATIONS), lambda fields: fields.__setitem__(0, dtype))).reason == "tensor"


def test_a_tensor_whose_bytes_do_not_fit_its_shape_is_refused_with_its_sessions() -> None:
    error = refusal(encode(ACTIVATIONS)[:-2])
    assert error.reason == "tensor"
    assert error.sessions == (SESSION, OTHER)


def test_no_steps_are_refused() -> None:
    assert refusal(forge(encode(ACTIVATIONS), lambda fields: fields[2].clear())).reason == "field"


def test_a_refused_frame_names_its_session() -> None:
    frame = forge(encode(Reorder(SESSION, (0,))), lambda fields: fields.__setitem__(1, [-1]))
    assert refusal(frame).sessions == (SESSION,)


def test_an_unknown_failure_code_is_refused() -> None:
    frame = encode(Failed(SESSION, PeerId("B"), FailureCode.INTERNAL, "x"))
    assert refusal(forge(frame, lambda fields: fields.__setitem__(2, "tired"))).sessions == (SESSION,)


def test_a_failure_arrives_however_it_is_described() -> None:
    detail = "\udcff" + "long " * DETAIL_CHARS
    message = decode(encode(Failed(SESSION, PeerId("B"), FailureCode.INTERNAL, detail)), LIMITS)
    assert isinstance(message, Failed)
    assert message.detail == ("?" + "long " * DETAIL_CHARS)[:DETAIL_CHARS]


def test_a_refusal_quotes_little_of_what_it_refuses() -> None:
    frame = forge(encode(OPEN), lambda fields: fields.__setitem__(3, "x" * 100_000))
    assert len(str(refusal(frame))) < 200


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", float("nan")),
        ("temperature", -1.0),
        ("temperature", True),
        ("top_p", 0.0),
        ("top_k", 1.5),
        ("seed", -1),
        ("logit_bias", [[1]]),
        ("logit_bias", [[-1, 0.5]]),
        ("logit_bias", [[1, "much"]]),
        ("end_tokens", [2**24]),
        ("num_logprobs", 21),
        ("max_drafts", 65),
        ("grammar", b"start"),
        ("grammar", ""),
        ("grammar", "x" * (MAX_GRAMMAR_BYTES + 1)),
        ("end_tokens", []),  # with a grammar
    ],
)
def test_sampling_that_makes_no_sense_is_refused(name: str, value: object) -> None:
    at = [field.name for field in fields(Sampling)].index(name)
    refusal(forge(encode(TOKEN_OPEN), lambda header: header[7].__setitem__(at, value)))


def test_choices_and_prompts_that_make_no_sense_are_refused() -> None:
    assert refusal(forge(encode(SAMPLED), lambda header: header[0][0].__setitem__(2, []))).reason == "field"
    assert refusal(forge(encode(SAMPLED), lambda header: header[0][0].__setitem__(3, 1))).reason == "field"
    assert refusal(forge(encode(SAMPLED), lambda header: header[0][0][4].pop())).reason == "field"
    for num_ids in (-1, 2, 4, 2**40):
        refusal(forge(encode(PROMPT_OPEN), lambda header, num_ids=num_ids: header.__setitem__(10, num_ids)))
    assert refusal(encode(PROMPT_OPEN), replace(LIMITS, max_vocab=70_000)).reason == "field"
    assert refusal(forge(encode(ACTIVATIONS), lambda header: header[2][1].__setitem__(6, bytes(8)))).reason == "field"


def test_a_refused_choice_names_its_session() -> None:
    error = refusal(forge(encode(SAMPLED), lambda header: header[0][0].__setitem__(3, 1)))
    assert error.sessions == (SESSION, OTHER)
