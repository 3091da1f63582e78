"""Direct links: WebSockets, over TLS once they leave the machine.

The handshake costs no round trip of its own: the hello travels in the upgrade request, so that a stranger gets a
plain 403, and the welcome follows the upgrade. Large frames travel in pieces: a message of exactly PIECE_BYTES is
followed by more of the same frame, a shorter one ends it.
"""

import asyncio
import base64
import errno
import logging
import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, cast

import aiohttp
from aiohttp import web

from chainserve.errors import AddressError, HandshakeError, LinkLostError
from chainserve.runtime.hosts import is_loopback
from chainserve.transport.handshake import DEADLINE_S, NONCE_BYTES, Acceptor, Credentials, Dialer
from chainserve.transport.interface import HARD_FRAME_BYTES, AcceptLink
from chainserve.transport.tls import self_signed
from chainserve.types import PeerId

logger = logging.getLogger(__name__)

PATH = "/link"
HELLO_HEADER = "X-Chainserve-Hello"
PIECE_BYTES = 256 * 2**10  # shows signs of life within a second at 2 Mbit/s, and bounds what a stranger can send
CLOSE_S = 0.2  # for the other end to take our last bytes

_Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


class DirectTransport:
    """WebSockets at one port of ours. Routes for other purposes may be added to `app` before `listen`.

    `advertised_host` is what others should dial, if not `host` itself: behind a NAT, or where `host` is 0.0.0.0.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        advertised_host: str | None = None,
        app: web.Application | None = None,
        hard_frame_bytes: int = HARD_FRAME_BYTES,
    ) -> None:
        self._credentials = credentials
        self._host = host
        self._port = port
        self._advertised_host = advertised_host
        self._hard_frame_bytes = hard_frame_bytes
        self._accept: AcceptLink | None = None
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None
        self._links: set[DirectLink] = set()
        self.app = app if app is not None else web.Application()
        self.app.router.add_get(PATH, self._handle)
        self.addresses: tuple[str, ...] = ()
        self.num_strangers = 0

    async def listen(self, accept: AcceptLink) -> None:
        self._accept = accept
        if not 0 <= self._port < 2**16:
            raise AddressError(f"there is no port {self._port}: give one below 65536, or 0 for one that is free")
        tls, fingerprint = (None, "") if is_loopback(self._host) else self_signed()
        self._runner = web.AppRunner(self.app, access_log=None, shutdown_timeout=CLOSE_S)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port, ssl_context=tls).start()
        except OSError as error:
            await self._runner.cleanup()
            raise AddressError(_cannot_bind(error, self._host, self._port)) from None
        port = self._runner.addresses[0][1]
        host = self._advertised_host or _dialable(self._host)
        host = f"[{host}]" if ":" in host else host
        scheme, fragment = ("wss", f"#sha256={fingerprint}") if tls else ("ws", "")
        self.addresses = (f"{scheme}://{host}:{port}{PATH}{fragment}",)

    def can_reach(self, addresses: Sequence[str]) -> bool:
        return any(_is_direct(address) for address in addresses)

    def host_of(self, peer: PeerId) -> str | None:
        """The address that a direct link with `peer` comes from, or goes to; None if there is none."""
        for link in self._links:
            if link.peer == peer and (name := link.peer_name):
                return name
        return None

    async def connect(self, peer: PeerId, addresses: Sequence[str]) -> "DirectLink":
        reasons = []
        for address in filter(_is_direct, addresses):
            try:
                return await self._dial(peer, address)
            except (aiohttp.ClientError, OSError, ValueError, HandshakeError, LinkLostError) as error:
                reasons.append(f"{address.partition('#')[0]}: {_reason(error)}")
        raise LinkLostError(peer, "; ".join(reasons) or "it publishes no direct address")

    async def close(self) -> None:
        await asyncio.gather(*(link.close() for link in list(self._links)))
        if self._session is not None:
            await self._session.close()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _dial(self, peer: PeerId, address: str) -> "DirectLink":
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), ws_response_class=_ClientSocket
            )
        url, _, fingerprint = address.partition("#sha256=")
        dialer = Dialer(self._credentials, peer, nonce=secrets.token_bytes(NONCE_BYTES))
        socket = await self._session.ws_connect(
            url,
            headers={HELLO_HEADER: base64.b64encode(dialer.hello).decode()},
            ssl=aiohttp.Fingerprint(bytes.fromhex(fingerprint)) if fingerprint else True,
            autoping=False,
            max_msg_size=PIECE_BYTES + 1,  # aiohttp takes less than this
            timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
        )
        assert isinstance(socket, _ClientSocket)
        assert socket.transport is not None
        link = self._link(socket, socket.transport, peer)
        try:
            await link.send(dialer.prove(await link.receive()))
        except (HandshakeError, LinkLostError, asyncio.CancelledError):
            await link.close()
            raise
        return link

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        """Take a call at PATH; returns when the link is gone."""
        assert self._accept is not None
        acceptor = Acceptor(self._credentials, nonce=secrets.token_bytes(NONCE_BYTES))
        try:
            welcome = acceptor.welcome(base64.b64decode(request.headers.get(HELLO_HEADER, "")))
        except (HandshakeError, ValueError) as error:
            self._count_stranger(request, error)
            raise web.HTTPForbidden(text=str(error)) from None
        socket = web.WebSocketResponse(autoping=False, compress=False, max_msg_size=PIECE_BYTES + 1, timeout=CLOSE_S)
        await socket.prepare(request)
        if request.transport is None:  # gone already
            return socket
        link = self._link(socket, request.transport, acceptor.dialer)
        try:
            async with asyncio.timeout(DEADLINE_S):
                await link.send(welcome)
                acceptor.admit(await link.receive())
        except (HandshakeError, LinkLostError, TimeoutError) as error:
            self._count_stranger(request, error)
        else:
            await self._accept(link)
        finally:
            await link.close()
        return socket

    def _link(self, socket: _Socket, transport: asyncio.Transport, peer: PeerId) -> "DirectLink":
        link = DirectLink(
            socket, transport, peer=peer, hard_frame_bytes=self._hard_frame_bytes, on_close=self._links.discard
        )
        self._links.add(link)
        return link

    def _count_stranger(self, request: web.Request, error: Exception) -> None:
        self.num_strangers += 1
        logger.warning("refused a link from %s: %s", request.remote, _reason(error))


class _ClientSocket(aiohttp.ClientWebSocketResponse):
    """aiohttp's, which does not tell its transport otherwise."""

    def __init__(
        self, reader: Any, writer: Any, protocol: Any, response: aiohttp.ClientResponse, *more: Any, **kw: Any
    ):
        super().__init__(reader, writer, protocol, response, *more, **kw)
        assert response.connection is not None
        self.transport = response.connection.transport


