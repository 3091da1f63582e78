"""Who proves what to whom when a link is made."""

import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainserve.errors import HandshakeError
from chainserve.protocol.codec import VERSION
from chainserve.swarm.identity import Identity
from chainserve.transport.handshake import Acceptor, Credentials, Dialer
from chainserve.types import PeerId

A, B, C = (Credentials(Identity.generate(), b"s" * 32) for _ in range(3))
B_ID = B.identity.peer_id


def dialer(credentials: Credentials = A, wanted: PeerId = B_ID) -> Dialer:
    return Dialer(credentials, wanted, nonce=secrets.token_bytes(32))


def acceptor(credentials: Credentials = B) -> Acceptor:
    return Acceptor(credentials, nonce=secrets.token_bytes(32))


def change(message: bytes, position: int, how: Callable[[Any], object]) -> bytes:
    fields = msgpack.unpackb(message)
    fields[position] = how(fields[position])
    packed: bytes = msgpack.packb(fields)
    return packed


def flip(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def test_two_peers_of_a_swarm_recognize_each_other() -> None:
    near, far = dialer(), acceptor()
    far.admit(near.prove(far.welcome(near.hello)))
    assert far.dialer == A.identity.peer_id


def test_a_dialer_without_the_secret_is_refused_at_its_hello() -> None:
    with pytest.raises(HandshakeError, match="secret"):
        acceptor().welcome(dialer(replace(A, secret=b"x" * 32)).hello)


def test_an_acceptor_without_the_secret_is_refused() -> None:
    near, far = dialer(), acceptor()
    said, _, signature = msgpack.unpackb(far.welcome(near.hello))
    with pytest.raises(HandshakeError, match="secret"):
        near.prove(msgpack.packb((said, secrets.token_bytes(32), signature)))


def test_a_dialer_learns_when_another_peer_answers() -> None:
    hello_for_c = dialer(wanted=C.identity.peer_id)
    with pytest.raises(HandshakeError, match="not us"):
        acceptor().welcome(hello_for_c.hello)
    near, other = dialer(wanted=B_ID), acceptor(C)
    welcome = other.welcome(dialer(wanted=C.identity.peer_id).hello)
    with pytest.raises(HandshakeError, match=f"answered by {C.identity.peer_id}"):
        near.prove(welcome)


def test_an_acceptor_that_only_claims_to_be_the_peer_wanted_is_refused() -> None:
    class Impostor(Identity):  # shows B's public key, signs with its own
        pass

    impostor = Impostor(C.identity._key)
    impostor.public_key, impostor.peer_id = B.identity.public_key, B_ID
    near = dialer()
    with pytest.raises(HandshakeError, match="private key"):
        near.prove(acceptor(Credentials(impostor, B.secret)).welcome(near.hello))


def test_a_dialer_that_only_claims_a_peer_id_is_refused() -> None:
    impostor = Identity(C.identity._key)
    impostor.public_key, impostor.peer_id = A.identity.public_key, A.identity.peer_id
    near, far = dialer(Credentials(impostor, A.secret)), acceptor()
    proof = near.prove(far.welcome(near.hello))
    with pytest.raises(HandshakeError, match="private key"):
        far.admit(proof)


def test_a_recorded_conversation_does_not_open_a_second_link() -> None:
    near, far = dialer(), acceptor()
    proof = near.prove(far.welcome(near.hello))
    again = acceptor()
    again.welcome(near.hello)
    with pytest.raises(HandshakeError):
        again.admit(proof)


def test_a_recorded_welcome_does_not_satisfy_a_second_hello() -> None:
    recorded = acceptor().welcome(dialer().hello)
    with pytest.raises(HandshakeError):
        dialer().prove(recorded)


def test_what_one_end_said_cannot_be_said_back_to_it() -> None:
    near, far = dialer(), acceptor()
    welcome = far.welcome(near.hello)
    _, mac, signature = msgpack.unpackb(welcome)
    with pytest.raises(HandshakeError):
        far.admit(msgpack.packb((mac, signature)))
    with pytest.raises(HandshakeError):
        acceptor(A).welcome(near.hello)  # its own hello, thrown back by someone in between


def test_a_proof_made_for_one_peer_cannot_be_passed_on_to_another() -> None:
    near, middle = dialer(wanted=C.identity.peer_id), acceptor(C)
    proof = near.prove(middle.welcome(near.hello))
    as_near = dialer(Credentials(A.identity, A.secret))
    far = acceptor()
    far.welcome(as_near.hello)
    with pytest.raises(HandshakeError):
        far.admit(proof)


def test_another_version_is_refused_by_name() -> None:
    with pytest.raises(HandshakeError, match=f"version {VERSION + 1}"):
        acceptor().welcome(change(dialer().hello, 0, lambda version: version + 1))


def test_a_single_changed_bit_is_refused() -> None:
    for position in (1, 2):
        with pytest.raises(HandshakeError):
            acceptor().welcome(change(dialer().hello, position, flip))
    for position in range(3):
        near, far = dialer(), acceptor()
        welcome = far.welcome(near.hello)
        with pytest.raises(HandshakeError):
            near.prove(change(welcome, position, flip))
    for position in range(2):
        near, far = dialer(), acceptor()
        proof = near.prove(far.welcome(near.hello))
        with pytest.raises(HandshakeError):
            far.admit(change(proof, position, flip))


def packed(fields: Any) -> bytes:
    message: bytes = msgpack.packb(fields)
    return message


hostile = st.binary(max_size=5000) | st.lists(
    st.integers(-10, 300) | st.binary(max_size=40) | st.text(max_size=10) | st.none(), max_size=4
).map(packed)


@settings(deadline=None)
@given(hostile)
def test_hostile_bytes_are_refused_at_every_step(data: bytes) -> None:
    near, far = dialer(), acceptor()
    with pytest.raises(HandshakeError):
        acceptor().welcome(data)
    with pytest.raises(HandshakeError):
        near.prove(data)
    far.welcome(near.hello)
    with pytest.raises(HandshakeError):
        far.admit(data)


def test_credentials_do_not_show_the_secret() -> None:
    assert "sss" not in repr(A)
