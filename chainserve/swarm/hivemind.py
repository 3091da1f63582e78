"""The swarm over a hivemind DHT: under one key one sealed record per server, under another one per planner.

Importing this module takes seconds: hivemind imports torch.
"""

import asyncio
import hmac
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import Any, NamedTuple, Self, TypeVar

import hivemind.dht.node
import hivemind.dht.protocol
import hivemind.dht.routing
import hivemind.utils.timed_storage
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from hivemind.dht.node import DHTNode
from hivemind.dht.protocol import ValidationError
from hivemind.dht.routing import DHTID
from hivemind.p2p import P2P, P2PDaemonError, P2PHandlerError, PeerID
from hivemind.proto.dht_pb2 import PingRequest, PingResponse
from hivemind.utils.logging import use_hivemind_log_handler
from hivemind.utils.multiaddr import Multiaddr

from chainserve.errors import JoinError, RecordError, SwarmError
from chainserve.swarm.clock import SwarmClock, swarm_time
from chainserve.swarm.daemon import Daemon, cannot_join, listen_address
from chainserve.swarm.identity import Identity
from chainserve.swarm.interface import PLAN_LEASES
from chainserve.swarm.plans import PlanRecord, open_plan, seal_plan
from chainserve.swarm.poll import poll
from chainserve.swarm.records import Announcement, ServerState, open_record, seal
from chainserve.swarm.sealed import SealedView
from chainserve.swarm.token import MAX_BOOTSTRAP, MAX_DIRECT, DirectAddress, JoinToken
from chainserve.swarm.validator import MAX_REASON_CHARS, RecordValidator
from chainserve.swarm.view import View, make_view
from chainserve.types import PeerId

LEASE_S = 30.0
JOIN_TIMEOUT_S = 10.0
FIRST_RECORD_TIMEOUT_S = 3.0
STOP_TIMEOUT_S = 1.0
TIME_TIMEOUT_S = 3.0  # for bootstrap peers to tell the time
NEXT_TIME_TIMEOUT_S = 0.5  # for one more to tell it when one has
EXPIRY_STEP_S = 0.001  # a later record of ours expires later, so that it replaces the earlier one

Opened = TypeVar("Opened")

# hivemind would write to the terminal by itself, and it renames the level WARNING for everybody.
use_hivemind_log_handler("nowhere")
logging.getLogger("hivemind").setLevel(logging.ERROR)
logging.addLevelName(logging.WARNING, "WARNING")

# All that hivemind's DHT does by the clock it does by swarm time. Each module has the function by name.
for _module in (hivemind.utils.timed_storage, hivemind.dht.protocol, hivemind.dht.routing, hivemind.dht.node):
    _module.get_dht_time = swarm_time
# One bootstrap peer with a wrong clock would keep us out: whom to believe is for SwarmClock to say.
hivemind.dht.protocol.MAX_DHT_TIME_DISCREPANCY_SECONDS = math.inf


class Keys(NamedTuple):
    """Where the records of one swarm are, which nobody knows without its secret."""

    servers: str
    plans: str

    @classmethod
    def of(cls, secret: bytes) -> Self:
        return cls(
            *(hmac.digest(secret, what, "sha256").hex() for what in (b"chainserve records", b"chainserve plans"))
        )