class DirectLink:
    """One end of a WebSocket."""

    kind = "direct"

    def __init__(
        self,
        socket: _Socket,
        transport: asyncio.Transport,
        *,
        peer: PeerId,
        hard_frame_bytes: int,
        on_close: Callable[["DirectLink"], None],
    ) -> None:
        self.peer = peer
        self.num_arrivals = 0
        self._socket = socket
        self._transport = transport
        self._hard_frame_bytes = hard_frame_bytes
        self._on_close = on_close
        self._sending = asyncio.Lock()  # pieces of two frames must not mix
        self._pieces: list[bytes] = []  # of the frame that is arriving
        self._lost = ""  # why, once it is
        self._closed = False

    @property
    def peer_name(self) -> str | None:
        """The IP address at the other end."""
        name = self._transport.get_extra_info("peername")
        return str(name[0]) if name else None

    async def send(self, frame: bytes) -> None:
        async with self._sending:
            if self._lost:
                raise LinkLostError(self.peer, self._lost)
            try:
                await self._send_pieces(frame)
            except ConnectionError:
                raise LinkLostError(self.peer, self._lost or "the connection broke") from None

    async def _send_pieces(self, frame: bytes) -> None:
        if len(frame) < PIECE_BYTES:
            await self._socket.send_bytes(frame)
            return
        try:
            for start in range(0, len(frame) + 1, PIECE_BYTES):
                await self._socket.send_bytes(frame[start : start + PIECE_BYTES])
        except asyncio.CancelledError:
            self._lost = "a send was cancelled within a frame"
            self._transport.abort()
            raise

    async def receive(self) -> bytes:
        while not self._lost:
            message = await self._socket.receive()
            if message.type is not aiohttp.WSMsgType.BINARY:
                self._lost = self._lost or _reason_of_end(message)
                break
            self.num_arrivals += 1
            if len(message.data) < PIECE_BYTES and not self._pieces:
                return cast(bytes, message.data)
            self._pieces.append(message.data)
            if sum(map(len, self._pieces)) > self._hard_frame_bytes:
                self._lost = f"sent a frame of more than {self._hard_frame_bytes} bytes"
                self._pieces.clear()
                await self.close()
            elif len(message.data) < PIECE_BYTES:
                frame = b"".join(self._pieces)
                self._pieces.clear()
                return frame
        raise LinkLostError(self.peer, self._lost)

    async def close(self) -> None:
        self._lost = self._lost or "closed by this side"
        if self._closed:
            return
        self._closed = True
        unsent = not self._transport.is_closing() and self._transport.get_write_buffer_size()
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(CLOSE_S):
                await self._socket.close()
                if unsent:  # aiohttp does not wait for it
                    await asyncio.sleep(CLOSE_S)
        self._transport.abort()
        self._on_close(self)


def _is_direct(address: str) -> bool:
    return address.startswith(("ws://", "wss://"))


def _dialable(host: str) -> str:
    """`host`, or the address this machine uses to reach others if it stands for all of them."""
    if host not in ("", "0.0.0.0", "::"):
        return host
    family, elsewhere = (socket.AF_INET6, "2001:db8::1") if host == "::" else (socket.AF_INET, "192.0.2.1")
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((elsewhere, 9))  # sends nothing
        except OSError:
            return "::1" if host == "::" else "127.0.0.1"
        return cast(str, probe.getsockname()[0])


def _cannot_bind(error: OSError, host: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"{host}:{port} is in use: give another --port, or 0 for one that is free"
        case errno.EACCES:
            return f"{host}:{port} is not ours to use: give a --port above 1023"
        case _:
            return f"this machine has no address {host}: give one of its own as --host, or 0.0.0.0 for all"


def _reason(error: Exception) -> str:
    match error:
        case aiohttp.WSServerHandshakeError(status=403):
            return "another peer, swarm or version is there"
        case aiohttp.ServerFingerprintMismatch():
            return "its certificate is not the published one"
        case LinkLostError(reason=reason):
            return reason
        case TimeoutError():
            return f"no answer within {DEADLINE_S:g} s"
        case _:
            return str(error) or type(error).__name__


def _reason_of_end(message: aiohttp.WSMessage) -> str:
    match message.type:
        case aiohttp.WSMsgType.ERROR:
            return str(message.data) or type(message.data).__name__
        case aiohttp.WSMsgType.CLOSE | aiohttp.WSMsgType.CLOSED | aiohttp.WSMsgType.CLOSING:
            return "closed by the other side"
        case other:
            return f"sent a WebSocket {other.name} message"
