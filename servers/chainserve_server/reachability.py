"""Whether others can call this server: asked before it listens, so that its owner is told why nobody comes."""

from collections.abc import Iterable
from urllib.parse import urlsplit

from chainserve.transport.calling_back import Called, Door, ask_to_call
from chainserve.transport.direct import DirectTransport
from chainserve.transport.exchange import Exchange
from chainserve.types import PeerId


async def why_unreachable(
    exchange: Exchange, peers: Iterable[PeerId], door: DirectTransport, *, port: int
) -> str | None:
    """What the owner of this server has to know; None if those who could be asked get through.

    `door` is where the server would listen, `port` what its owner gave for it, 0 if that is left to the system.
    AddressError if it cannot listen.
    """
    told = await ask_to_call(exchange, peers, door)
    address = door.addresses[0]
    announced = urlsplit(address).hostname or ""
    return _warning(list(told.values()), Door.of(address).port, given=port, announced=announced)


def _warning(told: list[Called], tried: int, *, given: int, announced: str) -> str | None:
    tries = [called for called in told if called.host]
    failed = [called for called in tries if called.error]
    if not failed:
        return None
    elsewhere = "" if failed[0].host == announced else f" (where it asked from; it is announced at {announced})"
    which = f"ports {given} and {given + 1}" if given else "the ports (choose them with --port)"
    return (
        f"warning: {len(failed)} of {len(tries)} servers that were asked cannot call this one at "
        f"{failed[0].host}, port {tried}{elsewhere}: {failed[0].error}\n"
        f"  Open {which} in its firewall; a router has to pass them on, and its address goes into --public-host. "
        f"Until then others reach this server by a relay, which is slower, or not at all."
    )
