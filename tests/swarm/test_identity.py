"""A peer is its key: the same file is the same peer, and only one process may be it at a time."""

import stat
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from chainserve.errors import IdentityError
from chainserve.swarm.identity import Identity, default_identity_paths, peer_id_of, verify

DER = serialization.Encoding.DER
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo


def test_a_peer_loaded_again_is_the_same_peer(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "peer.key"
    first = Identity.load_or_create(path)
    first.release()
    second = Identity.load_or_create(path)
    assert second.peer_id == first.peer_id
    assert second.to_bytes() == path.read_bytes()
    second.release()


def test_the_key_file_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "private" / "peer.key"
    Identity.load_or_create(path).release()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {file.name for file in path.parent.iterdir()} == {"peer.key", "peer.key.lock"}


@pytest.mark.slow
def test_hivemind_sees_the_same_peer_in_our_file_and_we_in_its(tmp_path: Path, identities: list[Identity]) -> None:
    from hivemind.p2p import P2P, PeerID

    assert PeerID.from_identity(identities[0].to_bytes()).to_base58() == identities[0].peer_id
    path = tmp_path / "theirs.key"
    P2P.generate_identity(str(path))
    theirs = Identity.load_or_create(path)
    assert PeerID.from_identity(path.read_bytes()).to_base58() == theirs.peer_id
    theirs.release()


def test_an_identity_in_use_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "peer.key"
    used = Identity.load_or_create(path)
    with pytest.raises(IdentityError, match=r"peer\.key is in use by another process: .* --identity OTHER"):
        Identity.load_or_create(path)
    used.release()
    used.release()
    Identity.load_or_create(path).release()


@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda _: b"garbage", lambda data: data[:-1], lambda data: data + b"\0"]
)
def test_a_file_that_holds_no_key_is_refused_and_left_alone(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "peer.key"
    Identity.load_or_create(path).release()
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    for _ in range(2):  # the lock was let go
        with pytest.raises(IdentityError, match="is not an identity"):
            Identity.load_or_create(path)
    assert path.read_bytes() == damaged


def test_keys_that_are_too_short_or_of_another_kind_are_refused(tmp_path: Path) -> None:
    for key in (
        rsa.generate_private_key(public_exponent=65537, key_size=1024),
        ec.generate_private_key(ec.SECP384R1()),
    ):
        der = key.private_bytes(DER, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
        path = tmp_path / f"{len(der)}.key"
        path.write_bytes(b"\x08\x00\x12" + bytes([len(der) & 0x7F | 0x80, len(der) >> 7]) + der)
        with pytest.raises(IdentityError, match="is not an identity"):
            Identity.load_or_create(path)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(IdentityError, match=r"file/peer\.key"):
        Identity.load_or_create(tmp_path / "file" / "peer.key")
    (tmp_path / "folder.key").mkdir()
    with pytest.raises(IdentityError, match="Is a directory"):
        Identity.load_or_create(tmp_path / "folder.key")


def test_several_servers_get_an_identity_each_and_a_restarted_one_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert [path.name for path in islice(default_identity_paths(), 2)] == ["identity-0.key", "identity-1.key"]
    first, second = Identity.load_default(), Identity.load_default()
    assert first.peer_id != second.peer_id
    first.release()
    again = Identity.load_default()
    assert again.peer_id == first.peer_id
    again.release()
    second.release()


def test_without_a_state_folder_in_the_environment_the_home_folder_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert next(default_identity_paths()) == Path("/home/someone/.local/state/chainserve/identity-0.key")


def test_a_signature_holds_for_its_key_and_data_alone(identities: list[Identity]) -> None:
    one, other = identities[:2]
    signature = one.sign(b"data")
    assert verify(one.public_key, b"data", signature)
    assert not verify(one.public_key, b"other data", signature)
    assert not verify(other.public_key, b"data", signature)
    assert not verify(one.public_key, b"data", signature[:-1])
    assert not verify(b"no key", b"data", signature)


def test_signatures_of_weak_keys_are_not_accepted() -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    weak = Identity(key)
    assert not verify(weak.public_key, b"data", weak.sign(b"data"))
    elliptic = ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(DER, SPKI)
    assert not verify(elliptic, b"data", b"")


def test_a_peer_id_follows_from_the_public_key_and_shows_in_the_repr(identities: list[Identity]) -> None:
    identity = identities[0]
    assert peer_id_of(identity.public_key) == identity.peer_id
    assert identity.peer_id.startswith("Qm")
    assert len(identity.peer_id) == 46
    assert repr(identity) == f"Identity({identity.peer_id})"
