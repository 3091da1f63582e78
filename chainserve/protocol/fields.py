"""What the fields of a frame may be: every value from a peer is read here, or refused with a FrameError."""

import dataclasses
import math
import reprlib
import struct
from dataclasses import dataclass
from typing import Any

from chainserve.errors import FrameError, RequestError, SpanError
from chainserve.protocol.messages import Choice, Logprobs, Spent, Step, Topic
from chainserve.protocol.pages import HASH_BYTES
from chainserve.protocol.sampling import MAX_BIASED, MAX_END_TOKENS, MAX_LOGPROBS, Sampling
from chainserve.types import Chain, Hop, PeerId, SessionId, Span

_TOPICS = {str(topic): topic for topic in Topic}
SPENT = struct.Struct("<2I")
MAX_SPENT = 2**32 - 1
"""Microseconds, more than an hour; what takes longer is said to take that."""
SAMPLING = tuple(field.name for field in dataclasses.fields(Sampling))


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


def take(count: int, fields: tuple[object, ...], payload: memoryview | None = None) -> tuple[object, ...]:
    """The fields, if there are `count` of them and no bytes follow; a message with a payload leaves that out."""
    if len(fields) != count:
        raise FrameError(f"{len(fields)} fields, want {count}", reason="header")
    if payload:
        raise FrameError(f"{len(payload)} bytes after the message", reason="trailing")
    return fields


def sized(payload: memoryview, num_bytes: object, *, most: int) -> int:
    """The payload's size, if it is what the header says and no more than `most`."""
    if len(payload) > most:
        raise FrameError(f"{len(payload)} bytes, at most {most}", reason="too-large")
    size = integer(num_bytes, "size", low=0, high=most)
    if size != len(payload):
        reason = "truncated" if len(payload) < size else "trailing"
        raise FrameError(f"{size} bytes announced, {len(payload)} in the frame", reason=reason)
    return size


def array_of(value: object, what: str, limit: int) -> tuple[object, ...]:
    if type(value) is not tuple or not 1 <= len(value) <= limit:
        raise FrameError(f"{what} is {reprlib.repr(value)}, want 1 to {limit} of them", reason="field")
    return value


