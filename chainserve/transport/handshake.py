"""Two peers prove to each other who they are and that both belong to this swarm.

    dialer -> acceptor   hello     public key, nonce, the peer wanted; MAC
    acceptor -> dialer   welcome   public key, nonce; MAC and signature over hello and this
    dialer -> acceptor   proof     MAC and signature over hello and welcome

MACs show knowledge of the swarm's secret, signatures that of the private key. Each covers everything said before
under its own label, so none can be replayed, reflected or passed on to a third peer. The MAC of the hello spares
us signing for strangers.
"""

import hashlib
import hmac
import reprlib
from dataclasses import dataclass, field
from typing import Any

import msgpack

from chainserve.errors import HandshakeError
from chainserve.protocol.codec import VERSION
from chainserve.swarm.identity import Identity, peer_id_of, verify
from chainserve.types import PeerId

DEADLINE_S = 5.0
NONCE_BYTES = 32
MAX_MESSAGE_BYTES = 4096

_CONTEXT = b"chainserve link"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a peer proves with: its key pair and the swarm's secret."""

    identity: Identity
    secret: bytes = field(repr=False)


class Dialer:
    """The end that makes the link and knows whom it wants."""

    def __init__(self, credentials: Credentials, wanted: PeerId, *, nonce: bytes) -> None:
        self._credentials = credentials
        self._wanted = wanted
        said = _pack(credentials.identity.public_key, nonce, wanted)
        self.hello = _pack(VERSION, said, _mac(credentials, b"hello", said))

    def prove(self, welcome: bytes) -> bytes:
        """Check the acceptor's welcome; HandshakeError if it is not the peer wanted or not of this swarm."""
        said, mac, signature = _unpack(welcome, (bytes, bytes, bytes))
        public_key, _ = _unpack(said, (bytes, bytes))
        if peer_id_of(public_key) != self._wanted:
            raise HandshakeError(f"answered by {peer_id_of(public_key)}")
        _check(self._credentials, b"welcome", self.hello, said, mac=mac, key=public_key, signature=signature)
        return _pack(*_sign(self._credentials, b"proof", self.hello, welcome))


class Acceptor:
    """The end that is called, by whom it learns only here."""

    def __init__(self, credentials: Credentials, *, nonce: bytes) -> None:
        self._credentials = credentials
        self._nonce = nonce
        self._said: tuple[bytes, ...] = ()
        self._dialer_key = b""
        self.dialer = PeerId("")  # who it claims to be, from the hello on

    def welcome(self, hello: bytes) -> bytes:
        """Check the dialer's hello; HandshakeError if it is a stranger's, of another version or wants another."""
        version, said, mac = _unpack(hello, (int, bytes, bytes))
        if version != VERSION:
            raise HandshakeError(f"speaks version {version}, this is version {VERSION}: update the older")
        if not hmac.compare_digest(mac, _mac(self._credentials, b"hello", said)):
            raise HandshakeError("does not know the swarm's secret")
        self._dialer_key, _, wanted = _unpack(said, (bytes, bytes, str))
        if wanted != self._credentials.identity.peer_id:
            raise HandshakeError(f"wants {reprlib.repr(wanted)}, not us")
        self.dialer = peer_id_of(self._dialer_key)
        said = _pack(self._credentials.identity.public_key, self._nonce)
        welcome = _pack(said, *_sign(self._credentials, b"welcome", hello, said))
        self._said = hello, welcome
        return welcome

    def admit(self, proof: bytes) -> None:
        """Check the dialer's proof; HandshakeError if it is not who it claims to be."""
        mac, signature = _unpack(proof, (bytes, bytes))
        _check(self._credentials, b"proof", *self._said, mac=mac, key=self._dialer_key, signature=signature)


def _mac(credentials: Credentials, label: bytes, *said: bytes) -> bytes:
    return hmac.digest(credentials.secret, _digest(label, said), "sha256")


def _sign(credentials: Credentials, label: bytes, *said: bytes) -> tuple[bytes, bytes]:
    """MAC and signature over what was said."""
    return _mac(credentials, label, *said), credentials.identity.sign(_digest(label, said))


def _check(credentials: Credentials, label: bytes, *said: bytes, mac: bytes, key: bytes, signature: bytes) -> None:
    if not hmac.compare_digest(mac, _mac(credentials, label, *said)):
        raise HandshakeError("does not know the swarm's secret")
    if not verify(key, _digest(label, said), signature):
        raise HandshakeError("does not hold the private key of the peer it claims to be")


def _digest(label: bytes, said: tuple[bytes, ...]) -> bytes:
    return _CONTEXT + hashlib.sha256(_pack(VERSION, label, *said)).digest()


def _pack(*fields: object) -> bytes:
    packed: bytes = msgpack.packb(fields)
    return packed


def _unpack(message: bytes, types: tuple[type, ...]) -> tuple[Any, ...]:
    """The fields of a message, if they are exactly of these types."""
    if len(message) > MAX_MESSAGE_BYTES:
        raise HandshakeError(f"says {len(message)} bytes at once")
    try:
        fields = msgpack.unpackb(message, use_list=False, max_map_len=0, max_ext_len=0)
    except ValueError:
        raise HandshakeError("speaks something else") from None
    if type(fields) is not tuple or tuple(map(type, fields)) != types:
        raise HandshakeError("speaks something else")
    return fields
