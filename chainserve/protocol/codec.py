"""Frames: messages as bytes, and the checks that bytes must pass before they are a message.

    prefix     8 bytes: magic, version, kind, bytes of header (little-endian)
    header     a msgpack array, the message's fields in order
    padding    zeros up to a multiple of 16 bytes
    payload    raw bytes: the elements of activations (little-endian), what was asked for, the zeros of a probe

Bytes from a peer are hostile until `decode` has passed them. It raises nothing but FrameError.
"""

import dataclasses
import math
import reprlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import msgpack

from chainserve.errors import FrameError, RequestError, SpanError
from chainserve.protocol.messages import (
    DTYPES,
    Activations,
    Admit,
    Admitted,
    Answer,
    Ask,
    Beat,
    Choice,
    Close,
    Failed,
    FailureCode,
    Leaving,
    Logprobs,
    Message,
    Open,
    Opened,
    Probe,
    Prompt,
    Queued,
    Reorder,
    Sampled,
    Stalled,
    Step,
    Topic,
    WireTensor,
)
from chainserve.protocol.pages import HASH_BYTES
from chainserve.protocol.sampling import MAX_BIASED, MAX_END_TOKENS, MAX_LOGPROBS, Sampling
from chainserve.types import Chain, Hop, PeerId, SessionId, Span

VERSION = 3
DETAIL_CHARS = 1000
"""What went wrong is cut to this length: a long description must not keep a failure from arriving."""

_MAGIC = b"cs"
_PREFIX = struct.Struct("<2sBBI")
_ALIGNMENT = 16
_ZEROS = bytes(_ALIGNMENT)
_FAILURE_CODES = {str(code): code for code in FailureCode}
_SAMPLING = tuple(field.name for field in dataclasses.fields(Sampling))
_TOPICS = {str(topic): topic for topic in Topic}

_OPEN, _OPENED, _ACTIVATIONS, _REORDER, _CLOSE, _FAILED, _ASK, _ANSWER = range(1, 9)
_ADMIT, _ADMITTED, _QUEUED, _LEAVING, _STALLED, _PROMPT, _SAMPLED = (*range(9, 14), 18, 19)
_BEAT, _PROBE = 16, 17  # the links' own

Frame = Message | Beat | Probe
"""What a frame may hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The largest values a frame may hold."""

    max_frame_bytes: int = 64 * 2**20
    max_header_bytes: int = 256 * 2**10
    max_steps: int = 4096
    max_tokens: int = 65_536  # of all steps in one frame
    max_hidden: int = 65_536
    max_position: int = 2**24  # of a token in its session
    max_sequence: int = 2**40  # of a step in its session
    max_wait_ms: int = 2**40
    max_epoch: int = 2**53
    max_blocks: int = 4096
    max_hops: int = 256
    max_pages: int = 8192  # of a prompt whose prefix may be cached
    max_vocab: int = 2**24
    max_choices: int = 128  # tokens that a step gives
    max_lanes: int = 256
    max_name_chars: int = 256  # peer ids, digests
    max_answer_bytes: int = 16 * 2**20
    max_probe_bytes: int = 2**20


def encode(message: Frame) -> bytes:
    """The frame of `message`: one copy of its payload."""
    payload: bytes | bytearray | memoryview = b""
    fields: tuple[object, ...]
    match message:
        case Activations(steps, WireTensor(dtype, (_, hidden), payload)):
            assert memoryview(payload).nbytes == sum(s.num_tokens for s in steps) * hidden * DTYPES[dtype]
            packed = [
                (s.session, s.lane, s.start, s.num_tokens, s.num_outputs, s.sequence, _packed_ids(s.ids)) for s in steps
            ]
            kind, fields = _ACTIVATIONS, (dtype, hidden, packed)
        case Beat(sent_us, echo_us, held_us):
            kind, fields = _BEAT, (sent_us, echo_us, held_us)
        case Admit(session, hops, epoch, num_tokens):
            kind, fields = _ADMIT, (session, _packed(hops), epoch, num_tokens)
        case Admitted(session, lease_ms):
            kind, fields = _ADMITTED, (session, lease_ms)
        case Queued(session, position, wait_ms):
            kind, fields = _QUEUED, (session, position, wait_ms)
        case Open(session, model, hops, position, client, num_lanes, max_tokens, sampling, prefix, num_cached):
            how = None if sampling is None else astuple(sampling)
            place = _packed(hops), position, client, num_lanes, max_tokens
            kind, fields = _OPEN, (session, model, *place, how, b"".join(prefix), num_cached)
        case Opened(session, num_cached):
            kind, fields = _OPENED, (session, num_cached)
        case Prompt(session, ids):
            kind, fields, payload = _PROMPT, (session, len(ids)), _packed_ids(ids)
        case Sampled(choices):
            kind, fields = _SAMPLED, (tuple(map(_packed_choice, choices)),)
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
    return choice.session, choice.start, choice.ids, choice.is_last, logprobs


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
    session, hops, epoch, num_tokens = _take(4, fields, payload)
    return Admit(
        session=_session(session),
        hops=_chain(hops, limits),
        epoch=_integer(epoch, "epoch", low=0, high=limits.max_epoch),
        num_tokens=_integer(num_tokens, "num_tokens", low=1, high=limits.max_position * limits.max_lanes),
    )


