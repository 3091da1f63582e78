"""What lies between this machine and a swarm: its token, its servers, their versions, the time, the way back."""

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from chainserve import __version__
from chainserve.errors import AddressError, ChainserveError, TokenError, describe_blocks
from chainserve.runtime.hosts import is_loopback
from chainserve.swarm.identity import Identity
from chainserve.swarm.records import Announcement, ServerState
from chainserve.swarm.token import JoinToken
from chainserve.swarm.view import View
from chainserve.transport.calling_back import Called, Door, ask_to_call
from chainserve.transport.direct import DirectTransport
from chainserve.transport.handshake import Credentials
from chainserve.types import PeerId
from chainserve_client.doctor.finding import Finding, failed, note, ok, warning
from chainserve_client.join import light_network
from chainserve_client.network import Network
from chainserve_client.status import Way, measure
from chainserve_client.tables import count, printable, short
from chainserve_client.units import format_age, format_seconds

MAX_AHEAD_S = 2.0
SOON_S = 3 * 86_400.0


async def swarm(text: str, *, host: str | None, port: int) -> AsyncIterator[Finding]:
    """Join as a client and look; `host` and `port` are where a server of this machine would listen."""
    try:
        token = JoinToken.decode(text, now=time.time())
    except TokenError as error:
        fact, _, advice = str(error).partition(": ")
        yield failed("token", fact, advice)
        return
    yield _expiry(token, now=time.time())
    identity = Identity.generate()
    try:
        network = await light_network(token, identity)  # by an identity that we keep: others are to call us by it
    except ChainserveError as error:
        yield failed("swarm", str(error), "`chainserve token TOKEN` shows who of those that it names answers")
        return
    try:
        view = await network.swarm.refresh()
        async for finding in _look(network, view):
            yield finding
        if host is not None:
            yield await reachable(network, view, Credentials(identity, token.secret), host=host, port=port)
    finally:
        await network.close()


def _expiry(token: JoinToken, *, now: float) -> Finding:
    fact = f"of swarm {token.swarm}, names {count(len(token.direct), 'server')}"
    if token.expires_at is None:
        return ok("token", f"{fact}, never expires")
    fact += f", expires in {format_age(token.expires_at - now)}"
    if token.expires_at - now < SOON_S:
        return warning("token", fact, "ask a member of the swarm for a new one: a server that starts prints one")
    return ok("token", fact)


async def _look(network: Network, view: View) -> AsyncIterator[Finding]:
    ways = await measure(network.links, view)
    yield servers(view, ways)
    for digest, of_model in view.models().items():
        yield blocks(of_model, view.missing(digest))
    yield versions({server.version for server in view.servers.values()})
    yield clock(network.swarm.now() - time.time())


def servers(view: View, ways: "dict[PeerId, Way]") -> Finding:
    """Which servers answer here."""
    silent = [short(peer) for peer in view.servers if peer not in ways]
    fact = f"servers that answer: {len(ways)} of {len(view.servers)}"
    if ways:
        fact += f", the nearest after {format_seconds(min(way.round_trip_s for way in ways.values()))}"
    if not ways:
        return failed("swarm", fact, "open their ports where they stand, or check this machine's firewall")
    if silent:
        advice = f"open the ports of {', '.join(silent)} there: chains over them cannot be used from here"
        return warning("swarm", fact, advice)
    return ok("swarm", fact)


def blocks(of_model: Sequence[Announcement], missing: Sequence[int]) -> Finding:
    """Whether the model can be asked."""
    model = printable(of_model[0].model)
    if not missing:
        return ok("blocks", f"{model}: every block is served")
    fact = f"{model}: nobody serves {describe_blocks(missing)}"
    if num_loading := sum(server.state is ServerState.LOADING for server in of_model):
        return warning("blocks", fact, f"wait: {count(num_loading, 'server')} of it load blocks now")
    return failed("blocks", fact, "start more servers: `chainserve status TOKEN` says how much is missing")


def versions(theirs: set[str]) -> Finding:
    """Our version beside theirs."""
    others = sorted(printable(version) for version in theirs - {__version__})
    if not others:
        return ok("version", f"{__version__}, as all servers of the swarm")
    fact = f"this is {__version__}, servers of the swarm run {', '.join(others)}"
    return warning("version", fact, "update the older ones: pip install --upgrade chainserve")


def clock(ahead_s: float) -> Finding:
    """By how much the swarm's time is ahead of this machine's."""
    fact = f"{format_seconds(abs(ahead_s))} {'behind' if ahead_s > 0 else 'ahead of'} the swarm's"
    if abs(ahead_s) < MAX_AHEAD_S:
        return ok("clock", fact)
    advice = "the swarm goes by its own time, but logs and tokens do not: set the clock (timedatectl set-ntp true)"
    return warning("clock", fact, advice)


async def reachable(
    network: Network,
    view: View,
    credentials: Credentials,
    *,
    host: str,
    port: int,
    listening: Callable[..., DirectTransport] = DirectTransport,
) -> Finding:
    """Listen as a server would, and have servers of the swarm call here."""
    door = listening(credentials, host=host, port=port)
    try:
        told = await ask_to_call(network.exchange, view.servers, door)
    except AddressError as error:
        fact, _, advice = str(error).partition(": ")
        return failed("reachable", fact, f"{advice}; if a server of yours listens there, ask once it is stopped")
    return _told(told, Door.of(door.addresses[0]).port)


def _told(told: Mapping[PeerId, Called], port: int) -> Finding:
    """What servers tell that were asked to call at our port."""
    answers = list(told.values())
    through = [answer for answer in answers if not answer.error and answer.host]
    if through and all(is_loopback(answer.host) for answer in through):
        return note("reachable", "only servers of this very machine could be asked to call it, and they get through")
    tried = [answer for answer in answers if answer.error and answer.host]
    if through:
        fact = f"others reach this machine at {through[0].host}:{port}"
        if tried:
            advice = f"not all do: {tried[0].error}"
            return warning("reachable", fact, advice)
        return ok("reachable", fact)
    if tried:
        advice = (
            f"open the port, and the one after it, in this machine's firewall and forward them at the router; or let "
            f"others relay, which is slower. They said: {tried[0].error}"
        )
        return failed("reachable", f"others do not get through to {tried[0].host}:{port}", advice)
    reasons = [f"{short(peer)} {answer.error}" for peer, answer in told.items()]
    reason = reasons[0] if reasons else "there is no server to ask"
    return note("reachable", f"not known: {reason}")
