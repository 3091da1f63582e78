"""`chainserve token`: what a join token holds, but for its secret, and whether those that it names answer."""

import argparse
import asyncio
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from chainserve.errors import LinkLostError
from chainserve.swarm.token import DirectAddress, JoinToken
from chainserve_client.examples import TOKEN_HELP
from chainserve_client.tables import count, printable
from chainserve_client.units import format_age, format_seconds

ANSWER_S = 4.0
_MULTIADDR = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/([^/]+)/tcp/(\d+)(?:/.*)?/p2p/(\w+)")


@dataclass(frozen=True, slots=True)
class Asked:
    """An address that the token names, and how it answered."""

    peer: str
    address: str
    is_direct: bool
    seconds: float | None = None
    """To make a link, or to connect where that takes libp2p; None: no answer."""
    error: str = ""

    def lines(self) -> list[str]:
        """The address without its certificate, and the answer."""
        answer = f"answers, {format_seconds(self.seconds)}" if self.seconds is not None else printable(self.error)
        kind = "server" if self.is_direct else "DHT"
        return [f"{self.peer[-6:]}  {kind:<6}  {self.address.partition('#')[0]}", f"                {answer}"]


@dataclass(frozen=True, slots=True)
class TokenReport:
    """What there is to say about a token."""

    token: JoinToken
    asked: tuple[Asked, ...]
    now: float

    @property
    def is_expired(self) -> bool:
        return self.token.expires_at is not None and self.token.expires_at <= self.now

    @property
    def is_good(self) -> bool:
        """Whether one can join with it now."""
        return not self.is_expired and any(asked.seconds is not None for asked in self.asked)


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command and its options."""
    parser = commands.add_parser("token", help="show what a join token holds, and who of it answers")
    parser.add_argument("token", metavar="TOKEN", help=TOKEN_HELP)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


async def read_token(text: str, *, clock: Callable[[], float] = time.time) -> TokenReport:
    """Look at a token and ask those that it names, all at once; TokenError if it is none."""
    token = JoinToken.decode(text, now=0.0)  # one that has expired is shown too
    direct = [_ask_directly(token, address) for address in token.direct]
    asked = await asyncio.gather(*direct, *map(_connect, token.bootstrap))
    return TokenReport(token, tuple(asked), clock())


async def _ask_directly(token: JoinToken, address: DirectAddress) -> Asked:
    """Make a link with a server: it proves that it is the one, and of this swarm."""
    from chainserve.swarm.identity import Identity
    from chainserve.transport.direct import DirectTransport
    from chainserve.transport.handshake import Credentials

    transport = DirectTransport(Credentials(Identity.generate(), token.secret))
    began_s = time.monotonic()
    try:
        async with asyncio.timeout(ANSWER_S):
            await transport.connect(address.peer, [address.url])
    except LinkLostError as error:
        reason = error.reason.removeprefix(address.url.partition("#")[0] + ": ")
        return Asked(address.peer, address.url, is_direct=True, error=reason)
    except TimeoutError:
        return Asked(address.peer, address.url, is_direct=True, error=f"no answer within {ANSWER_S:g} s")
    finally:
        await transport.close()
    return Asked(address.peer, address.url, is_direct=True, seconds=time.monotonic() - began_s)


async def _connect(multiaddr: str) -> Asked:
    """See whether somebody listens there. That it is the peer which is named would take libp2p to know."""
    match = _MULTIADDR.fullmatch(multiaddr)
    peer = multiaddr.rpartition("/")[2]
    if match is None:
        return Asked(peer, multiaddr, is_direct=False, error="not tried: no plain TCP")
    began_s = time.monotonic()
    try:
        async with asyncio.timeout(ANSWER_S):
            _, writer = await asyncio.open_connection(match[2], int(match[3]))
    except TimeoutError:
        return Asked(peer, multiaddr, is_direct=False, error=f"no answer within {ANSWER_S:g} s")
    except OSError as error:
        return Asked(peer, multiaddr, is_direct=False, error=error.strerror or str(error))
    writer.close()
    return Asked(peer, multiaddr, is_direct=False, seconds=time.monotonic() - began_s)


def to_text(report: TokenReport) -> str:
    """The token for people."""
    token = report.token
    lines = [f"swarm    {token.swarm}", f"expires  {_expiry(report)}", "secret   not shown: whoever has it is a member"]
    names = f"names    {count(len(token.direct), 'server')}, {count(len(token.bootstrap), 'peer')} of the DHT"
    return "\n".join([*lines, names, "", *(line for one in report.asked for line in one.lines())])


def _expiry(report: TokenReport) -> str:
    expires_at = report.token.expires_at
    if expires_at is None:
        return "never"
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(expires_at))
    if report.is_expired:
        return f"{when}, {format_age(report.now - expires_at)} ago: ask a member of the swarm for a new token"
    return f"{when}, in {format_age(expires_at - report.now)}"


def to_json(report: TokenReport) -> str:
    token = report.token
    content = {
        "swarm": token.swarm,
        "expires_at": token.expires_at,
        "is_expired": report.is_expired,
        "is_good": report.is_good,
        "addresses": [
            {
                "peer": one.peer,
                "address": one.address,
                "is_direct": one.is_direct,
                "answers_in_s": one.seconds,
                "error": one.error or None,
            }
            for one in report.asked
        ],
    }
    return json.dumps(content, indent=2, allow_nan=False)
