"""Enter a swarm as a client: a peer that listens nowhere and is gone when it closes."""

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from importlib.util import find_spec

from chainserve.errors import JoinError
from chainserve.protocol.messages import Topic
from chainserve.swarm.identity import Identity
from chainserve.swarm.interface import Swarm
from chainserve.swarm.light import LightSwarm
from chainserve.swarm.token import JoinToken
from chainserve.transport.direct import DirectTransport
from chainserve.transport.handshake import Credentials
from chainserve.transport.interface import Transport
from chainserve.transport.links import Links
from chainserve.types import PeerId
from chainserve_client.network import Network

logger = logging.getLogger(__name__)


async def join(token: str) -> Network:
    """Join the swarm of `token`; TokenError or JoinError if that cannot be.

    Servers that take direct links are asked for all there is to know. Where there are none, and hivemind is
    installed, the client joins the DHT.
    """
    invitation = JoinToken.decode(token, now=time.time())
    try:
        return await join_light(invitation)
    except JoinError as error:
        if find_spec("hivemind") is None:
            raise
        logger.info("joining the DHT: %s", error)
    return await join_dht(invitation)


async def join_light(invitation: JoinToken) -> Network:
    """Join over direct links alone, without hivemind; JoinError if no server of the token can be reached so."""
    return await light_network(invitation, Identity.generate())


async def light_network(invitation: JoinToken, identity: Identity) -> Network:
    """As `join_light`, by this identity."""

    async def ask(peer: PeerId) -> tuple[bytes, float]:
        await network.links.connect(peer)  # which is not to count as the way of the question
        asked_s = time.monotonic()
        body = await network.exchange.ask(peer, Topic.VIEW, secrets.token_hex(8))
        return body, time.monotonic() - asked_s

    async def addresses_of(peer: PeerId) -> Sequence[str]:
        return swarm.addresses_of(peer)

    swarm = LightSwarm(identity.peer_id, invitation, ask=ask)
    network = connected(swarm, [DirectTransport(Credentials(identity, invitation.secret))], addresses_of)
    async with AsyncExitStack() as undo:
        undo.push_async_callback(network.close)
        await swarm.enter()
        undo.pop_all()
    return network


async def join_dht(invitation: JoinToken) -> Network:
    """Join the DHT, which takes hivemind; JoinError if no peer of the token can be reached."""
    from chainserve.swarm.hivemind import HivemindSwarm  # seconds: imports torch
    from chainserve.transport.relayed import RelayedTransport

    identity = Identity.generate()
    credentials = Credentials(identity, invitation.secret)
    swarm = await HivemindSwarm.join(identity, invitation, host=None)

    async def addresses_of(peer: PeerId) -> Sequence[str]:
        server = swarm.view.servers.get(peer)
        return server.addresses if server else ()

    return connected(swarm, [DirectTransport(credentials), RelayedTransport(swarm.p2p, credentials)], addresses_of)


def connected(
    swarm: Swarm, transports: Sequence[Transport], addresses_of: Callable[[PeerId], Awaitable[Sequence[str]]]
) -> Network:
    """A client's network over these transports."""
    network = Network(swarm)
    links = Links(
        swarm.peer_id,
        transports,
        lookup=addresses_of,
        on_message=network.handle,
        on_lost=network.lost,
        on_refused=network.refused,
    )
    network.connect_to(links)
    return network
