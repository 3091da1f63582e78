"""The life of a server: join, be given blocks, load, serve, move, leave.

join the swarm -> listen -> announce, follow the plan, hold blocks, serve -> withdraw, drain, leave
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial

import torch

from chainserve.errors import SwarmError
from chainserve.models.cache import KVCache
from chainserve.models.grammars import Grammars
from chainserve.models.profiles import forget_profile
from chainserve.models.text import text_of
from chainserve.models.wire import Int8Wire, to_wire
from chainserve.planning import chunks
from chainserve.protocol.messages import FailureCode, Message
from chainserve.runtime.background import in_background
from chainserve.runtime.cores import keep_apart
from chainserve.runtime.hosts import is_loopback
from chainserve.swarm.daemon import announced
from chainserve.swarm.hivemind import HivemindSwarm
from chainserve.swarm.identity import Identity
from chainserve.swarm.inputs import ModelFacts
from chainserve.swarm.member import Member
from chainserve.swarm.planner import Job, Planner
from chainserve.swarm.plans import SwarmPlan
from chainserve.swarm.records import Announcement, direct_addresses
from chainserve.swarm.token import JoinToken, swarm_secret
from chainserve.transport.calling_back import call_back
from chainserve.transport.direct import DirectTransport
from chainserve.transport.exchange import Exchange
from chainserve.transport.exposition import metrics_page, serving_metrics
from chainserve.transport.handshake import Credentials
from chainserve.transport.links import Links
from chainserve.transport.outbox import Outbox
from chainserve.transport.relayed import RelayedTransport
from chainserve.types import PeerId, Span
from chainserve_server.admission import head_chains
from chainserve_server.announcing import Announcer
from chainserve_server.blocks import Blocks
from chainserve_server.config import ServerConfig
from chainserve_server.devices import turns_on
from chainserve_server.engine import Engine
from chainserve_server.gateway_beside import GatewayBeside
from chainserve_server.grammars import GrammarQueue
from chainserve_server.handouts import Handouts
from chainserve_server.metrics import ForwardCounts, server_families
from chainserve_server.observation import BUSY, DemandWindow, Observed, StepChecks, TokenRate
from chainserve_server.prepare import Prepared
from chainserve_server.reachability import why_unreachable
from chainserve_server.sampling import LinkSampler
from chainserve_server.sessions import Sessions
from chainserve_server.slowdown import pace_of
from chainserve_server.terminal import introduction, news_of, online
from chainserve_server.work import Forward, Work

logger = logging.getLogger(__name__)

Say = Callable[[str], None]

TICK_S = 0.2
WITHDRAW_S = 1.0
FLUSH_S = 0.3


async def serve(
    config: ServerConfig,
    prepared: Prepared,
    *,
    leave: asyncio.Event,
    say: Say,
    keep_token: Say | None = None,
    gateway: GatewayBeside | None = None,
) -> None:
    """Serve until `leave` is set, then leave the swarm within a few seconds.

    The token of a swarm that we start is said, or given to `keep_token`; `gateway` is told of the swarm.
    """
    async with AsyncExitStack() as resources:
        identity = Identity.load_or_create(config.identity) if config.identity else Identity.load_default()
        resources.callback(identity.release)
        swarm, secret = await enter_swarm(config, identity)
        resources.push_async_callback(swarm.close)
        credentials = Credentials(identity, secret)
        server = Server(config, prepared, swarm, credentials, say=say)
        resources.push_async_callback(server.links.close)
        if config.join and not is_loopback(config.host):
            door = DirectTransport(credentials, host=config.host, port=config.port, advertised_host=config.public_host)
            peers = [peer for peer in swarm.view.servers if peer != swarm.peer_id]
            if warning := await why_unreachable(server.exchange, peers, door, port=config.port):
                say(warning)
        await server.links.listen()
        resources.push_async_callback(server.outbox.close)
        resources.push_async_callback(server.withdraw)
        metrics = None
        if config.metrics_port is not None:
            page = metrics_page(lambda: server_families(server))
            metrics = await resources.enter_async_context(
                serving_metrics(page, host=config.metrics_host, port=config.metrics_port)
            )
        token = config.join or await server.token()
        if not config.join and keep_token is not None:
            keep_token(token)
        say(
            introduction(
                prepared,
                peer=swarm.peer_id,
                swarm=swarm.name,
                addresses=server.links.addresses,
                host=config.host,
                has_joined=bool(config.join),
                token=None if keep_token else token,
                metrics=metrics,
            )
        )
        if gateway is not None:
            gateway.join(token)
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(work)
                for work in (server.engine.run(), server.member.run(), server.sampler.run(), server.tick())
            ]
            watching = tasks.create_task(gateway.watch(say)) if gateway is not None else None
            leaving = tasks.create_task(leave.wait())
            await asyncio.wait({leaving, *running}, return_when=asyncio.FIRST_COMPLETED)
            if watching is not None:
                watching.cancel()
            if not leaving.done():
                return  # something broke, which the group raises
            say("leaving the swarm")
            engine, *others = running
            for task in others:  # or they would undo the withdrawal
                task.cancel()
            await server.drain()
            engine.cancel()


async def enter_swarm(config: ServerConfig, identity: Identity) -> tuple[HivemindSwarm, bytes]:
    """Join the swarm of the token, or start one; returns it with its secret."""
    dht_port = config.port + 1 if config.port else 0
    announce = announced(config.public_host, dht_port) if config.public_host else None
    if config.join:
        token = JoinToken.decode(config.join, now=time.time())
        swarm = await HivemindSwarm.join(
            identity, token, host=config.host, port=dht_port, announce=announce, lease_s=config.lease_s
        )
        return swarm, token.secret
    secret = swarm_secret(identity, config.swarm)
    swarm = await HivemindSwarm.create(
        identity,
        config.swarm,
        secret=secret,
        host=config.host,
        port=dht_port,
        announce=announce,
        lease_s=config.lease_s,
    )
    return swarm, secret


class Server:
    """What a running server consists of, and what it tells the swarm."""

    def __init__(
        self, config: ServerConfig, prepared: Prepared, swarm: HivemindSwarm, credentials: Credentials, *, say: Say
    ) -> None:
        self._config = config
        self._prepared = prepared
        self._swarm = swarm
        self._say = say
        self._session_ended = asyncio.Event()
        self._observed = Observed(
            DemandWindow(clock=time.monotonic), TokenRate(clock=time.monotonic), StepChecks(prepared.profile.times)
        )
        self._is_profile_kept = True
        self.forwards = ForwardCounts()
        direct = DirectTransport(credentials, host=config.host, port=config.port, advertised_host=config.public_host)
        self.links = Links(
            swarm.peer_id,
            [direct, RelayedTransport(swarm.p2p, credentials)],
            lookup=self._addresses_of,
            on_message=self._handle,
            on_lost=self._lost,
            on_refused=lambda peer, error: self.sessions.refused(peer, error),
            role_of=lambda peer: "server" if peer in swarm.view.servers else "client",
        )
        self.outbox = Outbox(self.links, on_lost=self._lost)
        self._wire = Int8Wire() if config.wire else None
        self.engine = Engine(
            KVCache(None, budget_tokens=0),
            max_batch_tokens=config.max_batch_tokens,
            emit=lambda peer, message: self.sessions.emit(peer, message),
            fail=lambda session, code, detail: self.sessions.fail(session, code, detail),
            observe=self._observe,
            chunk_tokens=self._chunk_tokens,
            pack=self._wire or to_wire,
            on_spent=lambda session, waited_s, computed_s: self.sessions.spend(session, waited_s, computed_s),
            pace=pace_of(prepared.profile.times) if config.slowdown is not None else None,
            turns=turns_on(prepared.device) if config.slowdown is None else None,  # slowed servers mostly wait
            prepare=keep_apart if config.slowdown is None and prepared.device.type == "cpu" else None,
        )
        self.sessions = Sessions(
            swarm.peer_id,
            model=prepared.source.digest,
            hidden_size=prepared.source.config.hidden_size,
            vocab_size=prepared.source.config.vocab_size,
            extra_s=self._extra_s,
            engine=self.engine,
            post=self.outbox.post,
            on_change=self._sessions_changed,
            on_request=self._observed.demand.arrived,
            on_served=self._observed.demand.served,
            on_tokens=self._observed.tokens.came,
            compile_grammar=GrammarQueue(Grammars(lambda: text_of(prepared.source))).compile,
        )
        self.blocks = Blocks(
            prepared,
            self.engine,
            self.sessions,
            grace_s=config.move_grace_s,
            on_change=lambda: self.member.changed(),
        )
        self.exchange = Exchange(
            self.links, answers=Handouts(swarm, prepared.source).answers, try_to_reach=partial(call_back, direct)
        )
        self.sampler = LinkSampler(self.links, self._others)
        self._announcer = Announcer(
            prepared,
            swarm,
            name=config.name,
            links=self.links,
            sessions=self.sessions,
            blocks=self.blocks,
            sampler=self.sampler,
            observed=self._observed,
        )
        self.member = Member(
            swarm,
            self,
            Planner(
                swarm.peer_id,
                model_digest=prepared.source.digest,
                model=ModelFacts(
                    num_blocks=prepared.source.num_blocks,
                    longest_tokens=prepared.longest_tokens,
                    wire_bytes=prepared.source.config.hidden_size * prepared.dtype.itemsize,
                ),
                orders=config.orders,
            ),
            model_digest=prepared.source.digest,
            fetch=self.exchange.fetch,
            carry_out=carry_out,
            clock=time.monotonic,
        )

    @property
    def device(self) -> torch.device:
        return self._prepared.device

    @property
    def num_servers_seen(self) -> int:
        """Of the swarm, whatever their model."""
        return len(self._swarm.view.servers)

    @property
    def pinned(self) -> Span | None:
        """Blocks that the owner chose."""
        return self._prepared.pinned

    def can_hold(self, span: Span) -> bool:
        """Whether weights and activations fit, and cache for something."""
        prepared = self._prepared
        if span.end > prepared.source.num_blocks:
            return False
        return prepared.cache_tokens(span, prepared.left_bytes(prepared.weight_bytes(span))) > 0

    async def hold(self, span: Span) -> None:
        """Serve these blocks, and no others, when this returns."""
        report = await self.blocks.hold(span)
        await self.member.announce()  # so that whoever reads that we are online finds us
        self._say(
            online(
                self._prepared,
                span,
                report,
                weight_bytes=self.blocks.weight_bytes,
                cache_tokens=self.engine.cache.budget_tokens,
                is_wire_int8=self._wire is not None,
            )
        )

    def told(self, plan: SwarmPlan) -> None:
        """A new plan is followed."""
        self.exchange.keep(plan)
        self.sessions.follow(plan.epoch, head_chains(plan, self._swarm.peer_id))
        if news := news_of(plan, self._prepared, peer=self._swarm.peer_id):
            self._say(news)

    def announcement(self, *, epoch: int) -> Announcement:
        """What the swarm has to know of us now."""
        return self._announcer.announcement(self.member.plan, epoch=epoch)

    async def tick(self) -> None:
        """Let time pass for places and sessions, until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            self.sessions.tick()
            if self._announcer.has_news():
                self.member.changed()
            self._check_profile()

    def _check_profile(self) -> None:
        """Forget a profile that was measured while the device was busy; plans correct it until it is measured again."""
        if self._is_profile_kept and self._observed.checks.was_busy:
            self._is_profile_kept = False
            prepared = self._prepared
            forget_profile(prepared.source.config, dtype=prepared.dtype, device=prepared.device)
            logger.warning(
                "this device is more than %.0f times as fast as when it was measured: it was busy with something else"
                " then. The next start measures it again.",
                BUSY,
            )

    async def withdraw(self) -> None:
        """Take our record out of everybody's view, at once."""
        try:
            await asyncio.wait_for(self._swarm.withdraw(), WITHDRAW_S)
        except (SwarmError, TimeoutError) as error:
            logger.warning("our record could not be withdrawn, it expires by itself: %r", error)

    async def drain(self) -> None:
        """Take no more sessions, let those that run go on elsewhere, end what is left after a little time."""
        self.sessions.closed_because = "is leaving the swarm"
        self.sessions.tick()
        self.sessions.leave(self.sessions.outside(None))
        await self.withdraw()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._config.drain_s):
                while len(self.sessions):
                    self._session_ended.clear()
                    await self._session_ended.wait()
        self.sessions.end(self.sessions.outside(None), FailureCode.NOT_SERVING, "the server left the swarm")
        with suppress(TimeoutError):
            await asyncio.wait_for(self.outbox.flush(), FLUSH_S)
        if self._wire and self._wire.error:
            self._say(f"activations that were sent on in 8 bits are off by {self._wire.error:.2%} (root mean square)")

    async def token(self) -> str:
        """A new join token of this swarm."""
        expires_at = time.time() + self._config.token_days * 86_400
        token = await self._swarm.token(expires_at=expires_at, direct=direct_addresses(self.links.addresses))
        return token.encode()

    def _observe(self, forward: Forward) -> None:
        self._observed.checks.observe(forward)
        self.forwards.add(forward)

    def _chunk_tokens(self, work: Work, num_decoding: int) -> int:
        """Tokens of a prompt to run at once."""
        times, num_blocks = self._prepared.profile.times, len(work.span)
        if num_decoding:
            size = chunks.beside_decoding(times, num_blocks=num_blocks, num_decoding=num_decoding)
        else:
            size = chunks.along_chain(
                times, num_blocks=num_blocks, num_tokens=work.prompt_tokens, num_hops=work.num_hops
            )
        return min(size, self._config.max_batch_tokens)

    def _extra_s(self, num_drafts: int) -> float:
        """By how many seconds drafts make a step through the whole model longer, on servers such as this one."""
        step_s, num_blocks = self._prepared.profile.times.step_s, self._prepared.source.num_blocks
        num_steps = max(1, self.engine.num_decoding)
        return step_s(num_steps + num_drafts, 0, num_blocks=num_blocks) - step_s(num_steps, 0, num_blocks=num_blocks)

    def _others(self) -> list[PeerId]:
        """The other servers of our model."""
        servers = self._swarm.view.models().get(self._prepared.source.digest, ())
        return [server.peer for server in servers if server.peer != self._swarm.peer_id]

    async def _addresses_of(self, peer: PeerId) -> Sequence[str]:
        """Where a peer says it can be reached; nowhere if it is no server."""
        if peer not in self._swarm.view.servers:
            await self._swarm.refresh()
        server = self._swarm.view.servers.get(peer)
        return server.addresses if server else ()

    def _handle(self, peer: PeerId, message: Message) -> None:
        if not self.exchange.handle(peer, message):
            self.sessions.handle(peer, message)

    def _lost(self, peer: PeerId, reason: str) -> None:
        self.outbox.forget(peer)
        self.sessions.lost(peer, reason)

    def _sessions_changed(self) -> None:
        self._session_ended.set()
        self.blocks.session_ended()
        self.member.changed()


async def carry_out(job: Job) -> SwarmPlan:
    """Plan in a thread: it takes seconds in large swarms."""
    return await in_background(job.carry_out)
