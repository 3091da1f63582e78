"""Whether others can call a machine: it listens, asks peers to call it there, and is told how that went.

A peer calls only the very address that the question came from, and speaks only the handshake there: nobody can have it
call others.
"""

import asyncio
import re
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Self

from chainserve.errors import LinkLostError, ProtocolError
from chainserve.protocol.messages import Topic
from chainserve.transport.direct import PATH, DirectTransport
from chainserve.transport.exchange import Exchange
from chainserve.transport.interface import Link
from chainserve.types import PeerId

CALL_S = 3.0
MAX_ASKED = 3
MAX_TOLD_BYTES = 400
_NAME = re.compile(r"(\d{1,5})(?:#([0-9a-f]{64}))?", re.ASCII)
_ADDRESS = re.compile(r"wss?://.*:(\d+)/[^#]*(?:#sha256=([0-9a-f]{64}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Door:
    """Where to call: a port, with the fingerprint of its certificate if it speaks TLS."""

    port: int
    fingerprint: str = ""

    @classmethod
    def of(cls, address: str) -> Self:
        """That of a transport which listens at `address`."""
        match = _ADDRESS.fullmatch(address)
        assert match is not None, address
        return cls(int(match[1]), match[2] or "")

    @classmethod
    def parse(cls, name: str) -> Self:
        """What `name` gives; ProtocolError if it is none."""
        match = _NAME.fullmatch(name)
        if match is None or not 0 < int(match[1]) < 2**16:
            raise ProtocolError(f"not a port to call at: {reprlib.repr(name)}")
        return cls(int(match[1]), match[2] or "")

    @property
    def name(self) -> str:
        """As a question has it."""
        return f"{self.port}#{self.fingerprint}" if self.fingerprint else str(self.port)

    def address(self, host: str) -> str:
        shown = f"[{host}]" if ":" in host else host
        scheme, fragment = ("wss", f"#sha256={self.fingerprint}") if self.fingerprint else ("ws", "")
        return f"{scheme}://{shown}:{self.port}{PATH}{fragment}"


@dataclass(frozen=True, slots=True)
class Called:
    """How a call went, as the peer tells that made it."""

    host: str
    """The address that it called at: how this machine looks from there. Empty if it did not call."""
    error: str = ""
    """Why it did not get through."""

    @property
    def body(self) -> bytes:
        return f"{self.host}\n{self.error}".encode()

    @classmethod
    def read(cls, body: bytes) -> Self:
        """What a peer answered, whatever that is, so that it can be shown."""
        parts = body[:MAX_TOLD_BYTES].decode(errors="replace").partition("\n")
        host, _, error = ("".join(char if char.isprintable() else "?" for char in part) for part in parts)
        return cls(host, error)


async def ask_to_call(exchange: Exchange, peers: Iterable[PeerId], door: DirectTransport) -> dict[PeerId, Called]:
    """What the first of `peers` tell that were asked to call at `door`, which listens for as long as that takes.

    AddressError if it cannot listen.
    """

    async def accept(_: Link) -> None:
        """The call got through: nothing more is said."""

    await door.listen(accept)
    name = Door.of(door.addresses[0]).name

    async def ask(peer: PeerId) -> Called:
        try:
            body = await exchange.ask(peer, Topic.REACH, name)
        except LinkLostError as error:
            return Called("", f"was not asked: {error.reason}")
        return Called.read(body) if body else Called("", "does not call back: its version is older")

    asked = list(islice(peers, MAX_ASKED))
    try:
        return dict(zip(asked, await asyncio.gather(*map(ask, asked)), strict=True))
    finally:
        await door.close()


async def call_back(direct: DirectTransport, peer: PeerId, name: str) -> bytes:
    """Answer `peer`, which asks to be called at a port."""
    host = direct.host_of(peer)
    if host is None:
        return Called("", "no direct link stands to call back along").body
    try:
        door = Door.parse(name)
        async with asyncio.timeout(CALL_S):
            link = await direct.connect(peer, [door.address(host)])
    except (ProtocolError, LinkLostError) as error:
        return Called(host, error.reason if isinstance(error, LinkLostError) else str(error)).body
    except TimeoutError:
        return Called(host, f"no answer within {CALL_S:g} s").body
    await link.close()
    return Called(host).body
