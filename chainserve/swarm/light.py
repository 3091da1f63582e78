"""The swarm as a client sees it that is no part of the DHT: servers pass on what each of them has sealed.

No server is believed about another: seals and times of expiry are checked here as every peer of the DHT checks them,
and of each peer the record counts that expires last, whoever passed it on. What the first server says is the time.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from chainserve.errors import JoinError, PeerError, RecordError, SwarmError
from chainserve.swarm.clock import SwarmClock
from chainserve.swarm.plans import PlanRecord, open_plan
from chainserve.swarm.poll import poll
from chainserve.swarm.records import Announcement, open_record, unseal
from chainserve.swarm.sealed import MAX_RECORDS, SealedView
from chainserve.swarm.token import JoinToken
from chainserve.swarm.validator import RecordValidator
from chainserve.swarm.view import View, make_view
from chainserve.types import PeerId

LEASE_S = 30.0
MAX_ASKED = 16
"""Of those it knows, many may have gone at once; whoever refuses a connection costs no time."""
PATIENCE_S = 0.5
"""A server that has not answered by then is still waited for, and another is asked as well."""
FIRST_RECORD_TIMEOUT_S = 3.0

T = TypeVar("T")

AskView = Callable[[PeerId], Awaitable[tuple[bytes, float]]]
"""Asks a server for its `SealedView`: the bytes, and the seconds from question to answer. PeerError if none comes, soon
enough that a caller can wait for it."""


class LightSwarm:
    """What a client knows of one swarm. It publishes nothing."""

    lease_s = LEASE_S

    def __init__(
        self,
        peer_id: PeerId,
        token: JoinToken,
        *,
        ask: AskView,
        clock: SwarmClock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.peer_id = peer_id
        self.view = View()
        self._token = token
        self._ask = ask
        self._clock = clock or SwarmClock()
        self._rng = rng or random.Random()
        self._knows_time = False
        self._answered_last: PeerId | None = None
        self._servers: _Known[Announcement] = {}
        self._plans: _Known[PlanRecord] = {}
        self._validator = RecordValidator((), token.secret)

    @property
    def num_refused(self) -> int:
        """Records that servers passed on and that we refused."""
        return self._validator.num_refused

    def now(self) -> float:
        """Swarm time, in unix seconds."""
        return self._clock.now()

    def addresses_of(self, peer: PeerId) -> Sequence[str]:
        """Where a server can be reached, by its record or else by the token."""
        if (server := self.view.servers.get(peer)) is not None:
            return server.addresses
        return [address.url for address in self._token.direct if address.peer == peer]

    async def enter(self) -> None:
        """Read the first view; JoinError if no server of the token passes one on, or our clock is days away."""
        if not self._token.direct:
            raise JoinError(
                "the join token is of an earlier version, it names no server that takes direct links: ask a member "
                "of the swarm for a new token"
            )
        try:
            if not (await self.refresh()).servers:
                await self.wait_for(lambda view: bool(view.servers), timeout_s=FIRST_RECORD_TIMEOUT_S)
        except JoinError:
            raise
        except SwarmError as error:
            raise JoinError(
                f"none of the servers that the join token names can be asked ({error}): start one again, or ask a "
                f"member of the swarm for a new token"
            ) from None
        except TimeoutError:
            raise JoinError(
                f"those that the join token names know no server of swarm {self._token.swarm!r}: it has ended, or the "
                f"token is of another swarm; ask a member for a new one"
            ) from None

    async def refresh(self) -> View:
        """Ask a server for all records now; SwarmError if none answers."""
        answer = await self._first_answer(self._candidates()[:MAX_ASKED])
        if not self._knows_time:
            self._clock.follow([answer.ahead_s])
            self._knows_time = True
        self._answered_last = answer.peer if answer.sealed.servers else None
        now = self.now()
        believed = {
            *self._take(answer.sealed.servers, self._servers, open_record, passed_by=answer.peer, now=now),
            *self._take(answer.sealed.plans, self._plans, open_plan, passed_by=answer.peer, now=now),
        }
        for peer in believed:  # what was wrong before is mended
            self._validator.refused.pop(peer, None)
        self.view = make_view(
            (known.record for known in self._servers.values()),
            taken_at=now,
            plans=(known.record for known in self._plans.values()),
            refused=self._validator.refused,
        )
        return self.view

    async def wait_for(self, condition: Callable[[View], bool], *, timeout_s: float) -> View:
        """Read until `condition` holds; TimeoutError if it does not within the time."""
        return await poll(self.refresh, condition, timeout_s=timeout_s)

    async def publish(self, announcement: Announcement) -> None:
        """Not for clients: SwarmError."""
        raise SwarmError("a client that is no part of the DHT publishes nothing")

    async def publish_plan(self, record: PlanRecord) -> None:
        """Not for clients: SwarmError."""
        raise SwarmError("a client that is no part of the DHT publishes nothing")

    async def withdraw(self) -> None:
        """There is nothing to take back."""

    async def close(self) -> None:
        """There is nothing to leave."""

    def _candidates(self) -> list[PeerId]:
        """Whom to ask: who answered last, then any others, then those of the token."""
        others = [peer for peer, server in self.view.servers.items() if server.direct_addresses]
        self._rng.shuffle(others)
        last = [self._answered_last] if self._answered_last is not None else []
        return list(dict.fromkeys((*last, *others, *(address.peer for address in self._token.direct))))

    async def _first_answer(self, peers: Sequence[PeerId]) -> "_Answer":
        """The first answer that makes sense; who is slow or fails does not keep the next one from being asked."""
        waiting, asking = list(peers), set[asyncio.Task[_Answer]]()
        reasons = []
        try:
            while waiting or asking:
                if waiting:
                    asking.add(asyncio.create_task(self._answer_of(waiting.pop(0))))
                done, asking = await asyncio.wait(
                    asking, timeout=PATIENCE_S if waiting else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    try:
                        return task.result()
                    except (PeerError, RecordError) as error:
                        reasons.append(str(error))
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        raise SwarmError(f"no server passes on what is in the swarm: {'; '.join(reasons) or 'none is known'}")

    async def _answer_of(self, peer: PeerId) -> "_Answer":
        body, took_s = await self._ask(peer)
        here = self.now()
        if not body:
            raise PeerError(peer, "does not pass on what is in the swarm")
        try:
            sealed, there = SealedView.from_bytes(body)
        except RecordError as error:
            raise PeerError(peer, str(error)) from None
        return _Answer(peer, sealed, ahead_s=there + took_s / 2 - here)

    def _take(
        self,
        passed: Iterable[bytes],
        known: "_Known[T]",
        open_one: Callable[..., T],
        *,
        passed_by: PeerId,
        now: float,
    ) -> list[PeerId]:
        """Add what is new and can be believed to what is known, and forget what has expired; returns whose it was."""
        for peer in [peer for peer, old in known.items() if old.expires_at <= now]:
            del known[peer]
        seen = {old.data for old in known.values()}
        believed = []
        for data in passed:
            if data in seen:
                continue
            try:
                sealed = unseal(data, self._token.secret)
            except RecordError as error:
                self._validator.refuse(passed_by, error)
                continue
            old = known.get(sealed.peer)
            if sealed.expires_at <= (now if old is None else max(now, old.expires_at)):
                continue
            try:
                record = open_one(data, self._token.secret, now=now)
            except RecordError as error:
                self._validator.refuse(sealed.peer, error)
                continue
            known[sealed.peer] = _KnownRecord(record, sealed.expires_at, data)
            believed.append(sealed.peer)
        while len(known) > MAX_RECORDS:
            known.pop(next(iter(known)))
        return believed


@dataclass(frozen=True, slots=True)
class _KnownRecord(Generic[T]):
    record: T
    expires_at: float
    data: bytes


_Known = dict[PeerId, _KnownRecord[T]]
"""The record of each peer that expires last."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a server passed on, and by how many seconds its swarm time is ahead of ours."""

    peer: PeerId
    sealed: SealedView
    ahead_s: float
