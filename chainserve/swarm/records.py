"""The one record a server publishes, and the seal that lets only members of the swarm make and read it.

A sealed record is msgpack [body, public key, signature]; its body is [expiry, payload]; the payload is a map of
the fields below. The signature is over an HMAC of the body with the swarm's secret: without the secret nobody
can make or accept a record, without the private key nobody can make one for its peer. The seal can be checked
by peers of another version, who store records that they cannot read.
"""

import dataclasses
import hmac
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

import msgpack

from chainserve.errors import RecordError, SpanError
from chainserve.swarm.identity import Identity, peer_id_of, verify
from chainserve.swarm.offers import MAX_BYTES, Offer
from chainserve.swarm.reports import Report
from chainserve.types import PeerId, Span

SCHEMA = 5
MAX_RECORD_BYTES = 16 * 1024
MAX_LEASE_S = 3600.0  # a record that claims to live longer comes from a wrong clock
MAX_BLOCKS = 10_000
MAX_TOKENS = 10**12
MAX_EPOCH = 2**53
MAX_TEXT_CHARS = 512
MAX_ADDRESSES = 32

T = TypeVar("T")

_DOMAIN = b"chainserve record 1\0"


class ServerState(StrEnum):
    """Where a server is in its life."""

    JOINING = "joining"  # waits for the plan to give it blocks
    LOADING = "loading"
    ONLINE = "online"
    DRAINING = "draining"  # moves: lets sessions finish and takes no others
    OFFLINE = "offline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """What a server tells the swarm about itself."""

    peer: PeerId
    state: ServerState
    model: str
    """What `--model` was, for people; the digest says whether two servers hold the same model."""
    model_digest: str
    num_blocks: int
    """Blocks of the whole model."""
    span: Span | None
    """Blocks it serves, loads or is about to give up; None while it waits for some."""
    dtype: str
    """Of the cache and of what blocks compute, and of their weights unless these are quantized."""
    cache_tokens: int
    """Tokens, over its whole span, that the server's cache holds in total."""
    free_tokens: int
    addresses: tuple[str, ...]
    """Where links can be made: URLs for direct links, multiaddrs for relayed ones."""
    version: str
    """Of the software."""
    started_at: float
    """Unix seconds."""
    pinned: bool = False
    """Its owner chose the blocks."""
    weight_bytes: int = 0
    """Memory that its blocks take now."""
    num_sessions: int = 0
    """That run through it now."""
    num_waiting: int = 0
    """Requests that wait for a place on a chain that begins at it."""
    epoch: int = 0
    """Of the plan it follows; 0: of none yet."""
    quant: str | None = None
    """What the weights of its blocks are quantized to; the model counts as the same one."""
    offer: Offer | None = None
    """What planning needs to know; None: it takes no part in plans."""
    report: Report | None = None
    """What people may want to know."""

    @property
    def direct_addresses(self) -> tuple[str, ...]:
        """Those of direct links, which need no libp2p."""
        return direct_addresses(self.addresses)

    def __post_init__(self) -> None:
        for name in ("peer", "model", "model_digest", "dtype", "version"):
            _check_text(name, getattr(self, name))
        if self.quant is not None:
            _check_text("quant", self.quant)
        for address in self.addresses:
            _check_text("address", address)
        for peer in self.offer.reach if self.offer is not None else ():
            _check_text("peer in reach", peer)
        if len(self.addresses) > MAX_ADDRESSES:
            raise ValueError(f"{len(self.addresses)} addresses, at most {MAX_ADDRESSES}")
        if not 0 < self.num_blocks <= MAX_BLOCKS:
            raise ValueError(f"a model of {self.num_blocks} blocks")
        if self.span is not None and self.span.end > self.num_blocks:
            raise ValueError(f"blocks {self.span} of {self.num_blocks}")
        if not 0 <= self.free_tokens <= self.cache_tokens <= MAX_TOKENS:
            raise ValueError(f"{self.free_tokens} of {self.cache_tokens} cache tokens free")
        if not (math.isfinite(self.started_at) and self.started_at >= 0):
            raise ValueError(f"started at {self.started_at}")
        if not 0 <= self.weight_bytes <= MAX_BYTES:
            raise ValueError(f"weights of {self.weight_bytes} bytes")
        if not (0 <= self.num_sessions <= MAX_TOKENS and 0 <= self.num_waiting <= MAX_TOKENS):
            raise ValueError(f"{self.num_sessions} sessions, {self.num_waiting} wait")
        if not 0 <= self.epoch <= MAX_EPOCH:
            raise ValueError(f"epoch {self.epoch}")
        if self.span is None and (self.pinned or self.state not in (ServerState.JOINING, ServerState.OFFLINE)):
            raise ValueError(f"{self.state} without blocks")


