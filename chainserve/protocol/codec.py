"""Frames: messages as bytes, and the checks that bytes must pass before they are a message.

    prefix     8 bytes: magic, version, kind, bytes of header (little-endian)
    header     a msgpack array, the message's fields in order
    padding    zeros up to a multiple of 16 bytes
    payload    raw bytes: the elements of activations (little-endian), what was asked for, the zeros of a probe

Bytes from a peer are hostile until `decode` has passed them. It raises nothing but FrameError.
"""

import reprlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import astuple

import msgpack

from chainserve.errors import FrameError
from chainserve.protocol.fields import (
    MAX_SPENT,
    SPENT,
    Limits,
    array_of,
    choice_of,
    flag,
    hashes_of,
    hops_of,
    ids_of,
    integer,
    name_of,
    sampling_of,
    session_of,
    sized,
    step_of,
    take,
    topic_of,
)
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
    Message,
    Open,
    Opened,
    Probe,
    Queued,
    Reorder,
    Sampled,
    Spent,
    Stalled,
    WireTensor,
    row_bytes,
)
from chainserve.protocol.sampling import MAX_BIASED, MAX_DRAFTS
from chainserve.types import Hop, PeerId

VERSION = 7
DETAIL_CHARS = 1000
"""What went wrong is cut to this length: a long description must not keep a failure from arriving."""

_MAGIC = b"cs"
_PREFIX = struct.Struct("<2sBBI")
_ALIGNMENT = 16
_ZEROS = bytes(_ALIGNMENT)
_FAILURE_CODES = {str(code): code for code in FailureCode}

_OPEN, _OPENED, _ACTIVATIONS, _REORDER, _CLOSE, _FAILED, _ASK, _ANSWER = range(1, 9)
_ADMIT, _ADMITTED, _QUEUED, _LEAVING, _STALLED, _SAMPLED, _DRAFTS = (*range(9, 14), 19, 20)
_BEAT, _PROBE = 16, 17  # the links' own

Frame = Message | Beat | Probe
"""What a frame may hold."""


def encode(message: Frame) -> bytes:
    """The frame of `message`: one copy of its payload."""
    payload: bytes | bytearray | memoryview = b""
    fields: tuple[object, ...]
    match message:
        case Activations(steps, WireTensor(dtype, (_, hidden), payload)):
            assert memoryview(payload).nbytes == sum(s.num_tokens for s in steps) * row_bytes(dtype, hidden)
            packed = [
                (
                    s.session,
                    s.lane,
                    s.start,
                    s.num_tokens,
                    s.num_outputs,
                    s.sequence,
                    _packed_ids(s.ids),
                    _packed_spent(s.spent),
                )
                for s in steps
            ]
            kind, fields = _ACTIVATIONS, (dtype, hidden, packed)
        case Beat(sent_us, echo_us, held_us):
            kind, fields = _BEAT, (sent_us, echo_us, held_us)
        case Admit(session, hops, epoch, num_tokens, has_begun):
            kind, fields = _ADMIT, (session, _packed(hops), epoch, num_tokens, has_begun)
        case Admitted(session, lease_ms):
            kind, fields = _ADMITTED, (session, lease_ms)
        case Queued(session, position, wait_ms):
            kind, fields = _QUEUED, (session, position, wait_ms)
        case Open(session, model, hops, position, client, num_lanes, max_tokens, sampling, prefix, num_cached, ids):
            how = None if sampling is None else astuple(sampling)
            place = _packed(hops), position, client, num_lanes, max_tokens
            kind, fields = _OPEN, (session, model, *place, how, b"".join(prefix), num_cached, len(ids))
            payload = _packed_ids(ids)
        case Opened(session, num_cached):
            kind, fields = _OPENED, (session, num_cached)
        case Sampled(choices):
            kind, fields = _SAMPLED, (tuple(map(_packed_choice, choices)),)
        case Drafts(session, start, ids):
            kind, fields = _DRAFTS, (session, start, _packed_ids(ids))
        case Reorder(session, sources, sequence):
            kind, fields = _REORDER, (session, sources, sequence)
        case Close(session):
            kind, fields = _CLOSE, (session,)
        case Failed(session, peer, code, detail):
            kind, fields = _FAILED, (session, peer, code, detail[:DETAIL_CHARS])
        case Stalled(session, sequence):
            kind, fields = _STALLED, (session, sequence)
        case Leaving(session, peer):
            kind, fields = _LEAVING, (session, peer)
        case Ask(topic, name):
            kind, fields = _ASK, (topic, name)
        case Answer(topic, name, payload):
            kind, fields = _ANSWER, (topic, name, memoryview(payload).nbytes)
        case Probe(num_bytes):
            kind, fields, payload = _PROBE, (num_bytes,), bytes(num_bytes)
        case _:
            raise TypeError(f"not a message: {message!r}")
    header = msgpack.packb(fields, unicode_errors="replace")
    padding = -(_PREFIX.size + len(header)) % _ALIGNMENT
    return b"".join((_PREFIX.pack(_MAGIC, VERSION, kind, len(header)), header, _ZEROS[:padding], payload))


