"""Join tokens: all that a peer needs to find a swarm and to be let in."""

import base64
import binascii
import hashlib
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

import msgpack
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from chainserve.errors import TokenError
from chainserve.swarm.identity import Identity
from chainserve.types import PeerId

PREFIX = "chainserve1."
SECRET_BYTES = 32
MAX_TOKEN_CHARS = 4096
MAX_NAME_CHARS = 64
MAX_BOOTSTRAP = 16
MAX_DIRECT = 4
MAX_ADDRESS_CHARS = 256

_CHECKSUM_BYTES = 4
_PEER = r"[1-9A-HJ-NP-Za-km-z]{40,64}"
_MULTIADDR = re.compile(rf"(/[\w.:%-]+)+/p2p/{_PEER}", re.ASCII)
_DIRECT = re.compile(r"wss?://([\w.-]+|\[[0-9a-fA-F:.%]+\]):\d{1,5}/[\w./-]*(#sha256=[0-9a-f]{64})?", re.ASCII)
_ASK = "ask a member of the swarm for a new token"


@dataclass(frozen=True, slots=True)
class DirectAddress:
    """Where a server takes direct links, as its record has it."""

    peer: PeerId
    url: str
    """ws://HOST:PORT/PATH, or wss:// with the certificate's fingerprint behind #sha256=."""

    def __post_init__(self) -> None:
        if not re.fullmatch(_PEER, self.peer, re.ASCII):
            raise TokenError(f"not the id of a peer: {self.peer[:MAX_ADDRESS_CHARS]!r}")
        if len(self.url) > MAX_ADDRESS_CHARS or not _DIRECT.fullmatch(self.url):
            raise TokenError(f"not an address for direct links: {self.url[:MAX_ADDRESS_CHARS]!r}")