class HivemindSwarm:
    """Membership in one swarm, from `create` or `join` until `close`."""

    def __init__(
        self,
        identity: Identity,
        name: str,
        secret: bytes,
        bootstrap: tuple[str, ...],
        *,
        daemon: Daemon,
        p2p: Any,
        node: Any,
        clock: SwarmClock,
        keys: Keys,
        validator: RecordValidator,
        lease_s: float,
        resources: AsyncExitStack,
    ) -> None:
        self.peer_id = identity.peer_id
        self.name = name
        self.lease_s = lease_s
        self.view = View()
        self.sealed = SealedView()
        """The records of the view as their owners sealed them, for those who read no DHT."""
        self.p2p = p2p
        """hivemind's P2P, for links through libp2p."""
        self._identity = identity
        self._secret = secret
        self._bootstrap = bootstrap
        self._daemon = daemon
        self._node = node  # to be called within self._clock.applied()
        self._clock = clock
        self._keys = keys
        self._validator = validator
        self._resources = resources
        self._published: Announcement | None = None
        self._last_expiry: dict[str, float] = {}  # of our record under each key

    @classmethod
    async def create(
        cls,
        identity: Identity,
        name: str,
        *,
        secret: bytes,
        host: str = "127.0.0.1",
        port: int = 0,
        announce: str | None = None,
        lease_s: float = LEASE_S,
        clock: SwarmClock | None = None,
    ) -> Self:
        """Start a swarm, listening at `host` (port 0: the system chooses); AddressError if that cannot be.

        Others are told to come to the multiaddr `announce` if it is given.
        """
        listen = await listen_address(host, port)
        return await cls._start(
            identity,
            name,
            secret,
            (),
            listen=listen,
            announce=announce,
            lease_s=lease_s,
            timeout_s=JOIN_TIMEOUT_S,
            clock=clock,
        )

    @classmethod
    async def join(
        cls,
        identity: Identity,
        token: JoinToken,
        *,
        host: str | None = "127.0.0.1",
        port: int = 0,
        announce: str | None = None,
        lease_s: float = LEASE_S,
        timeout_s: float = JOIN_TIMEOUT_S,
        clock: SwarmClock | None = None,
    ) -> Self:
        """Join the swarm of `token`; with `host` None as a client, which neither listens nor stores records.

        JoinError if no bootstrap peer answers within the time, none has a record of this swarm or our clock is days
        away from theirs, AddressError if we cannot listen.
        """
        bootstrap = tuple(peer for peer in token.bootstrap if not peer.endswith(f"/p2p/{identity.peer_id}"))
        if not bootstrap:
            raise JoinError(
                f"the token leads to this peer itself ({identity.peer_id}): start the swarm, do not join it"
            )
        listen = None if host is None else await listen_address(host, port)
        async with AsyncExitStack() as undo:
            swarm = await cls._start(
                identity,
                token.swarm,
                token.secret,
                bootstrap,
                listen=listen,
                announce=announce,
                lease_s=lease_s,
                timeout_s=timeout_s,
                clock=clock,
            )
            undo.push_async_callback(swarm.close)
            try:
                await swarm.wait_for(lambda view: bool(view.servers), timeout_s=FIRST_RECORD_TIMEOUT_S)
            except TimeoutError:
                raise JoinError(
                    f"the peers at {', '.join(bootstrap)} know no server of swarm {token.swarm!r}: it has ended, or "
                    f"the token is of another swarm; ask a member for a new one"
                ) from None
            undo.pop_all()
        return swarm

    @classmethod
    async def _start(
        cls,
        identity: Identity,
        name: str,
        secret: bytes,
        bootstrap: tuple[str, ...],
        *,
        listen: str | None,
        announce: str | None,
        lease_s: float,
        timeout_s: float,
        clock: SwarmClock | None,
    ) -> Self:
        clock = clock or SwarmClock()
        try:
            async with asyncio.timeout(timeout_s), AsyncExitStack() as resources:
                daemon = await Daemon.start(identity, listen, bootstrap=bootstrap, announce=announce)
                resources.push_async_callback(daemon.close)
                with clock.applied():  # in the tasks, too, that will answer other peers
                    p2p = await _attach(daemon)
                resources.push_async_callback(p2p.shutdown)
                if bootstrap:
                    clock.follow(await _ask_time(p2p, bootstrap, clock))
                keys = Keys.of(secret)
                validator = RecordValidator([DHTID.generate(source=key).to_bytes() for key in keys], secret)
                with clock.applied():
                    node = await DHTNode.create(
                        p2p,
                        initial_peers=bootstrap,
                        client_mode=listen is None,
                        record_validator=validator,
                        # A read asks for what is there now: no cache, no answers to earlier questions.
                        cache_locally=False,
                        cache_nearest=0,
                        cache_on_store=False,
                        cache_refresh_before_expiry=0,
                        reuse_get_requests=False,
                    )
                resources.push_async_callback(_shut_down, node, daemon)
                return cls(
                    identity,
                    name,
                    secret,
                    bootstrap,
                    daemon=daemon,
                    p2p=p2p,
                    node=node,
                    clock=clock,
                    keys=keys,
                    validator=validator,
                    lease_s=lease_s,
                    resources=resources.pop_all(),
                )
        except TimeoutError:
            reason = f"no answer within {timeout_s:g} s"
        except (RuntimeError, ValidationError, OSError) as error:  # no answer to hivemind's ping; firewall; daemon died
            reason = str(error)
        if bootstrap:
            raise cannot_join(bootstrap, reason)
        raise SwarmError(f"the swarm did not start: {reason}")

    @property
    def num_refused(self) -> int:
        """Records that others offered and that we refused."""
        return self._validator.num_refused

    def now(self) -> float:
        """Swarm time, in unix seconds."""
        return self._clock.now()

    async def addresses(self) -> tuple[str, ...]:
        """Multiaddrs where libp2p reaches us now, ending in /p2p/ID; none for a client."""
        try:
            # Shielded, as hivemind would leave its connection open.
            found = [str(address) for address in await asyncio.shield(self.p2p.get_visible_maddrs(latest=True))]
        except ValueError:  # hivemind's way to say: none
            return ()
        beyond = tuple(address for address in found if not address.startswith(("/ip4/127.", "/ip6/::1/")))
        return beyond or tuple(found)

    async def token(self, *, expires_at: float | None = None, direct: Sequence[str] = ()) -> JoinToken:
        """A token for others: through us, then through those we came by.

        For clients that are no part of the DHT it names us, if we take direct links at an address of `direct`, and
        other servers of the view.
        """
        bootstrap = dict.fromkeys((*await self.addresses(), *self._bootstrap))
        servers = {self.peer_id: direct} | {
            peer: server.direct_addresses for peer, server in self.view.servers.items() if peer != self.peer_id
        }
        named = [DirectAddress(peer, addresses[0]) for peer, addresses in servers.items() if addresses]
        return JoinToken(
            self.name, self._secret, tuple(bootstrap)[:MAX_BOOTSTRAP], expires_at, tuple(named[:MAX_DIRECT])
        )

    async def refresh(self) -> View:
        """Read all records now; SwarmError if our daemon is gone."""
        now = self.now()
        found = await self._read()
        refused: dict[PeerId, str] = {}
        self.sealed = SealedView(*(_alive(found[key], now) for key in self._keys))

        def opened(key: str, open_one: Callable[..., Opened]) -> list[Opened]:
            records = []
            for peer, (data, expires_at) in found[key].items():
                if expires_at <= now:
                    continue
                try:
                    records.append(open_one(data, self._secret, now=now))
                except RecordError as error:
                    self._validator.refuse(peer, error)
                    refused[peer] = str(error)[:MAX_REASON_CHARS]
            return records

        servers, plans = opened(self._keys.servers, open_record), opened(self._keys.plans, open_plan)
        believed = {server.peer for server in servers} - refused.keys()
        for peer in believed:  # what was wrong before is mended
            self._validator.refused.pop(peer, None)
        self.view = make_view(servers, taken_at=now, plans=plans, refused=self._validator.refused | refused)
        return self.view

    async def wait_for(self, condition: Callable[[View], bool], *, timeout_s: float) -> View:
        """Read until `condition` holds; TimeoutError if it does not within the time."""
        return await poll(self.refresh, condition, timeout_s=timeout_s)

    async def publish(self, announcement: Announcement) -> None:
        """Tell the swarm what we hold, for `lease_s`; SwarmError if no peer takes the record."""
        await self._store_record(announcement)
        self._published = announcement

    async def publish_plan(self, record: PlanRecord) -> None:
        """Tell the swarm of a plan of ours; SwarmError if no peer takes the record."""
        await self._store(
            self._keys.plans,
            lambda expires_at: seal_plan(record, self._identity, self._secret, expires_at=expires_at),
            lease_s=self.lease_s * PLAN_LEASES,
        )

    async def withdraw(self) -> None:
        """Take our record back at once, by one that says we are gone and expires later."""
        if self._published is not None:
            await self._store_record(replace(self._published, state=ServerState.OFFLINE))
            self._published = None

    async def close(self) -> None:
        """Leave, and end our daemon. Closing twice does nothing."""
        await self._resources.aclose()

    async def _read(self) -> dict[str, dict[PeerId, tuple[bytes, float]]]:
        """Under each key every peer's latest sealed record and when it expires."""
        self._daemon.check()
        with self._clock.applied():
            found = await self._node.get_many(self._keys, sufficient_expiration_time=math.inf)
        return {key: found[key].value if found[key] is not None else {} for key in self._keys}

    async def _store_record(self, announcement: Announcement) -> None:
        await self._store(
            self._keys.servers,
            lambda expires_at: seal(announcement, self._identity, self._secret, expires_at=expires_at),
            lease_s=self.lease_s,
        )

    async def _store(self, key: str, sealed_until: Callable[[float], bytes], *, lease_s: float) -> None:
        """Put our record under a key, to count for `lease_s`."""
        for _ in range(2):
            self._daemon.check()
            expires_at = max(self.now() + lease_s, self._last_expiry.get(key, 0.0) + EXPIRY_STEP_S)
            self._last_expiry[key] = expires_at
            with self._clock.applied():
                stored = await self._node.store(key, sealed_until(expires_at), expires_at, subkey=self.peer_id)
            if stored:
                return
            # Some peer has a record that expires no earlier: this one, by another way, or one from before we were
            # restarted.
            _, held_until = (await self._read())[key].get(self.peer_id, (b"", 0.0))
            if held_until == expires_at:
                return
            self._last_expiry[key] = held_until
        raise SwarmError("no peer of the swarm takes our record")


