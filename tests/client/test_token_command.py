"""`chainserve token`: what it shows of a token, and what it finds of those that it names."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from chainserve.errors import TokenError
from chainserve.swarm.identity import Identity
from chainserve.swarm.token import DirectAddress, JoinToken
from chainserve.transport.direct import DirectTransport
from chainserve.transport.handshake import Credentials
from chainserve.transport.interface import Link
from chainserve_client.token_command import TokenReport, read_token, to_json, to_text

SECRET = bytes(range(32))
DAY_S = 86_400.0
NOW = 1_800_000_000.0


@asynccontextmanager
async def listening(secret: bytes = SECRET) -> AsyncIterator[DirectAddress]:
    """A server's door."""
    identity = Identity.generate()
    transport = DirectTransport(Credentials(identity, secret))

    async def accept(_: Link) -> None:
        pass

    await transport.listen(accept)
    try:
        yield DirectAddress(identity.peer_id, transport.addresses[0])
    finally:
        await transport.close()


def dht(port: int) -> str:
    return f"/ip4/127.0.0.1/tcp/{port}/p2p/{Identity.generate().peer_id}"


async def report(*direct: DirectAddress, bootstrap: str, expires_at: float | None = NOW + 2 * DAY_S) -> TokenReport:
    token = JoinToken("a swarm", SECRET, (bootstrap,), expires_at, direct)
    return await read_token(token.encode(), clock=lambda: NOW)


async def test_a_server_answers_if_it_proves_to_be_of_this_swarm() -> None:
    async with listening() as ours, listening(b"x" * 32) as foreign:
        port = int(ours.url.rsplit(":", 1)[1].partition("/")[0])
        found = await report(ours, foreign, bootstrap=dht(port))
    first, second, third = found.asked
    assert first.seconds is not None
    assert (second.seconds, second.error) == (None, "another peer, swarm or version is there")
    assert third.seconds is not None
    assert found.is_good
    text = to_text(found)
    assert "swarm    a swarm" in text
    assert "2027-01-17 08:00 UTC, in 2 d 0 h" in text
    assert "another peer, swarm or version is there" in text


async def test_nobody_there_is_said_and_no_use() -> None:
    gone = DirectAddress(Identity.generate().peer_id, "ws://127.0.0.1:9/link")
    found = await report(gone, bootstrap=dht(9))
    assert [one.seconds for one in found.asked] == [None, None]
    assert all("Connect" in one.error for one in found.asked)
    assert not found.is_good


async def test_what_is_not_plain_tcp_is_not_tried() -> None:
    udp = f"/ip4/127.0.0.1/udp/4001/quic-v1/p2p/{Identity.generate().peer_id}"
    [asked] = (await report(bootstrap=udp)).asked
    assert asked.error == "not tried: no plain TCP"


async def test_an_expired_token_is_shown_and_no_use() -> None:
    async with listening() as ours:
        found = await report(ours, bootstrap=dht(9), expires_at=NOW - DAY_S)
    assert not found.is_good
    assert "1 d 0 h ago: ask a member of the swarm for a new token" in to_text(found)
    assert json.loads(to_json(found))["is_expired"] is True


async def test_one_that_never_expires_says_so() -> None:
    assert "expires  never" in to_text(await report(bootstrap=dht(9), expires_at=None))


async def test_the_secret_is_shown_nowhere() -> None:
    found = await report(bootstrap=dht(9))
    for shown in (to_text(found), to_json(found), repr(found)):
        assert SECRET.hex() not in shown
        assert repr(SECRET)[2:-1] not in shown


async def test_what_is_no_token_is_an_error() -> None:
    with pytest.raises(TokenError, match="begins with chainserve1"):
        await asyncio.wait_for(read_token("hello"), 1)
