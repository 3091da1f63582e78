"""Enter a swarm as a client: a peer that listens nowhere and is gone when it closes."""

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

from chainserve.swarm.hivemind import HivemindSwarm
from chainserve.swarm.identity import Identity
from chainserve.swarm.token import JoinToken
from chainserve.transport.direct import DirectTransport
from chainserve.transport.handshake import Credentials
from chainserve.transport.links import Links
from chainserve.transport.relayed import RelayedTransport
from chainserve.types import PeerId
from chainserve_client.network import Network


async def join(token: str) -> Network:
    """Join the swarm of `token`; TokenError or JoinError if that cannot be."""
    invitation = JoinToken.decode(token, now=time.time())
    identity = Identity.generate()
    async with AsyncExitStack() as undo:
        swarm = await HivemindSwarm.join(identity, invitation, host=None)
        undo.push_async_callback(swarm.close)
        credentials = Credentials(identity, invitation.secret)

        async def addresses_of(peer: PeerId) -> Sequence[str]:
            server = swarm.view.servers.get(peer)
            return server.addresses if server else ()

        network = Network(swarm)
        links = Links(
            identity.peer_id,
            [DirectTransport(credentials), RelayedTransport(swarm.p2p, credentials)],
            lookup=addresses_of,
            on_message=network.handle,
            on_lost=network.lost,
            on_refused=network.refused,
        )
        network.connect_to(links)
        undo.pop_all()
    return network