@dataclass(frozen=True, slots=True)
class JoinToken:
    """Where a swarm is and what lets one in. Whoever has it is a member."""

    swarm: str
    secret: bytes = field(repr=False)
    bootstrap: tuple[str, ...]
    """Multiaddrs of peers to join through, each ending in /p2p/ID."""
    expires_at: float | None = None
    """Unix seconds."""
    direct: tuple[DirectAddress, ...] = ()
    """Servers for clients that are no part of the DHT; none in tokens of earlier versions."""

    def __post_init__(self) -> None:
        check_swarm_name(self.swarm)
        if len(self.secret) != SECRET_BYTES:
            raise TokenError(f"a swarm's secret has {SECRET_BYTES} bytes, not {len(self.secret)}")
        if not 0 < len(self.bootstrap) <= MAX_BOOTSTRAP:
            raise TokenError(f"a join token holds 1 to {MAX_BOOTSTRAP} addresses, not {len(self.bootstrap)}")
        for address in self.bootstrap:
            if len(address) > MAX_ADDRESS_CHARS or not _MULTIADDR.fullmatch(address):
                raise TokenError(f"not the address of a peer: {address!r} (want /ip4/HOST/tcp/PORT/p2p/ID)")
        if len(self.direct) > MAX_DIRECT:
            raise TokenError(f"a join token names at most {MAX_DIRECT} servers, not {len(self.direct)}")
        if self.expires_at is not None and not (math.isfinite(self.expires_at) and self.expires_at > 0):
            raise TokenError(f"not a time for a token to expire: {self.expires_at}")

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names and addresses of the machines that it leads to, some of them more than once."""
        in_multiaddrs = (re.match(r"/(?:ip[46]|dns\w*)/([^/]+)", address) for address in self.bootstrap)
        in_urls = (urlsplit(address.url).hostname or "" for address in self.direct)
        return (*(match[1] for match in in_multiaddrs if match), *in_urls)

    def encode(self) -> str:
        """The token as text to hand over: one word."""
        fields = {
            "swarm": self.swarm,
            "secret": self.secret,
            "bootstrap": self.bootstrap,
            "expires_at": None if self.expires_at is None else float(self.expires_at),
            "direct": [(address.peer, address.url) for address in self.direct],
        }
        payload = msgpack.packb(fields)
        return PREFIX + base64.urlsafe_b64encode(payload + _checksum(payload)).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str, *, now: float) -> Self:
        """Read a token; TokenError if it is malformed, not ours, or expired at `now` (unix seconds)."""
        word = "".join(text.split())  # terminals break long lines
        if not word.startswith(PREFIX):
            raise TokenError(_foreign(word))
        if len(word) > MAX_TOKEN_CHARS:
            raise TokenError(f"the join token has {len(word)} characters, at most {MAX_TOKEN_CHARS} are read: {_ASK}")
        token = cls._from_fields(_unpack(word.removeprefix(PREFIX)))
        if token.expires_at is not None and token.expires_at <= now:
            when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(token.expires_at))
            raise TokenError(f"the join token of swarm {token.swarm!r} expired on {when}: {_ASK}")
        return token

    @classmethod
    def _from_fields(cls, fields: Mapping[str, Any]) -> Self:
        swarm, secret, bootstrap = fields.get("swarm"), fields.get("secret"), fields.get("bootstrap")
        expires_at, direct = fields.get("expires_at"), fields.get("direct", [])
        if not (
            isinstance(swarm, str)
            and isinstance(secret, bytes)
            and isinstance(bootstrap, list)
            and all(isinstance(address, str) for address in bootstrap)
            and isinstance(expires_at, float | None)
            and isinstance(direct, list)
            and all(isinstance(pair, list) and list(map(type, pair)) == [str, str] for pair in direct)
        ):
            raise TokenError(f"the join token lacks fields or has some of the wrong type: {_ASK}")
        addresses = tuple(DirectAddress(PeerId(peer), url) for peer, url in direct)
        return cls(swarm, secret, tuple(bootstrap), expires_at, addresses)


def check_swarm_name(name: str) -> None:
    """TokenError if no token can hold this name of a swarm."""
    if not (0 < len(name) <= MAX_NAME_CHARS and name.isprintable()):
        raise TokenError(f"not a name for a swarm: {name!r} (1 to {MAX_NAME_CHARS} printable characters)")


def swarm_secret(identity: Identity, name: str) -> bytes:
    """The secret of the swarm that `identity` starts under `name`: the same after every restart."""
    derive = HKDF(algorithm=hashes.SHA256(), length=SECRET_BYTES, salt=None, info=b"chainserve swarm " + name.encode())
    return derive.derive(identity.private_der())


def _unpack(body: str) -> Mapping[str, Any]:
    """The fields in a token's body; TokenError if characters are missing or wrong."""
    try:
        data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        data = b""
    payload, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if not payload or checksum != _checksum(payload):
        raise TokenError("the join token is incomplete or mistyped: copy the whole of it again")
    try:
        fields = msgpack.unpackb(payload)
    except (ValueError, msgpack.UnpackException):
        fields = None
    if not isinstance(fields, dict):
        raise TokenError(f"the join token holds no fields: {_ASK}")
    return fields


def _checksum(payload: bytes) -> bytes:
    return hashlib.sha256(b"chainserve token" + payload).digest()[:_CHECKSUM_BYTES]


def _foreign(word: str) -> str:
    """Say what something that is not a token of ours seems to be."""
    wanted = f"a join token begins with {PREFIX}"
    if not word:
        return f"the join token is empty: {wanted}"
    if re.match(r"chainserve\d+\.", word):
        return f"the join token is of another version of chainserve ({word.partition('.')[0]}): upgrade chainserve"
    if _MULTIADDR.fullmatch(word) or word.startswith(("/ip4/", "/ip6/", "/dns")):
        return f"this is a peer's address, not a join token: {wanted}; {_ASK}"
    if "://" in word:
        return f"this is a URL, not a join token: {wanted}; {_ASK}"
    if word.startswith("hf_"):
        return f"this is a Hugging Face access token, not a join token: {wanted}"
    if re.fullmatch(r"eyJ[\w-]*(\.[\w-]*){2}", word):
        return f"this is a JSON web token, not a join token: {wanted}"
    if PREFIX.startswith(word) or PREFIX.rstrip(".") in word.lower():
        return f"the join token is incomplete or mistyped: {wanted}"
    return f"this is not a join token: {wanted}"