def _parse_admitted(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Admitted:
    session, lease_ms = _take(2, fields, payload)
    return Admitted(_session(session), _integer(lease_ms, "lease", low=0, high=limits.max_wait_ms))


def _parse_queued(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Queued:
    session, position, wait_ms = _take(3, fields, payload)
    return Queued(
        _session(session),
        _integer(position, "position", low=0, high=limits.max_position),
        _integer(wait_ms, "wait", low=0, high=limits.max_wait_ms),
    )


def _parse_stalled(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Stalled:
    session, sequence = _take(2, fields, payload)
    return Stalled(_session(session), _integer(sequence, "sequence", low=0, high=limits.max_sequence))


def _parse_leaving(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Leaving:
    session, peer = _take(2, fields, payload)
    return Leaving(_session(session), PeerId(_name(peer, "peer", limits)))


def _parse_open(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Open:
    session, model, hops, position, client, num_lanes, max_tokens, sampling, prefix, num_cached = _take(
        10, fields, payload
    )
    chain = _chain(hops, limits)
    return Open(
        session=_session(session),
        model=_name(model, "model", limits),
        hops=chain,
        position=_integer(position, "position", low=0, high=len(chain) - 1),
        client=PeerId(_name(client, "client", limits)),
        num_lanes=_integer(num_lanes, "num_lanes", low=1, high=limits.max_lanes),
        max_tokens=_integer(max_tokens, "max_tokens", low=1, high=limits.max_position),
        sampling=None if sampling is None else _sampling(sampling, limits),
        prefix=_hashes(prefix, limits),
        num_cached=_integer(num_cached, "num_cached", low=0, high=limits.max_position),
    )


def _parse_opened(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Opened:
    session, num_cached = _take(2, fields, payload)
    return Opened(_session(session), _integer(num_cached, "num_cached", low=0, high=limits.max_position))


def _parse_prompt(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Prompt:
    session, num_tokens = _take(2, fields)
    count = _integer(num_tokens, "num_tokens", low=1, high=limits.max_position)
    if len(payload) != 4 * count:
        raise FrameError(f"{count} token ids in {len(payload)} bytes", reason="tensor")
    return Prompt(_session(session), _ids(bytes(payload), limits))


def _parse_sampled(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Sampled:
    (choices,) = _take(1, fields, payload)
    return Sampled(tuple(_choice(choice, limits) for choice in _array(choices, "choices", limits.max_steps)))


def _parse_activations(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Activations:
    dtype, hidden, steps = _take(3, fields)
    if type(dtype) is not str or dtype not in DTYPES:
        raise FrameError(f"dtype is {reprlib.repr(dtype)}, not one of {', '.join(DTYPES)}", reason="tensor")
    width = _integer(hidden, "hidden size", low=1, high=limits.max_hidden)
    parsed = tuple(_step(step, limits) for step in _array(steps, "steps", limits.max_steps))
    num_tokens = sum(step.num_tokens for step in parsed)
    if num_tokens > limits.max_tokens:
        raise FrameError(f"{num_tokens} tokens, at most {limits.max_tokens}", reason="too-large")
    if num_tokens * width * DTYPES[dtype] != len(payload):
        raise FrameError(f"{num_tokens} x {width} {dtype} in {len(payload)} bytes", reason="tensor")
    return Activations(parsed, WireTensor(dtype, (num_tokens, width), payload))


def _parse_reorder(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Reorder:
    session, sources, sequence = _take(3, fields, payload)
    lanes = _array(sources, "sources", limits.max_lanes)
    return Reorder(
        _session(session),
        tuple(_integer(lane, "source", low=0, high=limits.max_lanes - 1) for lane in lanes),
        _integer(sequence, "sequence", low=0, high=limits.max_sequence),
    )


def _parse_close(fields: tuple[object, ...], payload: memoryview, _: Limits) -> Close:
    (session,) = _take(1, fields, payload)
    return Close(_session(session))


def _parse_failed(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Failed:
    session, peer, code, detail = _take(4, fields, payload)
    if type(code) is not str or code not in _FAILURE_CODES:
        raise FrameError(f"unknown failure code {reprlib.repr(code)}", reason="field")
    if type(detail) is not str or len(detail) > DETAIL_CHARS:
        raise FrameError(f"detail is {reprlib.repr(detail)}, want a short text", reason="field")
    return Failed(_session(session), PeerId(_name(peer, "peer", limits)), _FAILURE_CODES[code], detail)


def _parse_beat(fields: tuple[object, ...], payload: memoryview, _: Limits) -> Beat:
    sent, echo, held = (_integer(us, "time", low=0, high=2**63 - 1) for us in _take(3, fields, payload))
    return Beat(sent, echo, held)


def _parse_ask(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Ask:
    topic, name = _take(2, fields, payload)
    return Ask(_topic(topic), _name(name, "name", limits))


def _parse_answer(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Answer:
    topic, name, num_bytes = _take(3, fields)
    _sized(payload, num_bytes, most=limits.max_answer_bytes)
    return Answer(_topic(topic), _name(name, "name", limits), payload)


def _parse_probe(fields: tuple[object, ...], payload: memoryview, limits: Limits) -> Probe:
    (num_bytes,) = _take(1, fields)
    return Probe(_sized(payload, num_bytes, most=limits.max_probe_bytes))  # what is in it does not matter


_PARSERS: dict[int, Callable[[tuple[object, ...], memoryview, Limits], Frame]] = {
    _OPEN: _parse_open,
    _OPENED: _parse_opened,
    _ADMIT: _parse_admit,
    _ADMITTED: _parse_admitted,
    _QUEUED: _parse_queued,
    _LEAVING: _parse_leaving,
    _STALLED: _parse_stalled,
    _ACTIVATIONS: _parse_activations,
    _PROMPT: _parse_prompt,
    _SAMPLED: _parse_sampled,
    _REORDER: _parse_reorder,
    _CLOSE: _parse_close,
    _FAILED: _parse_failed,
    _ASK: _parse_ask,
    _ANSWER: _parse_answer,
    _BEAT: _parse_beat,
    _PROBE: _parse_probe,
}


def _take(count: int, fields: tuple[object, ...], payload: memoryview | None = None) -> tuple[object, ...]:
    """The fields, if there are `count` of them and no bytes follow; a message with a payload leaves that out."""
    if len(fields) != count:
        raise FrameError(f"{len(fields)} fields, want {count}", reason="header")
    if payload:
        raise FrameError(f"{len(payload)} bytes after the message", reason="trailing")
    return fields


def _sized(payload: memoryview, num_bytes: object, *, most: int) -> int:
    """The payload's size, if it is what the header says and no more than `most`."""
    if len(payload) > most:
        raise FrameError(f"{len(payload)} bytes, at most {most}", reason="too-large")
    size = _integer(num_bytes, "size", low=0, high=most)
    if size != len(payload):
        reason = "truncated" if len(payload) < size else "trailing"
        raise FrameError(f"{size} bytes announced, {len(payload)} in the frame", reason=reason)
    return size


def _array(value: object, what: str, limit: int) -> tuple[object, ...]:
    if type(value) is not tuple or not 1 <= len(value) <= limit:
        raise FrameError(f"{what} is {reprlib.repr(value)}, want 1 to {limit} of them", reason="field")
    return value


def _integer(value: object, what: str, *, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:  # a bool is not an integer here
        raise FrameError(f"{what} is {reprlib.repr(value)}, want {low} to {high}", reason="field")
    return value


def _name(value: object, what: str, limits: Limits) -> str:
    if type(value) is not str or not 1 <= len(value) <= limits.max_name_chars or not value.isprintable():
        raise FrameError(f"{what} is {reprlib.repr(value)}, want a short name", reason="field")
    return value


def _session(value: object) -> SessionId:
    if type(value) is not bytes or len(value) != 16:
        raise FrameError(f"session is {reprlib.repr(value)}, want 16 bytes", reason="field")
    return SessionId(value)


def _chain(value: object, limits: Limits) -> tuple[Hop, ...]:
    hops = tuple(_hop(hop, limits) for hop in _array(value, "hops", limits.max_hops))
    try:
        Chain(hops)
    except ValueError:
        raise FrameError("the hops' blocks do not form a chain", reason="field") from None
    return hops


def _topic(value: object) -> Topic:
    if type(value) is not str or value not in _TOPICS:
        raise FrameError(f"unknown topic {reprlib.repr(value)}", reason="field")
    return _TOPICS[value]


def _hop(value: object, limits: Limits) -> Hop:
    peer, start, end = _take(3, _array(value, "hop", 3))
    first = _integer(start, "start", low=0, high=limits.max_blocks)
    last = _integer(end, "end", low=0, high=limits.max_blocks)
    try:
        return Hop(PeerId(_name(peer, "peer", limits)), Span(first, last))
    except SpanError as error:
        raise FrameError(str(error), reason="field") from None


def _number(value: object, what: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise FrameError(f"{what} is {reprlib.repr(value)}, want a number", reason="field")
    return value  # type: ignore[return-value]


def _hashes(value: object, limits: Limits) -> tuple[bytes, ...]:
    if type(value) is not bytes or len(value) % HASH_BYTES or len(value) > limits.max_pages * HASH_BYTES:
        raise FrameError(f"prefix is {reprlib.repr(value)}, want hashes of {HASH_BYTES} bytes", reason="field")
    return tuple(value[first : first + HASH_BYTES] for first in range(0, len(value), HASH_BYTES))


def _ids(value: object, limits: Limits) -> tuple[int, ...]:
    """Token ids; whether the model knows them is for the session to check."""
    if type(value) is not bytes or len(value) % 4:
        raise FrameError(f"token ids are {reprlib.repr(value)}, want 4 bytes each", reason="field")
    ids = struct.unpack(f"<{len(value) // 4}I", value)
    if max(ids, default=0) >= limits.max_vocab:
        raise FrameError(f"token id {max(ids)}, at most {limits.max_vocab - 1} is taken", reason="field")
    return ids


def _sampling(value: object, limits: Limits) -> Sampling:
    values = _take(len(_SAMPLING), _array(value, "sampling", len(_SAMPLING)))
    named: dict[str, Any] = dict(zip(_SAMPLING, values, strict=True))
    for name in ("num_prompt_tokens", "top_k", "seed", "max_drafts"):
        _integer(named[name], name, low=0, high=2**63 - 1)
    for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
        _number(named[name], name)
    if named["num_logprobs"] is not None:
        _integer(named["num_logprobs"], "num_logprobs", low=0, high=MAX_LOGPROBS)
    named["logit_bias"] = tuple(
        (_token(token, limits), _number(bias, "bias"))
        for token, bias in (_pair(each, "bias") for each in _list(named["logit_bias"], "logit_bias", MAX_BIASED))
    )
    ends = _list(named["end_tokens"], "end_tokens", MAX_END_TOKENS)
    named["end_tokens"] = tuple(_token(token, limits) for token in ends)
    try:
        return Sampling(**named)
    except RequestError as error:
        raise FrameError(str(error), reason="field") from None


def _choice(value: object, limits: Limits) -> Choice:
    session, start, ids, is_last, logprobs = _take(5, _array(value, "choice", 5))
    if type(is_last) is not bool:
        raise FrameError(f"is_last is {reprlib.repr(is_last)}, want a truth value", reason="field")
    tokens = tuple(_token(token, limits) for token in _array(ids, "ids", limits.max_choices))
    known = _list(logprobs, "logprobs", limits.max_choices)
    if known and len(known) != len(tokens):
        raise FrameError(f"{len(known)} log-probabilities of {len(tokens)} tokens", reason="field")
    position = _integer(start, "start", low=0, high=limits.max_position)
    return Choice(_session(session), position, tokens, is_last, tuple(_logprobs(each, limits) for each in known))


def _logprobs(value: object, limits: Limits) -> Logprobs:
    chosen, likeliest = _pair(value, "logprobs")
    pairs = [_pair(each, "logprob") for each in _list(likeliest, "logprobs", MAX_LOGPROBS)]
    listed = tuple((_token(token, limits), _number(logprob, "logprob")) for token, logprob in pairs)
    return Logprobs(_number(chosen, "logprob"), listed)


def _token(value: object, limits: Limits) -> int:
    return _integer(value, "token id", low=0, high=limits.max_vocab - 1)


def _pair(value: object, what: str) -> tuple[object, object]:
    first, second = _take(2, _array(value, what, 2))
    return first, second


def _list(value: object, what: str, limit: int) -> tuple[object, ...]:
    """As `_array`, but it may be empty."""
    return () if value == () else _array(value, what, limit)


def _step(value: object, limits: Limits) -> Step:
    session, lane, start, num_tokens, num_outputs, sequence, packed = _take(7, _array(value, "step", 7))
    count = _integer(num_tokens, "num_tokens", low=1, high=limits.max_tokens)
    ids = _ids(packed, limits)
    if ids and len(ids) != count:
        raise FrameError(f"{len(ids)} token ids of {count} tokens", reason="field")
    return Step(
        session=_session(session),
        lane=_integer(lane, "lane", low=0, high=limits.max_lanes - 1),
        start=_integer(start, "start", low=0, high=limits.max_position - count),
        num_tokens=count,
        num_outputs=_integer(num_outputs, "num_outputs", low=0, high=count),
        sequence=_integer(sequence, "sequence", low=0, high=limits.max_sequence),
        ids=ids,
    )