def _alive(records: Mapping[PeerId, tuple[bytes, float]], now: float) -> tuple[bytes, ...]:
    return tuple(data for data, expires_at in records.values() if expires_at > now)


async def _attach(daemon: Daemon) -> Any:
    """hivemind's end of the daemon. It is not cut short: hivemind would leave its connections open."""
    attaching = asyncio.create_task(P2P.replicate(Multiaddr(daemon.control_address)))
    try:
        return await asyncio.shield(attaching)
    except asyncio.CancelledError:
        await (await attaching).shutdown()
        raise


async def _ask_time(p2p: Any, bootstrap: Sequence[str], clock: SwarmClock) -> list[float]:
    """By how many seconds bootstrap peers are ahead of `clock`, to half a round trip; JoinError if none answers."""
    offsets: list[float] = []
    loop = asyncio.get_running_loop()

    async def ask(peer: Any) -> None:
        asked_at = clock.now()
        with suppress(P2PDaemonError, P2PHandlerError, DecodeError):  # it is not there, or not one of us
            reply = await p2p.call_protobuf_handler(peer, "DHTProtocol.rpc_ping", PingRequest(), PingResponse)
            if math.isfinite(reply.dht_time):
                offsets.append(reply.dht_time - (asked_at + clock.now()) / 2)
                if not deadline.expired():
                    deadline.reschedule(min(latest, loop.time() + NEXT_TIME_TIMEOUT_S))

    latest = loop.time() + TIME_TIMEOUT_S
    with suppress(TimeoutError):
        async with asyncio.timeout_at(latest) as deadline, asyncio.TaskGroup() as asking:
            for peer in {Multiaddr(address)["p2p"] for address in bootstrap}:
                asking.create_task(ask(PeerID.from_base58(peer)))
    if not offsets:
        raise cannot_join(bootstrap, "no peer there tells the time of the swarm")
    return offsets


async def _shut_down(node: Any, daemon: Daemon) -> None:
    """Take our handlers off, if the daemon still answers."""
    if daemon.alive:
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await node.shutdown()
