"""The swarm over a hivemind DHT: one key per swarm, under it one sealed record per server.

Importing this module takes seconds: hivemind imports torch.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import Any, Self

from hivemind.dht.node import DHTNode
from hivemind.dht.protocol import ValidationError
from hivemind.dht.routing import DHTID
from hivemind.p2p import P2P
from hivemind.utils.logging import use_hivemind_log_handler
from hivemind.utils.multiaddr import Multiaddr

from chainserve.errors import JoinError, RecordError, SwarmError
from chainserve.swarm.daemon import Daemon, cannot_join, listen_address
from chainserve.swarm.identity import Identity
from chainserve.swarm.poll import poll
from chainserve.swarm.records import Announcement, ServerState, open_record, seal
from chainserve.swarm.token import MAX_BOOTSTRAP, JoinToken
from chainserve.swarm.validator import RecordValidator
from chainserve.swarm.view import View, make_view
from chainserve.types import PeerId

LEASE_S = 30.0
JOIN_TIMEOUT_S = 10.0
FIRST_RECORD_TIMEOUT_S = 3.0
STOP_TIMEOUT_S = 1.0
EXPIRY_STEP_S = 0.001  # a later record of ours expires later, so that it replaces the earlier one

# hivemind would write to the terminal by itself, and it renames the level WARNING for everybody.
use_hivemind_log_handler("nowhere")
logging.getLogger("hivemind").setLevel(logging.ERROR)
logging.addLevelName(logging.WARNING, "WARNING")


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
        key: str,
        validator: RecordValidator,
        lease_s: float,
        resources: AsyncExitStack,
    ) -> None:
        self.peer_id = identity.peer_id
        self.name = name
        self.lease_s = lease_s
        self.view = View()
        self.p2p = p2p
        """hivemind's P2P, for links through libp2p."""
        self._identity = identity
        self._secret = secret
        self._bootstrap = bootstrap
        self._daemon = daemon
        self._node = node
        self._key = key
        self._validator = validator
        self._resources = resources
        self._published: Announcement | None = None
        self._last_expiry = 0.0

    @classmethod
    async def create(
        cls,
        identity: Identity,
        name: str,
        *,
        secret: bytes,
        host: str = "127.0.0.1",
        port: int = 0,
        lease_s: float = LEASE_S,
    ) -> Self:
        """Start a swarm, listening at `host` (port 0: the system chooses); AddressError if that cannot be."""
        listen = await listen_address(host, port)
        return await cls._start(identity, name, secret, (), listen=listen, lease_s=lease_s, timeout_s=JOIN_TIMEOUT_S)

    @classmethod
    async def join(
        cls,
        identity: Identity,
        token: JoinToken,
        *,
        host: str | None = "127.0.0.1",
        port: int = 0,
        lease_s: float = LEASE_S,
        timeout_s: float = JOIN_TIMEOUT_S,
    ) -> Self:
        """Join the swarm of `token`; with `host` None as a client, which neither listens nor stores records.

        JoinError if no bootstrap peer answers within the time or none has a record of this swarm, AddressError if
        we cannot listen.
        """
        bootstrap = tuple(peer for peer in token.bootstrap if not peer.endswith(f"/p2p/{identity.peer_id}"))
        if not bootstrap:
            raise JoinError(
                f"the token leads to this peer itself ({identity.peer_id}): start the swarm, do not join it"
            )
        listen = None if host is None else await listen_address(host, port)
        async with AsyncExitStack() as undo:
            swarm = await cls._start(
                identity, token.swarm, token.secret, bootstrap, listen=listen, lease_s=lease_s, timeout_s=timeout_s
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
        lease_s: float,
        timeout_s: float,
    ) -> Self:
        try:
            async with asyncio.timeout(timeout_s), AsyncExitStack() as resources:
                daemon = await Daemon.start(identity, listen, bootstrap=bootstrap)
                resources.push_async_callback(daemon.close)
                p2p = await _attach(daemon)
                resources.push_async_callback(p2p.shutdown)
                key = hmac.digest(secret, b"chainserve records", "sha256").hex()  # unknown without the secret
                validator = RecordValidator(DHTID.generate(source=key).to_bytes(), secret)
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
                    key=key,
                    validator=validator,
                    lease_s=lease_s,
                    resources=resources.pop_all(),
                )
        except TimeoutError:
            reason = f"no answer within {timeout_s:g} s"
        except (RuntimeError, ValidationError, OSError) as error:  # no answer to hivemind's ping; clocks; daemon died
            reason = str(error)
        if bootstrap:
            raise cannot_join(bootstrap, reason)
        raise SwarmError(f"the swarm did not start: {reason}")

    @property
    def num_refused(self) -> int:
        """Records that others offered and that we refused."""
        return self._validator.num_refused

    async def addresses(self) -> tuple[str, ...]:
        """Multiaddrs where libp2p reaches us now, ending in /p2p/ID; none for a client."""
        try:
            # Shielded, as hivemind would leave its connection open.
            found = [str(address) for address in await asyncio.shield(self.p2p.get_visible_maddrs(latest=True))]
        except ValueError:  # hivemind's way to say: none
            return ()
        beyond = tuple(address for address in found if not address.startswith(("/ip4/127.", "/ip6/::1/")))
        return beyond or tuple(found)

    async def token(self, *, expires_at: float | None = None) -> JoinToken:
        """A token for others: through us, then through those we came by."""
        bootstrap = dict.fromkeys((*await self.addresses(), *self._bootstrap))
        return JoinToken(self.name, self._secret, tuple(bootstrap)[:MAX_BOOTSTRAP], expires_at)

    async def refresh(self) -> View:
        """Read all records now; SwarmError if our daemon is gone."""
        now = time.time()
        records = []
        for peer, (data, expires_at) in (await self._read()).items():
            if expires_at <= now:
                continue
            try:
                records.append(open_record(data, self._secret, now=now))
            except RecordError as error:
                self._validator.refuse(peer, error)
        self.view = make_view(records, taken_at=now)
        return self.view

    async def wait_for(self, condition: Callable[[View], bool], *, timeout_s: float) -> View:
        """Read until `condition` holds; TimeoutError if it does not within the time."""
        return await poll(self.refresh, condition, timeout_s=timeout_s)

    async def publish(self, announcement: Announcement) -> None:
        """Tell the swarm what we hold, for `lease_s`; SwarmError if no peer takes the record."""
        await self._store(announcement)
        self._published = announcement

    async def withdraw(self) -> None:
        """Take our record back at once, by one that says we are gone and expires later."""
        if self._published is not None:
            await self._store(replace(self._published, state=ServerState.OFFLINE))
            self._published = None

    async def close(self) -> None:
        """Leave, and end our daemon. Closing twice does nothing."""
        await self._resources.aclose()

    async def _read(self) -> dict[PeerId, tuple[bytes, float]]:
        """Every server's latest sealed record and when it expires."""
        self._daemon.check()
        found = await self._node.get(self._key, latest=True)
        return found.value if found is not None else {}

    async def _store(self, announcement: Announcement) -> None:
        for _ in range(2):
            self._daemon.check()
            expires_at = max(time.time() + self.lease_s, self._last_expiry + EXPIRY_STEP_S)
            data = seal(announcement, self._identity, self._secret, expires_at=expires_at)
            self._last_expiry = expires_at
            if await self._node.store(self._key, data, expires_at, subkey=self.peer_id):
                return
            # Some peer has a record that expires no earlier: this one, by another way, or one from before we were
            # restarted or our clock was set back.
            _, held_until = (await self._read()).get(self.peer_id, (b"", 0.0))
            if held_until == expires_at:
                return
            self._last_expiry = held_until
        raise SwarmError("no peer of the swarm takes our record")


async def _attach(daemon: Daemon) -> Any:
    """hivemind's end of the daemon. It is not cut short: hivemind would leave its connections open."""
    attaching = asyncio.create_task(P2P.replicate(Multiaddr(daemon.control_address)))
    try:
        return await asyncio.shield(attaching)
    except asyncio.CancelledError:
        await (await attaching).shutdown()
        raise


async def _shut_down(node: Any, daemon: Daemon) -> None:
    """Take our handlers off, if the daemon still answers."""
    if daemon.alive:
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await node.shutdown()
