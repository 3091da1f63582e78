"""The life of a server: join, load, serve, leave.

join the swarm -> listen -> load the blocks -> announce and serve -> withdraw, drain, leave
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress

from chainserve import __version__
from chainserve.errors import SwarmError
from chainserve.models.cache import KVCache
from chainserve.models.load import LoadReport, load_weights
from chainserve.models.runner import Runner
from chainserve.protocol.messages import FailureCode, Message
from chainserve.swarm.hivemind import HivemindSwarm
from chainserve.swarm.identity import Identity
from chainserve.swarm.records import Announcement, ServerState
from chainserve.swarm.token import JoinToken, swarm_secret
from chainserve.transport.direct import DirectTransport
from chainserve.transport.handshake import Credentials
from chainserve.transport.links import Links
from chainserve.transport.relayed import RelayedTransport
from chainserve.types import PeerId
from chainserve_server.config import ServerConfig
from chainserve_server.engine import Engine
from chainserve_server.outbox import Outbox
from chainserve_server.prepare import Prepared
from chainserve_server.sessions import Sessions

logger = logging.getLogger(__name__)

Say = Callable[[str], None]

LOAD_THREAD = "load"
WITHDRAW_S = 1.0
FLUSH_S = 0.3
ANNOUNCE_GAP_S = 0.5
"""Changes within this time are announced together."""


async def serve(config: ServerConfig, prepared: Prepared, *, leave: asyncio.Event, say: Say) -> None:
    """Serve until `leave` is set, then leave the swarm within a few seconds."""
    async with AsyncExitStack() as resources:
        identity = Identity.load_or_create(config.identity) if config.identity else Identity.load_default()
        resources.callback(identity.release)
        swarm, secret = await enter_swarm(config, identity)
        resources.push_async_callback(swarm.close)
        server = Server(config, prepared, swarm, Credentials(identity, secret))
        await server.links.listen()
        resources.push_async_callback(server.links.close)
        resources.push_async_callback(server.outbox.close)
        resources.push_async_callback(server.withdraw)
        async with asyncio.TaskGroup() as tasks:
            engine, announcing = tasks.create_task(server.engine.run()), tasks.create_task(server.announce_forever())
            loading, leaving = tasks.create_task(server.load()), tasks.create_task(leave.wait())
            await asyncio.wait({loading, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                say(await server.introduction(loading.result()))
                await leaving
            say("leaving the swarm")
            announcing.cancel()  # or it would undo the withdrawal
            await server.drain()
            for task in (loading, engine, announcing):
                task.cancel()


async def enter_swarm(config: ServerConfig, identity: Identity) -> tuple[HivemindSwarm, bytes]:
    """Join the swarm of the token, or start one; returns it with its secret."""
    dht_port = config.port + 1 if config.port else 0
    if config.join:
        token = JoinToken.decode(config.join, now=time.time())
        return await HivemindSwarm.join(identity, token, host=config.host, port=dht_port), token.secret
    secret = swarm_secret(identity, config.swarm)
    swarm = await HivemindSwarm.create(identity, config.swarm, secret=secret, host=config.host, port=dht_port)
    return swarm, secret


class Server:
    """What a running server consists of, and what it tells the swarm."""

    def __init__(
        self, config: ServerConfig, prepared: Prepared, swarm: HivemindSwarm, credentials: Credentials
    ) -> None:
        self._config = config
        self._prepared = prepared
        self._swarm = swarm
        self._state = ServerState.LOADING
        self._changed = asyncio.Event()
        self._started_at = time.time()
        self._cache = KVCache(prepared.span, budget_tokens=prepared.cache_tokens)
        self.links = Links(
            swarm.peer_id,
            [
                DirectTransport(credentials, host=config.host, port=config.port),
                RelayedTransport(swarm.p2p, credentials),
            ],
            lookup=self._addresses_of,
            on_message=self._handle,
            on_lost=self._lost,
            on_refused=lambda peer, error: self.sessions.refused(peer, error),
        )
        self.outbox = Outbox(self.links, on_lost=self._lost)
        self.engine = Engine(
            Runner(prepared.skeleton, prepared.span, self._cache),
            max_batch_tokens=config.max_batch_tokens,
            emit=self.outbox.post,
            fail=lambda session, code, detail: self.sessions.fail(session, code, detail),
        )
        self.sessions = Sessions(
            swarm.peer_id,
            model=prepared.source.digest,
            span=prepared.span,
            hidden_size=prepared.source.config.hidden_size,
            engine=self.engine,
            post=self.outbox.post,
        )

    async def load(self) -> LoadReport:
        """Read the weights of our blocks, then take sessions."""
        prepared = self._prepared
        loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix=LOAD_THREAD)
        try:
            report = await asyncio.get_running_loop().run_in_executor(
                loader,
                lambda: load_weights(
                    prepared.skeleton, prepared.source, dtype=prepared.dtype, device=prepared.device, progress=True
                ),
            )
        finally:
            loader.shutdown(wait=False, cancel_futures=True)
        self._state = ServerState.ONLINE
        self.sessions.closed_because = None
        await self._swarm.publish(self._announcement())
        return report

    async def announce_forever(self) -> None:
        """Publish our record before it expires, and soon after it changes."""
        while True:
            self._changed.clear()
            try:
                await self._swarm.publish(self._announcement())
            except SwarmError as error:
                logger.warning("the swarm did not take our record, trying again: %s", error)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self._swarm.lease_s / 3)
            await asyncio.sleep(ANNOUNCE_GAP_S)

    async def withdraw(self) -> None:
        """Take our record out of everybody's view, at once."""
        try:
            await asyncio.wait_for(self._swarm.withdraw(), WITHDRAW_S)
        except (SwarmError, TimeoutError) as error:
            logger.warning("our record could not be withdrawn, it expires by itself: %r", error)

    async def drain(self) -> None:
        """Take no more sessions, give those that run a little time, end the rest."""
        self.sessions.closed_because = "is leaving the swarm"
        await self.withdraw()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._config.drain_s):
                while len(self.sessions):
                    self._changed.clear()
                    await self._changed.wait()
        self.sessions.end_all(FailureCode.NOT_SERVING, "the server left the swarm")
        with suppress(TimeoutError):
            await asyncio.wait_for(self.outbox.flush(), FLUSH_S)

    async def introduction(self, report: LoadReport) -> str:
        """What the terminal shows once we are online."""
        prepared, config = self._prepared, self._config
        name = prepared.source.name
        blocks = f"blocks {prepared.span} of {prepared.source.num_blocks}"
        lines = [
            f"chainserve-server {__version__} is online",
            f"  model   {name}, {blocks}, {config.dtype_name} on {prepared.device}",
            f"  memory  {prepared.weight_bytes / 1e6:.0f} MB of weights "
            f"({report.bytes_read / 1e6:.0f} MB read in {report.seconds:.1f} s), "
            f"cache for {prepared.cache_tokens:,} tokens",
            f"  peer    {self._swarm.peer_id}",
            f"  links   {', '.join(self.links.addresses)}",
        ]
        if not config.join:
            token = await self._swarm.token(expires_at=time.time() + config.token_days * 86_400)
            lines += [
                f"  swarm   {config.swarm}; whoever has this token is a member:",
                "",
                token.encode(),
                "",
                f"join it:  chainserve-server --model {name} --blocks START:END --join TOKEN",
                "ask it:   chainserve chat TOKEN",
            ]
            if config.host in ("127.0.0.1", "::1", "localhost"):
                lines.append("Only this machine can reach it: start with --host ADDRESS for others to join.")
        return "\n".join(lines)

    def _announcement(self) -> Announcement:
        prepared = self._prepared
        return Announcement(
            peer=self._swarm.peer_id,
            state=self._state,
            model=prepared.source.name,
            model_digest=prepared.source.digest,
            num_blocks=prepared.source.num_blocks,
            span=prepared.span,
            dtype=self._config.dtype_name,
            cache_tokens=self._cache.budget_tokens,
            free_tokens=self._cache.free_tokens,
            addresses=self.links.addresses,
            version=__version__,
            started_at=self._started_at,
        )

    async def _addresses_of(self, peer: PeerId) -> Sequence[str]:
        """Where a peer says it can be reached; nowhere if it is no server."""
        if peer not in self._swarm.view.servers:
            await self._swarm.refresh()
        server = self._swarm.view.servers.get(peer)
        return server.addresses if server else ()

    def _handle(self, peer: PeerId, message: Message) -> None:
        num_sessions = len(self.sessions)
        self.sessions.handle(peer, message)
        if len(self.sessions) != num_sessions:
            self._changed.set()

    def _lost(self, peer: PeerId, reason: str) -> None:
        self.outbox.forget(peer)
        self.sessions.lost(peer, reason)
        self._changed.set()