def integer(value: object, what: str, *, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:  # a bool is not an integer here
        raise FrameError(f"{what} is {reprlib.repr(value)}, want {low} to {high}", reason="field")
    return value


def flag(value: object, what: str) -> bool:
    if type(value) is not bool:
        raise FrameError(f"{what} is {reprlib.repr(value)}, want a truth value", reason="field")
    return value


def name_of(value: object, what: str, limits: Limits) -> str:
    if type(value) is not str or not 1 <= len(value) <= limits.max_name_chars or not value.isprintable():
        raise FrameError(f"{what} is {reprlib.repr(value)}, want a short name", reason="field")
    return value


def session_of(value: object) -> SessionId:
    if type(value) is not bytes or len(value) != 16:
        raise FrameError(f"session is {reprlib.repr(value)}, want 16 bytes", reason="field")
    return SessionId(value)


def hops_of(value: object, limits: Limits) -> tuple[Hop, ...]:
    hops = tuple(hop_of(hop, limits) for hop in array_of(value, "hops", limits.max_hops))
    try:
        Chain(hops)
    except ValueError:
        raise FrameError("the hops' blocks do not form a chain", reason="field") from None
    return hops


def topic_of(value: object) -> Topic:
    if type(value) is not str or value not in _TOPICS:
        raise FrameError(f"unknown topic {reprlib.repr(value)}", reason="field")
    return _TOPICS[value]


def hop_of(value: object, limits: Limits) -> Hop:
    peer, start, end = take(3, array_of(value, "hop", 3))
    first = integer(start, "start", low=0, high=limits.max_blocks)
    last = integer(end, "end", low=0, high=limits.max_blocks)
    try:
        return Hop(PeerId(name_of(peer, "peer", limits)), Span(first, last))
    except SpanError as error:
        raise FrameError(str(error), reason="field") from None


def number(value: object, what: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise FrameError(f"{what} is {reprlib.repr(value)}, want a number", reason="field")
    return value  # type: ignore[return-value]


def hashes_of(value: object, limits: Limits) -> tuple[bytes, ...]:
    if type(value) is not bytes or len(value) % HASH_BYTES or len(value) > limits.max_pages * HASH_BYTES:
        raise FrameError(f"prefix is {reprlib.repr(value)}, want hashes of {HASH_BYTES} bytes", reason="field")
    return tuple(value[first : first + HASH_BYTES] for first in range(0, len(value), HASH_BYTES))


def ids_of(value: object, limits: Limits) -> tuple[int, ...]:
    """Token ids; whether the model knows them is for the session to check."""
    if type(value) is not bytes or len(value) % 4:
        raise FrameError(f"token ids are {reprlib.repr(value)}, want 4 bytes each", reason="field")
    ids = struct.unpack(f"<{len(value) // 4}I", value)
    if max(ids, default=0) >= limits.max_vocab:
        raise FrameError(f"token id {max(ids)}, at most {limits.max_vocab - 1} is taken", reason="field")
    return ids


def sampling_of(value: object, limits: Limits) -> Sampling:
    values = take(len(SAMPLING), array_of(value, "sampling", len(SAMPLING)))
    named: dict[str, Any] = dict(zip(SAMPLING, values, strict=True))
    for name in ("num_prompt_tokens", "top_k", "seed", "max_drafts"):
        integer(named[name], name, low=0, high=2**63 - 1)
    for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
        number(named[name], name)
    flag(named["drafts_by_client"], "drafts_by_client")
    if not isinstance(named["grammar"], str | None):
        raise FrameError(f"grammar is {reprlib.repr(named['grammar'])}, want a text", reason="field")
    if named["num_logprobs"] is not None:
        integer(named["num_logprobs"], "num_logprobs", low=0, high=MAX_LOGPROBS)
    named["logit_bias"] = tuple(
        (token_of(token, limits), number(bias, "bias"))
        for token, bias in (pair_of(each, "bias") for each in list_of(named["logit_bias"], "logit_bias", MAX_BIASED))
    )
    ends = list_of(named["end_tokens"], "end_tokens", MAX_END_TOKENS)
    named["end_tokens"] = tuple(token_of(token, limits) for token in ends)
    try:
        return Sampling(**named)
    except RequestError as error:
        raise FrameError(str(error), reason="field") from None


def choice_of(value: object, limits: Limits) -> Choice:
    session, start, ids, is_last, logprobs, spent = take(6, array_of(value, "choice", 6))
    tokens = tuple(token_of(token, limits) for token in array_of(ids, "ids", limits.max_choices))
    known = list_of(logprobs, "logprobs", limits.max_choices)
    if known and len(known) != len(tokens):
        raise FrameError(f"{len(known)} log-probabilities of {len(tokens)} tokens", reason="field")
    position = integer(start, "start", low=0, high=limits.max_position)
    scored = tuple(logprobs_of(each, limits) for each in known)
    return Choice(session_of(session), position, tokens, flag(is_last, "is_last"), scored, spent_of(spent, limits))


def spent_of(value: object, limits: Limits) -> tuple[Spent, ...]:
    if type(value) is not bytes or len(value) % SPENT.size or len(value) > SPENT.size * limits.max_hops:
        raise FrameError(f"times are {reprlib.repr(value)}, want {SPENT.size} bytes for each server", reason="field")
    return tuple(Spent(waited, computed) for waited, computed in SPENT.iter_unpack(value))


def logprobs_of(value: object, limits: Limits) -> Logprobs:
    chosen, likeliest = pair_of(value, "logprobs")
    pairs = [pair_of(each, "logprob") for each in list_of(likeliest, "logprobs", MAX_LOGPROBS)]
    listed = tuple((token_of(token, limits), number(logprob, "logprob")) for token, logprob in pairs)
    return Logprobs(number(chosen, "logprob"), listed)


def token_of(value: object, limits: Limits) -> int:
    return integer(value, "token id", low=0, high=limits.max_vocab - 1)


def pair_of(value: object, what: str) -> tuple[object, object]:
    first, second = take(2, array_of(value, what, 2))
    return first, second


def list_of(value: object, what: str, limit: int) -> tuple[object, ...]:
    """As `_array`, but it may be empty."""
    return () if value == () else array_of(value, what, limit)


def step_of(value: object, limits: Limits) -> Step:
    session, lane, start, num_tokens, num_outputs, sequence, packed, spent = take(8, array_of(value, "step", 8))
    count = integer(num_tokens, "num_tokens", low=1, high=limits.max_tokens)
    ids = ids_of(packed, limits)
    if ids and len(ids) != count:
        raise FrameError(f"{len(ids)} token ids of {count} tokens", reason="field")
    return Step(
        session=session_of(session),
        lane=integer(lane, "lane", low=0, high=limits.max_lanes - 1),
        start=integer(start, "start", low=0, high=limits.max_position - count),
        num_tokens=count,
        num_outputs=integer(num_outputs, "num_outputs", low=0, high=count),
        sequence=integer(sequence, "sequence", low=0, high=limits.max_sequence),
        ids=ids,
        spent=spent_of(spent, limits),
    )
