"""The client in its swarm: sees who is there, composes a chain, opens sessions along it."""

import asyncio
import logging
import secrets
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

from chainserve.errors import (
    FrameError,
    LinkLostError,
    NoChainError,
    PeerError,
    PromptTooLongError,
    RequestError,
    SessionRefusedError,
    SwarmError,
)
from chainserve.planning.route import Holding, fewest_hops
from chainserve.protocol.messages import Activations, Failed, FailureCode, Message, PlanBody, PlanRequest
from chainserve.protocol.session import ClientSession
from chainserve.swarm.interface import Swarm
from chainserve.swarm.plans import PlanRecord, SwarmPlan
from chainserve.swarm.records import Announcement
from chainserve.swarm.view import View
from chainserve.transport.exchange import PlanExchange
from chainserve.transport.links import Links
from chainserve.types import Chain, PeerId, SessionId
from chainserve_client.session import Session

logger = logging.getLogger(__name__)

REFRESH_S = 5.0
MAX_ATTEMPTS = 4
"""Chains tried for one session before the last refusal is reported."""


@dataclass(frozen=True, slots=True)
class ModelInSwarm:
    """A model that some server of the swarm holds blocks of."""

    name: str
    digest: str
    num_blocks: int
    dtype: str


class Network:
    """Sessions over the swarm's servers."""

    links: Links  # set once made, as they call `handle`, `lost` and `refused`
    exchange: PlanExchange  # set with them

    def __init__(self, swarm: Swarm) -> None:
        self.swarm = swarm
        self._watching = asyncio.create_task(self.watch())
        self._sessions: dict[SessionId, Session] = {}
        self._read: tuple[PlanRecord, SwarmPlan] | None = None  # the last plan that was read

    async def watch(self) -> None:
        """Keep the view fresh until cancelled: reading it takes seconds while a peer does not answer."""
        while True:
            with suppress(SwarmError):
                await self.swarm.refresh()
            await asyncio.sleep(REFRESH_S)

    async def plan(self, model_digest: str) -> SwarmPlan | None:
        """The plan of a model that is followed now, None if there is none, after a fresh look at the swarm.

        PeerError if nobody hands it out, RecordError if it is not what its record says.
        """
        view = await self.swarm.refresh()
        record = view.plan(model_digest)
        return None if record is None else await self.read_plan(record, view)

    async def read_plan(self, record: PlanRecord, view: View) -> SwarmPlan:
        """The plan of a record, fetched if it is too large for that; PeerError and RecordError as in `plan`."""
        if self._read is None or self._read[0] != record:
            body = record.body if record.body is not None else await self.exchange.fetch(record, view)
            self._read = record, record.open(body)
        return self._read[1]

    async def open_session(
        self, model: ModelInSwarm, *, num_lanes: int, max_tokens: int, chain: Chain | None = None
    ) -> Session:
        """Open a session on the best chain there is, trying others where servers refuse or are gone.

        NoChainError if blocks are missing, PromptTooLongError if no chain's cache can ever hold the session,
        otherwise the last server's refusal. With a `chain` that one is tried and no other, and a refusal is raised as
        it is; RequestError if it does not run all blocks of the model.
        """
        if chain is not None:
            if chain.num_blocks != model.num_blocks:
                raise RequestError(f"the chain runs {chain.num_blocks} blocks, {model.name} has {model.num_blocks}")
            return await self._open_on(chain, model, num_lanes=num_lanes, max_tokens=max_tokens)
        avoid: set[PeerId] = set()
        refusal: PeerError | None = None
        num_tokens = num_lanes * max_tokens
        for _ in range(MAX_ATTEMPTS):
            try:
                chosen = await self._choose(model, avoid, num_tokens=num_tokens)
            except (NoChainError, PromptTooLongError):
                if refusal is None:
                    raise
                break
            try:
                return await self._open_on(chosen, model, num_lanes=num_lanes, max_tokens=max_tokens)
            except (LinkLostError, SessionRefusedError) as error:
                logger.info("no session on %s: %s", chosen, error)
                refusal = error
                avoid.add(PeerId(error.peer))
                await self.swarm.refresh()
        assert refusal is not None
        await self._choose(model, set(), num_tokens=num_tokens)  # raises if blocks are missing by now
        raise refusal

    async def _choose(self, model: ModelInSwarm, avoid: set[PeerId], *, num_tokens: int) -> Chain:
        """A chain from the view we have, or if there is none from a fresh one."""

        def choose() -> Chain:
            servers = [server for server in self.swarm.view.online(model.digest) if server.peer not in avoid]
            return choose_chain(servers, num_blocks=model.num_blocks, num_tokens=num_tokens)

        try:
            return choose()
        except (NoChainError, PromptTooLongError):
            await self.swarm.refresh()
            return choose()

    async def _open_on(self, chain: Chain, model: ModelInSwarm, *, num_lanes: int, max_tokens: int) -> Session:
        for peer in {chain.head, chain.tail}:
            await self.links.connect(peer)
        session_id = SessionId(secrets.token_bytes(16))
        state = ClientSession(
            session_id,
            chain,
            model=model.digest,
            client=self.swarm.peer_id,
            num_lanes=num_lanes,
            max_tokens=max_tokens,
        )

        async def send(message: Message) -> None:
            try:
                await self.links.send(chain.head, message)
            except LinkLostError as error:
                session.deliver(Failed(session_id, chain.head, FailureCode.PEER_LOST, error.reason))

        def forget() -> None:
            self._sessions.pop(session_id, None)

        session = Session(state, send=send, on_close=forget)
        self._sessions[session_id] = session
        async with AsyncExitStack() as undo:
            undo.push_async_callback(session.close)
            await session.open()
            undo.pop_all()
        return session

    def handle(self, peer: PeerId, message: Message) -> None:
        """Take a message from a server: about a plan, or what a session's head or tail says, which is the session's."""
        if isinstance(message, PlanRequest | PlanBody):
            self.exchange.handle(peer, message)
            return
        ids = {step.session for step in message.steps} if isinstance(message, Activations) else {message.session}
        for session_id in ids:
            session = self._sessions.get(session_id)
            if session is not None and peer in (session.chain.head, session.chain.tail):
                session.deliver(message)

    def lost(self, peer: PeerId, reason: str) -> None:
        """The link to a server is gone: its sessions are over."""
        for session_id, session in list(self._sessions.items()):
            if peer in (session.chain.head, session.chain.tail):
                session.deliver(Failed(session_id, peer, FailureCode.PEER_LOST, f"link lost: {reason}"))

    def refused(self, peer: PeerId, error: FrameError) -> None:
        """A server's frame made no sense: the sessions it was for are over."""
        for session_id in map(SessionId, error.sessions):
            if session := self._sessions.get(session_id):
                session.deliver(Failed(session_id, peer, FailureCode.BAD_MESSAGE, str(error)))

    async def close(self) -> None:
        """End all sessions and leave the swarm."""
        for session in list(self._sessions.values()):
            await session.close()
        self._watching.cancel()
        await self.links.close()
        await self.swarm.close()


def choose_chain(servers: list[Announcement], *, num_blocks: int, num_tokens: int) -> Chain:
    """The chain with the fewest hops over servers whose caches can hold `num_tokens`, those free now first.

    NoChainError if blocks are missing; PromptTooLongError, with the longest there is room for, if all blocks are
    there but not with caches that large.
    """

    def over(servers: list[Announcement]) -> Chain:
        holdings = [Holding(server.peer, span, server.free_tokens) for server in servers if (span := server.span)]
        return fewest_hops(holdings, num_blocks=num_blocks)

    over(servers)
    for free_now in (True, False):
        with suppress(NoChainError):
            return over([s for s in servers if (s.free_tokens if free_now else s.cache_tokens) >= num_tokens])
    for size in sorted((server.cache_tokens for server in servers), reverse=True):
        with suppress(NoChainError):
            over([server for server in servers if server.cache_tokens >= size])
            raise PromptTooLongError(num_tokens, limit=size)
    raise AssertionError("all servers together make a chain")