def precision(dtype: str, quant: str | None) -> str:
    """How many bits, in words."""
    return f"{quant} in {dtype}" if quant else dtype


@dataclass(frozen=True, slots=True)
class Sealed:
    """Bytes that a member of the swarm has signed, not yet looked into."""

    peer: PeerId
    expires_at: float
    """Unix seconds."""
    payload: bytes


def direct_addresses(addresses: Iterable[str]) -> tuple[str, ...]:
    """Those of direct links among a server's addresses."""
    return tuple(address for address in addresses if address.startswith(("ws://", "wss://")))


def seal(announcement: Announcement, identity: Identity, secret: bytes, *, expires_at: float) -> bytes:
    """Pack and sign an announcement of `identity`'s own, to count until `expires_at` (unix seconds)."""
    if announcement.peer != identity.peer_id:
        raise ValueError(f"{identity.peer_id} cannot seal a record of {announcement.peer}")
    fields = {field.name: getattr(announcement, field.name) for field in dataclasses.fields(announcement)}
    del fields["peer"]  # follows from the public key
    span, offer, started_at = announcement.span, announcement.offer, float(announcement.started_at)
    report = announcement.report
    fields |= {
        "schema": SCHEMA,
        "span": span and (span.start, span.end),
        "started_at": started_at,
        "offer": offer and offer.to_fields(),
        "report": report and report.to_fields(),
    }
    return seal_payload(msgpack.packb(fields), identity, secret, expires_at=expires_at)


def seal_payload(payload: bytes, identity: Identity, secret: bytes, *, expires_at: float) -> bytes:
    """Sign a payload as `identity`, to count until `expires_at`; ValueError if it is too large for a record."""
    body = msgpack.packb([float(expires_at), payload])
    data: bytes = msgpack.packb([body, identity.public_key, identity.sign(_to_sign(body, secret))])
    if len(data) > MAX_RECORD_BYTES:
        raise ValueError(f"a record of {len(data)} bytes, at most {MAX_RECORD_BYTES}: fewer or shorter addresses")
    return data


def unseal(data: bytes, secret: bytes) -> Sealed:
    """Check a record's seal, not its time nor its fields; RecordError if it does not hold."""
    if len(data) > MAX_RECORD_BYTES:
        raise RecordError(f"record of {len(data)} bytes, at most {MAX_RECORD_BYTES}")
    match _unpack(data):
        case [bytes(body), bytes(public_key), bytes(signature)]:
            pass
        case _:
            raise RecordError("record is not [body, public key, signature]")
    if not verify(public_key, _to_sign(body, secret), signature):
        raise RecordError("record is of another swarm, or not signed by its peer")
    match _unpack(body):
        case [float(expires_at), bytes(payload)] if math.isfinite(expires_at):
            return Sealed(peer_id_of(public_key), expires_at, payload)
        case _:
            raise RecordError("record's body is not [expiry, payload]")