def _packed(hops: Sequence[Hop]) -> list[tuple[str, int, int]]:
    return [(hop.peer, hop.span.start, hop.span.end) for hop in hops]


def _packed_ids(ids: Sequence[int]) -> bytes:
    """Token ids as little-endian 32-bit integers."""
    return struct.pack(f"<{len(ids)}I", *ids)


def _packed_choice(choice: Choice) -> tuple[object, ...]:
    logprobs = tuple((each.chosen, each.likeliest) for each in choice.logprobs)
    return choice.session, choice.start, choice.ids, choice.is_last, logprobs, _packed_spent(choice.spent)


def _packed_spent(spent: Sequence[Spent]) -> bytes:
    """Eight bytes for each server."""
    return b"".join(SPENT.pack(min(each.waited_us, MAX_SPENT), min(each.computed_us, MAX_SPENT)) for each in spent)


def decode(frame: bytes | memoryview, limits: Limits) -> Frame:
    """The message in `frame`, its payload a view into `frame`; FrameError if any of it is not as it should be."""
    if len(frame) > limits.max_frame_bytes:
        raise FrameError(f"{len(frame)} bytes, at most {limits.max_frame_bytes} are taken", reason="too-large")
    if len(frame) < _PREFIX.size:
        raise FrameError(f"only {len(frame)} bytes", reason="truncated")
    magic, version, kind, header_bytes = _PREFIX.unpack_from(frame)
    if magic != _MAGIC:
        raise FrameError(f"begins with {magic!r}, not {_MAGIC!r}", reason="foreign")
    if version != VERSION:
        raise FrameError(f"of version {version}, this is version {VERSION}: update the older", reason="version")
    if kind not in _PARSERS:
        raise FrameError(f"of unknown kind {kind}", reason="kind")
    if header_bytes > limits.max_header_bytes:
        raise FrameError(f"header of {header_bytes} bytes, at most {limits.max_header_bytes}", reason="too-large")
    header_end = _PREFIX.size + header_bytes
    payload_start = header_end + -header_end % _ALIGNMENT
    if len(frame) < payload_start:
        raise FrameError(f"{len(frame)} bytes, the header ends at {payload_start}", reason="truncated")

    view = memoryview(frame)
    fields = _unpack(view[_PREFIX.size : header_end], limits)
    try:
        if view[header_end:payload_start] != _ZEROS[: payload_start - header_end]:
            raise FrameError("padding is not zero", reason="header")
        return _PARSERS[kind](fields, view[payload_start:], limits)
    except FrameError as error:
        raise FrameError(str(error), reason=error.reason, sessions=_sessions_named_in(fields)) from None


