"""Who does not belong here gets no link, and leaves a count and one line behind."""

import asyncio
import base64
import socket

import aiohttp
import pytest
from aiohttp import web
from pairs import MakePair

from chainserve.errors import AddressError, LinkLostError
from chainserve.transport import direct
from chainserve.transport.direct import DirectTransport
from chainserve.transport.handshake import Credentials, Dialer
from chainserve.types import PeerId

PROVING = ["direct", "tls", pytest.param("relayed", marks=pytest.mark.process)]


@pytest.mark.parametrize("kind", PROVING)
async def test_a_peer_of_another_swarm_is_refused(
    make_pair: MakePair, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    pair = await make_pair(kind, far_secret=b"x" * 32)
    with pytest.raises(LinkLostError) as caught:
        await pair.near.connect(pair.far_id, pair.far.addresses)
    assert caught.value.peer == pair.far_id
    assert pair.far.num_strangers == 1
    assert pair.accepted.empty()
    (line,) = [record for record in caplog.records if "refused a link" in record.message]
    assert "secret" in line.message
    assert line.exc_info is None


@pytest.mark.parametrize("kind", PROVING)
async def test_a_peer_that_proves_nothing_is_refused(
    make_pair: MakePair, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dialer, "prove", lambda self, welcome: b"trust me")
    pair = await make_pair(kind)
    link = await pair.near.connect(pair.far_id, pair.far.addresses)
    with pytest.raises(LinkLostError):
        await link.receive()
    assert pair.far.num_strangers == 1
    assert pair.accepted.empty()


@pytest.mark.parametrize("kind", ["direct", "tls"])
async def test_another_peer_than_the_one_wanted_is_refused(
    make_pair: MakePair, kind: str, credentials: list[Credentials]
) -> None:
    pair = await make_pair(kind)
    with pytest.raises(LinkLostError, match="another peer"):
        await pair.near.connect(credentials[2].identity.peer_id, pair.far.addresses)
    assert pair.accepted.empty()


async def test_another_certificate_than_the_published_one_is_refused(make_pair: MakePair) -> None:
    pair = await make_pair("tls")
    (address,) = pair.far.addresses
    url, fingerprint = address.split("#sha256=")
    other = f"{int(fingerprint, 16) ^ 1:064x}"
    with pytest.raises(LinkLostError, match="certificate"):
        await pair.near.connect(pair.far_id, [f"{url}#sha256={other}"])
    with pytest.raises(LinkLostError, match="ertificate"):
        await pair.near.connect(pair.far_id, [url])  # nobody we trust has signed it
    assert pair.accepted.empty()


async def test_a_browser_is_refused(make_pair: MakePair) -> None:
    pair = await make_pair("direct")
    (address,) = pair.far.addresses
    async with aiohttp.ClientSession() as session:
        async with session.get(address.replace("ws:", "http:")) as response:
            assert response.status == 403
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await session.ws_connect(address)
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await session.ws_connect(address, headers={direct.HELLO_HEADER: "no base64!"})
    assert pair.far.num_strangers == 3


async def test_a_dialer_that_never_proves_itself_is_given_up(
    make_pair: MakePair, credentials: list[Credentials], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "DEADLINE_S", 0.1)
    pair = await make_pair("direct")
    (address,) = pair.far.addresses
    hello = base64.b64encode(Dialer(credentials[0], pair.far_id, nonce=bytes(32)).hello).decode()
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(address, headers={direct.HELLO_HEADER: hello}) as ws,
    ):
        assert (await ws.receive()).type is aiohttp.WSMsgType.BINARY
        assert (await ws.receive()).type is aiohttp.WSMsgType.CLOSE
    assert pair.far.num_strangers == 1
    assert pair.accepted.empty()


@pytest.mark.parametrize("kind", PROVING)
async def test_a_frame_over_the_hard_limit_closes_the_link(make_pair: MakePair, kind: str) -> None:
    pair = await make_pair(kind, hard_frame_bytes=1_000_000)
    near, far = await pair.connect()
    _, received = await asyncio.gather(near.send(bytes(1_000_000)), far.receive())
    assert len(received) == 1_000_000
    sending = asyncio.create_task(near.send(bytes(1_300_000)))
    with pytest.raises(LinkLostError, match="1000000"):
        await far.receive()
    with pytest.raises(LinkLostError):
        await near.receive()
    await asyncio.gather(sending, return_exceptions=True)


async def test_text_ends_a_link(make_pair: MakePair) -> None:
    pair = await make_pair("direct")
    near, far = await pair.connect()
    assert isinstance(near, direct.DirectLink)
    await near._socket.send_str("hello")
    with pytest.raises(LinkLostError, match="TEXT"):
        await far.receive()


async def test_a_port_in_use_is_named_with_the_way_out(make_pair: MakePair, credentials: list[Credentials]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        transport = DirectTransport(credentials[0], port=port)
        with pytest.raises(AddressError, match=f"127.0.0.1:{port} is in use: give another --port"):
            await transport.listen(lambda link: link.close())


@pytest.mark.parametrize("host", ["192.0.2.7", "no-such-host.invalid"])
async def test_a_host_that_is_not_ours_is_named(credentials: list[Credentials], host: str) -> None:
    with pytest.raises(AddressError, match=f"no address {host}"):
        await DirectTransport(credentials[0], host=host).listen(lambda link: link.close())


async def test_a_port_that_cannot_be_is_named(credentials: list[Credentials]) -> None:
    with pytest.raises(AddressError, match="70000"):
        await DirectTransport(credentials[0], port=70_000).listen(lambda link: link.close())


async def test_links_on_loopback_are_plain_and_others_encrypted(credentials: list[Credentials]) -> None:
    for host, scheme in (("127.0.0.1", "ws://127.0.0.1:"), ("localhost", "ws://localhost:"), ("0.0.0.0", "wss://")):
        transport = DirectTransport(credentials[0], host=host)
        await transport.listen(lambda link: link.close())
        (address,) = transport.addresses
        assert address.startswith(scheme)
        assert "0.0.0.0" not in address
        assert ("#sha256=" in address) == (scheme == "wss://")
        await transport.close()


@pytest.mark.parametrize("kind", ["direct", "tls"])
async def test_small_frames_do_not_wait_for_full_packets(make_pair: MakePair, kind: str) -> None:
    pair = await make_pair(kind)
    for link in await pair.connect():
        assert isinstance(link, direct.DirectLink)
        end = link._transport.get_extra_info("socket")
        assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_direct_address_that_is_none_is_a_lost_link(credentials: list[Credentials]) -> None:
    transport = DirectTransport(credentials[0])
    for address in (
        "ws://",
        "ws://127.0.0.1:1/link",
        "wss://[::1",
        "wss://127.0.0.1:1/link#sha256=zz",
        "wss://127.0.0.1:1/#sha256=00",
    ):
        with pytest.raises(LinkLostError):
            await transport.connect(PeerId("QmNobody"), [address])
    await transport.close()


async def test_other_routes_share_the_port(credentials: list[Credentials]) -> None:
    async def health(request: web.Request) -> web.Response:
        return web.Response(text="well")

    app = web.Application()
    app.router.add_get("/health", health)
    transport = DirectTransport(credentials[0], app=app)
    await transport.listen(lambda link: link.close())
    url = transport.addresses[0].replace("ws:", "http:").replace("/link", "/health")
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert await response.text() == "well"
    await transport.close()
