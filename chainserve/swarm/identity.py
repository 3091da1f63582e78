"""A peer's key pair, and its place on disk.

The file is libp2p's: a protobuf with two fields, the key's type and the key in DER. The peer id is the hash of
the public key, so whoever holds the file is the peer.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from chainserve.errors import IdentityError
from chainserve.types import PeerId

if sys.platform != "win32":
    import fcntl

KEY_BITS = 2048
MAX_KEY_BITS = 4096  # larger keys make checking a signature slow

_RSA_FIELD = b"\x08\x00\x12"  # protobuf: key type 0 (RSA), then the tag of the key's bytes
_SHA2_256 = b"\x12\x20"  # multihash: function and length of the digest
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_PADDING = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.DIGEST_LENGTH)


class Identity:
    """An RSA key pair. One that was loaded from a file is ours alone until `release`."""

    def __init__(self, key: rsa.RSAPrivateKey, *, lock: int | None = None) -> None:
        self._key = key
        self._lock = lock  # file descriptor
        self.public_key: bytes = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.peer_id = peer_id_of(self.public_key)

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"

    @classmethod
    def generate(cls) -> Self:
        """A new identity that is kept nowhere."""
        return cls(rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS))

    @classmethod
    def load_or_create(cls, path: Path) -> Self:
        """Read the identity at `path` or make one there; IdentityError if it is unreadable or in use."""
        lock = _lock(path)
        if lock is None:
            raise IdentityError(
                f"the identity {path} is in use by another process: stop that, or give another file "
                f"with --identity OTHER"
            )
        return cls._load(path, lock)

    @classmethod
    def load_default(cls) -> Self:
        """The first identity at the default places that no other process uses, made if need be.

        Several servers on one machine get one each, and a restarted server gets its own again.
        """
        for path in default_identity_paths():
            if (lock := _lock(path)) is not None:
                return cls._load(path, lock)
        raise AssertionError("the default places have no end")

    @classmethod
    def _load(cls, path: Path, lock: int) -> Self:
        try:
            return cls(_read_or_create_key(path), lock=lock)
        except BaseException:
            os.close(lock)
            raise

    def sign(self, data: bytes) -> bytes:
        """Sign with RSA-PSS over SHA-256."""
        return self._key.sign(data, _PADDING, hashes.SHA256())

    def private_der(self) -> bytes:
        """The private key in DER (PKCS #1): a secret."""
        return self._key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )

    def to_bytes(self) -> bytes:
        """The key pair as libp2p keeps it in a file: a secret."""
        return _RSA_FIELD + _sized(self.private_der())

    def release(self) -> None:
        """Let other processes use the file. Releasing twice does nothing."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def verify(public_key: bytes, data: bytes, signature: bytes) -> bool:
    """Whether `signature` over `data` was made with the private half of `public_key`; any bytes may be given."""
    try:
        key = serialization.load_der_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm):
        return False
    if not isinstance(key, rsa.RSAPublicKey) or not KEY_BITS <= key.key_size <= MAX_KEY_BITS:
        return False
    try:
        key.verify(signature, data, _PADDING, hashes.SHA256())
    except InvalidSignature:
        return False
    return True


def peer_id_of(public_key: bytes) -> PeerId:
    """The peer id of an RSA public key in DER: base58 of the multihash of its protobuf."""
    return PeerId(_base58(_SHA2_256 + hashlib.sha256(_RSA_FIELD + _sized(public_key)).digest()))


def default_identity_paths() -> Iterator[Path]:
    """Where identities are kept unless the user says otherwise: identity-0.key, identity-1.key, and so on."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return (state / "chainserve" / f"identity-{number}.key" for number in count())


def _lock(path: Path) -> int | None:
    """Lock the identity at `path` with a file next to it; None if another process holds it.

    The lock is freed when the returned file descriptor is closed, at the latest when the process ends.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise IdentityError(f"cannot keep an identity at {path}: {error.strerror}; choose --identity OTHER") from None
    if sys.platform != "win32":
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
    return lock


def _read_or_create_key(path: Path) -> rsa.RSAPrivateKey:
    """The key at `path`, made there if there is none. Call with the lock held."""
    try:
        if not path.exists():
            identity = Identity.generate()
            partial = path.with_name(path.name + ".partial")
            partial.unlink(missing_ok=True)
            with open(partial, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(identity.to_bytes())
            partial.replace(path)  # a crash leaves no half-written key
        data = path.read_bytes()
    except OSError as error:
        raise IdentityError(f"cannot read the identity {path}: {error.strerror}; choose --identity OTHER") from None
    try:
        return _parse_key(data)
    except ValueError:
        raise IdentityError(
            f"{path} is not an identity (want libp2p's file format with an RSA key of {KEY_BITS} to "
            f"{MAX_KEY_BITS} bits): move it away, or choose --identity OTHER"
        ) from None


def _parse_key(data: bytes) -> rsa.RSAPrivateKey:
    """Read libp2p's key file; ValueError if it is anything else."""
    der = data[len(_RSA_FIELD) + 2 :]  # lengths of RSA keys take two bytes
    if data != _RSA_FIELD + _sized(der):
        raise ValueError("not a libp2p key file")
    try:
        key = serialization.load_der_private_key(der, password=None)
    except (TypeError, UnsupportedAlgorithm) as error:  # encrypted; of an unknown kind
        raise ValueError(str(error)) from None
    if not isinstance(key, rsa.RSAPrivateKey) or not KEY_BITS <= key.key_size <= MAX_KEY_BITS:
        raise ValueError("not an RSA key of the right size")
    return key


def _sized(data: bytes) -> bytes:
    """`data` after its length as a protobuf varint."""
    length, prefix = len(data), bytearray()
    while length > 0x7F:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*prefix, length]) + data


def _base58(data: bytes) -> str:
    """Base58 as in Bitcoin; `data` does not begin with a zero byte."""
    number, digits = int.from_bytes(data, "big"), []
    while number:
        number, digit = divmod(number, 58)
        digits.append(_BASE58[digit])
    return "".join(reversed(digits))
