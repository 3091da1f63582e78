"""Relayed links: streams through libp2p's daemon, which finds ways through NATs where no direct link can be made.

Several times slower than direct links. libp2p has proved the other end's peer id before we hear of it; our own
handshake adds the swarm's secret. Each frame follows its length in 4 bytes, little-endian.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress

from hivemind.p2p import P2P, P2PDaemonError, PeerID
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo

from chainserve.errors import HandshakeError, LinkLostError
from chainserve.transport.handshake import (
    DEADLINE_S,
    MAX_MESSAGE_BYTES,
    NONCE_BYTES,
    Acceptor,
    Credentials,
    Dialer,
)
from chainserve.transport.interface import HARD_FRAME_BYTES, AcceptLink
from chainserve.types import PeerId

logger = logging.getLogger(__name__)

PROTOCOL = "chainserve/link"
LENGTH_BYTES = 4
CLOSE_S = 0.2  # for the daemon to take our last bytes


class RelayedTransport:
    """Streams over a libp2p daemon that the caller has started and will shut down."""

    def __init__(self, p2p: P2P, credentials: Credentials, *, hard_frame_bytes: int = HARD_FRAME_BYTES) -> None:
        self._p2p = p2p
        self._credentials = credentials
        self._hard_frame_bytes = hard_frame_bytes
        self._accept: AcceptLink | None = None
        self._links: set[RelayedLink] = set()
        self._calls: set[asyncio.Task[None]] = set()
        self.addresses: tuple[str, ...] = ()
        self.num_strangers = 0

    async def listen(self, accept: AcceptLink) -> None:
        self._accept = accept
        await self._p2p.add_binary_stream_handler(PROTOCOL, self._take_call)
        self.addresses = tuple(map(str, await self._p2p.get_visible_maddrs(latest=True)))

    def can_reach(self, addresses: Sequence[str]) -> bool:
        return any("/p2p/" in address for address in addresses)

    async def connect(self, peer: PeerId, addresses: Sequence[str]) -> "RelayedLink":
        """As in the interface; the daemon knows from its own routing where the peer is."""
        try:
            wanted = PeerID.from_base58(peer)
            _, reader, writer = await self._p2p.call_binary_stream_handler(wanted, PROTOCOL)
        except (P2PDaemonError, OSError, EOFError, ValueError) as error:
            raise LinkLostError(peer, f"libp2p: {error}") from None
        link = self._link(reader, writer, peer)
        dialer = Dialer(self._credentials, peer, nonce=secrets.token_bytes(NONCE_BYTES))
        try:
            await link.send(dialer.hello)
            await link.send(dialer.prove(await link.receive()))
        except HandshakeError as error:
            await link.close()
            raise LinkLostError(peer, str(error)) from None
        except LinkLostError:
            await link.close()
            raise LinkLostError(peer, "hung up on us: another swarm or version is there") from None
        except asyncio.CancelledError:
            await link.close()
            raise
        link.max_frame_bytes = self._hard_frame_bytes
        return link

    async def close(self) -> None:
        if self._accept is not None:
            with suppress(P2PDaemonError, OSError, EOFError):  # the daemon may be gone before us
                await self._p2p.remove_binary_stream_handler(PROTOCOL)
        await asyncio.gather(*(link.close() for link in list(self._links)))
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def _take_call(self, info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a call; returns when the link is gone. hivemind runs each in its own task."""
        assert self._accept is not None
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        link = self._link(reader, writer, PeerId(info.peer_id.to_base58()))
        acceptor = Acceptor(self._credentials, nonce=secrets.token_bytes(NONCE_BYTES))
        try:
            async with asyncio.timeout(DEADLINE_S):
                await link.send(acceptor.welcome(await link.receive()))
                acceptor.admit(await link.receive())
            if acceptor.dialer != link.peer:
                raise HandshakeError(f"claims to be {acceptor.dialer}")
        except (HandshakeError, LinkLostError, TimeoutError) as error:
            self.num_strangers += 1
            logger.warning("refused a link from %s: %s", link.peer, error)
        else:
            link.max_frame_bytes = self._hard_frame_bytes
            await self._accept(link)
        finally:
            await link.close()

    def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: PeerId) -> "RelayedLink":
        link = RelayedLink(reader, writer, peer=peer, on_close=self._links.discard)
        self._links.add(link)
        return link


class RelayedLink:
    """One end of a stream through the daemon."""

    kind = "relayed"

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        peer: PeerId,
        on_close: Callable[["RelayedLink"], None],
    ) -> None:
        self.peer = peer
        self.num_arrivals = 0
        self.max_frame_bytes = MAX_MESSAGE_BYTES  # until the handshake is done
        self._reader = reader
        self._writer = writer
        self._on_close = on_close
        self._pieces: list[bytes] = []  # of the frame that is arriving
        self._missing: int | None = None  # bytes of it that have not arrived; None between frames
        self._lost = ""  # why, once it is
        self._closed = False

    async def send(self, frame: bytes) -> None:
        if self._lost or self._writer.is_closing():
            raise LinkLostError(self.peer, self._lost or "the stream broke")
        self._writer.write(len(frame).to_bytes(LENGTH_BYTES, "little") + frame)
        try:
            await self._writer.drain()
        except ConnectionError:
            raise LinkLostError(self.peer, self._lost or "the stream broke") from None

    async def receive(self) -> bytes:
        try:
            if self._missing is None:
                length = await self._reader.readexactly(LENGTH_BYTES)
                self._missing = int.from_bytes(length, "little")
                if self._missing > self.max_frame_bytes:
                    self._lost = f"sent a frame of {self._missing} bytes, at most {self.max_frame_bytes}"
                    await self.close()
            while self._missing and not self._lost:
                piece = await self._reader.read(self._missing)
                if not piece:
                    raise EOFError
                self._pieces.append(piece)
                self._missing -= len(piece)
                self.num_arrivals += 1
        except (EOFError, ConnectionError):
            self._lost = self._lost or "closed by the other side"
        if self._lost:
            raise LinkLostError(self.peer, self._lost)
        frame = b"".join(self._pieces)
        self._pieces.clear()
        self._missing = None
        return frame

    async def close(self) -> None:
        self._lost = self._lost or "closed by this side"
        if self._closed:
            return
        self._closed = True
        self._writer.close()
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(CLOSE_S):
                await self._writer.wait_closed()
        self._writer.transport.abort()
        self._on_close(self)