def _unpack(header: memoryview, limits: Limits) -> tuple[object, ...]:
    try:
        fields = msgpack.unpackb(
            header,
            use_list=False,
            max_array_len=max(MAX_BIASED, limits.max_steps, limits.max_hops, limits.max_lanes),
            max_map_len=0,
            max_ext_len=0,
        )
    except ValueError as error:  # what msgpack raises on any input it does not understand
        raise FrameError(f"header is not msgpack: {reprlib.repr(str(error))}", reason="header") from None
    if type(fields) is not tuple:
        raise FrameError(f"header is {reprlib.repr(fields)}, not an array", reason="header")
    return fields


def _sessions_named_in(fields: tuple[object, ...]) -> tuple[bytes, ...]:
    """The session ids in a header that may be wrong in every way."""
    match fields:
        case (str(), _, tuple() as several) | (tuple() as several,):  # steps, choices
            named = [each[0] for each in several if isinstance(each, tuple) and each]
        case _:
            named = list(fields[:1])
    return tuple(dict.fromkeys(name for name in named if type(name) is bytes and len(name) == 16))


def _parse_admit(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Admit:
    session, hops, epoch, num_tokens, has_begun = take(5, fields, payload)
    return Admit(
        session=session_of(session),
        hops=hops_of(hops, limits),
        epoch=integer(epoch, "epoch", low=0, high=limits.max_epoch),
        num_tokens=integer(num_tokens, "num_tokens", low=1, high=limits.max_position * limits.max_lanes),
        has_begun=flag(has_begun, "has_begun"),
    )


def _parse_admitted(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Admitted:
    session, lease_ms = take(2, fields, payload)
    return Admitted(session_of(session), integer(lease_ms, "lease", low=0, high=limits.max_wait_ms))


def _parse_queued(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Queued:
    session, position, wait_ms = take(3, fields, payload)
    return Queued(
        session_of(session),
        integer(position, "position", low=0, high=limits.max_position),
        integer(wait_ms, "wait", low=0, high=limits.max_wait_ms),
    )


def _parse_stalled(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Stalled:
    session, sequence = take(2, fields, payload)
    return Stalled(session_of(session), integer(sequence, "sequence", low=0, high=limits.max_sequence))


def _parse_leaving(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Leaving:
    session, peer = take(2, fields, payload)
    return Leaving(session_of(session), PeerId(name_of(peer, "peer", limits)))


def _parse_open(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Open:
    session, model, hops, position, client, num_lanes, max_tokens, sampling, prefix, num_cached, num_ids = take(
        11, fields
    )
    chain = hops_of(hops, limits)
    count = integer(num_ids, "number of token ids", low=0, high=limits.max_position)
    sized(payload, 4 * count, most=4 * limits.max_position)
    return Open(
        session=session_of(session),
        model=name_of(model, "model", limits),
        hops=chain,
        position=integer(position, "position", low=0, high=len(chain) - 1),
        client=PeerId(name_of(client, "client", limits)),
        num_lanes=integer(num_lanes, "num_lanes", low=1, high=limits.max_lanes),
        max_tokens=integer(max_tokens, "max_tokens", low=1, high=limits.max_position),
        sampling=None if sampling is None else sampling_of(sampling, limits),
        prefix=hashes_of(prefix, limits),
        num_cached=integer(num_cached, "num_cached", low=0, high=limits.max_position),
        ids=ids_of(bytes(payload), limits),
    )


def _parse_opened(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Opened:
    session, num_cached = take(2, fields, payload)
    return Opened(session_of(session), integer(num_cached, "num_cached", low=0, high=limits.max_position))


def _parse_sampled(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Sampled:
    (choices,) = take(1, fields, payload)
    return Sampled(tuple(choice_of(choice, limits) for choice in array_of(choices, "choices", limits.max_steps)))


def _parse_drafts(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Drafts:
    session, start, packed = take(3, fields, payload)
    ids = ids_of(packed, limits)
    if len(ids) > MAX_DRAFTS:
        raise FrameError(f"{len(ids)} drafts, at most {MAX_DRAFTS} are taken", reason="field")
    return Drafts(session_of(session), integer(start, "start", low=0, high=limits.max_position), ids)


def _parse_activations(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Activations:
    dtype, hidden, steps = take(3, fields)
    if type(dtype) is not str or dtype not in WIRE_TYPES:
        raise FrameError(f"dtype is {reprlib.repr(dtype)}, not one of {', '.join(WIRE_TYPES)}", reason="tensor")
    width = integer(hidden, "hidden size", low=1, high=limits.max_hidden)
    parsed = tuple(step_of(step, limits) for step in array_of(steps, "steps", limits.max_steps))
    num_tokens = sum(step.num_tokens for step in parsed)
    if num_tokens > limits.max_tokens:
        raise FrameError(f"{num_tokens} tokens, at most {limits.max_tokens}", reason="too-large")
    if num_tokens * row_bytes(dtype, width) != len(payload):
        raise FrameError(f"{num_tokens} x {width} {dtype} in {len(payload)} bytes", reason="tensor")
    return Activations(parsed, WireTensor(dtype, (num_tokens, width), payload))


def _parse_reorder(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Reorder:
    session, sources, sequence = take(3, fields, payload)
    lanes = array_of(sources, "sources", limits.max_lanes)
    return Reorder(
        session_of(session),
        tuple(integer(lane, "source", low=0, high=limits.max_lanes - 1) for lane in lanes),
        integer(sequence, "sequence", low=0, high=limits.max_sequence),
    )


def _parse_close(fields: tuple[object, ...], payload: memoryview, _: Limits) -> Close:
    (session,) = take(1, fields, payload)
    return Close(session_of(session))


def _parse_failed(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Failed:
    session, peer, code, detail = take(4, fields, payload)
    if type(code) is not str or code not in _FAILURE_CODES:
        raise FrameError(f"unknown failure code {reprlib.repr(code)}", reason="field")
    if type(detail) is not str or len(detail) > DETAIL_CHARS:
        raise FrameError(f"detail is {reprlib.repr(detail)}, want a short text", reason="field")
    return Failed(session_of(session), PeerId(name_of(peer, "peer", limits)), _FAILURE_CODES[code], detail)


def _parse_beat(fields: tuple[object, ...], payload: memoryview, _: Limits) -> Beat:
    sent, echo, held = (integer(us, "time", low=0, high=2**63 - 1) for us in take(3, fields, payload))
    return Beat(sent, echo, held)


def _parse_ask(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Ask:
    topic, name = take(2, fields, payload)
    return Ask(topic_of(topic), name_of(name, "name", limits))


def _parse_answer(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Answer:
    topic, name, num_bytes = take(3, fields)
    sized(payload, num_bytes, most=limits.max_answer_bytes)
    return Answer(topic_of(topic), name_of(name, "name", limits), payload)


def _parse_probe(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Probe:
    (num_bytes,) = take(1, fields)
    return Probe(sized(payload, num_bytes, most=limits.max_probe_bytes))  # what is in it does not matter


_PARSERS: dict[int, Callable[[tuple[object, ...], memoryview, Limits], Frame]] = {
    _OPEN: _parse_open,
    _OPENED: _parse_opened,
    _ADMIT: _parse_admit,
    _ADMITTED: _parse_admitted,
    _QUEUED: _parse_queued,
    _LEAVING: _parse_leaving,
    _STALLED: _parse_stalled,
    _ACTIVATIONS: _parse_activations,
    _SAMPLED: _parse_sampled,
    _DRAFTS: _parse_drafts,
    _REORDER: _parse_reorder,
    _CLOSE: _parse_close,
    _FAILED: _parse_failed,
    _ASK: _parse_ask,
    _ANSWER: _parse_answer,
    _BEAT: _parse_beat,
    _PROBE: _parse_probe,
}