def open_record(data: bytes, secret: bytes, *, now: float) -> Announcement:
    """Check all of a record; RecordError if anything is wrong or it does not count at `now` (unix seconds)."""
    peer, fields = open_fields(data, secret, now=now)
    try:
        return _announcement(fields, peer)
    except (ValueError, SpanError) as error:
        raise RecordError(f"record's fields do not fit: {error}") from None


def open_fields(data: bytes, secret: bytes, *, now: float) -> tuple[PeerId, Mapping[str, Any]]:
    """Who sealed a record that counts at `now`, and its fields, not yet looked into; RecordError as `open_record`."""
    sealed = unseal(data, secret)
    if sealed.expires_at <= now:
        raise RecordError(f"record expired {now - sealed.expires_at:.1f} s ago")
    if sealed.expires_at > now + MAX_LEASE_S:
        raise RecordError(f"record expires in {sealed.expires_at - now:.0f} s, at most {MAX_LEASE_S:.0f}")
    fields = _unpack(sealed.payload)
    if not isinstance(fields, dict):
        raise RecordError("record's payload is not a map")
    schema = field_of(fields, "schema", int)
    if schema != SCHEMA:
        raise RecordError(f"record has schema {schema}, this version reads {SCHEMA}: upgrade the older peer")
    return sealed.peer, fields


def _announcement(fields: Mapping[str, Any], peer: PeerId) -> Announcement:
    """The typed record; ValueError, SpanError or RecordError if a field does not fit. Other fields are ignored."""
    addresses = field_of(fields, "addresses", list)
    if not all(type(address) is str for address in addresses):
        raise RecordError("record's addresses are not text")
    offer, report = fields.get("offer"), fields.get("report")
    return Announcement(
        peer=peer,
        state=ServerState(field_of(fields, "state", str)),
        model=field_of(fields, "model", str),
        model_digest=field_of(fields, "model_digest", str),
        num_blocks=field_of(fields, "num_blocks", int),
        span=None if fields.get("span", 0) is None else to_span(field_of(fields, "span", list)),
        dtype=field_of(fields, "dtype", str),
        cache_tokens=field_of(fields, "cache_tokens", int),
        free_tokens=field_of(fields, "free_tokens", int),
        addresses=tuple(addresses),
        version=field_of(fields, "version", str),
        started_at=field_of(fields, "started_at", float),
        pinned=field_of(fields, "pinned", bool),
        weight_bytes=field_of(fields, "weight_bytes", int),
        num_sessions=field_of(fields, "num_sessions", int),
        num_waiting=field_of(fields, "num_waiting", int),
        epoch=field_of(fields, "epoch", int),
        quant=None if fields.get("quant", 0) is None else field_of(fields, "quant", str),
        offer=None if offer is None else Offer.from_fields(offer),
        report=None if report is None else Report.from_fields(report),  # which servers of before do not make
    )


def to_span(pair: Sequence[object]) -> Span:
    """The span written as [start, end]; RecordError or SpanError if it is none."""
    match pair:
        case [int(start), int(end)] if type(start) is int and type(end) is int:
            return Span(start, end)
        case _:
            raise RecordError("record's span is not [start, end]")


def field_of(fields: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """A field of exactly this type (so True is no number); RecordError if it is missing or of another."""
    value = fields.get(name)
    if type(value) is not kind:
        raise RecordError(f"record's {name} is {type(value).__name__}, not {kind.__name__}")
    return value


def _check_text(name: str, text: str) -> None:
    if not (0 < len(text) <= MAX_TEXT_CHARS and text.isprintable()):
        raise ValueError(f"{name} {text[:80]!r} is not 1 to {MAX_TEXT_CHARS} printable characters")


def _to_sign(payload: bytes, secret: bytes) -> bytes:
    return _DOMAIN + hmac.digest(secret, _DOMAIN + payload, "sha256")


def _unpack(data: bytes) -> object:
    try:
        return msgpack.unpackb(data)
    except ValueError as error:
        raise RecordError(f"record is not msgpack: {error}") from None
