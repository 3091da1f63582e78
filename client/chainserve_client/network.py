"""The client in its swarm: sees who is there and what is planned, and passes on what servers say to its sessions."""

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass

from chainserve.errors import FrameError, LinkLostError, PeerError, RecordError, SwarmError
from chainserve.protocol.messages import (
    Activations,
    Admitted,
    Answer,
    Ask,
    Failed,
    FailureCode,
    Leaving,
    Message,
    Opened,
    Queued,
    Sampled,
    Stalled,
)
from chainserve.protocol.sampling import Sampling
from chainserve.protocol.search import Candidate
from chainserve.protocol.session import ClientSession
from chainserve.swarm.interface import Swarm
from chainserve.swarm.plans import PlanRecord, SwarmPlan
from chainserve.swarm.records import Announcement
from chainserve.swarm.view import View
from chainserve.transport.exchange import Exchange
from chainserve.transport.links import Links
from chainserve.transport.outbox import Outbox
from chainserve.types import Chain, PeerId, SessionId
from chainserve_client.chain_session import ChainSession, Predict

logger = logging.getLogger(__name__)

REFRESH_S = 5.0
SUSPECT_S = 60.0
"""So long a server that was lost is on no new chain, whatever its record says, unless it shows that it lives."""
ALIVE_S = 3.0
"""Within which a server that lives can be reached and beats."""
LOOK_S = (0.0, 0.5, 1.0, 2.0, 4.0)
"""After which a server that was lost is looked for, again and again."""

PlaceAnswer = Admitted | Queued | Failed
SessionMessage = Activations | Sampled | Opened | Failed | Leaving | Stalled
"""What servers say to a session."""


@dataclass(frozen=True, slots=True)
class ModelInSwarm:
    """A model that some server of the swarm holds blocks of."""

    name: str
    digest: str
    num_blocks: int
    dtype: str


def models_in(view: View) -> list[ModelInSwarm]:
    """The models that servers of the swarm hold blocks of."""
    return [
        ModelInSwarm(servers[0].model, digest, servers[0].num_blocks, servers[0].dtype)
        for digest, servers in view.models().items()
    ]


class Network:
    """What the client knows of its swarm, and its links there."""

    links: Links  # set by `connect_to`, as they call `handle`, `lost` and `refused`
    exchange: Exchange
    outbox: Outbox

    def __init__(self, swarm: Swarm) -> None:
        self.swarm = swarm
        self._watching = asyncio.create_task(self.watch())
        self._sessions: dict[SessionId, ChainSession] = {}
        self._searches: dict[SessionId, tuple[PeerId, asyncio.Queue[PlaceAnswer]]] = {}
        self._suspects: dict[PeerId, float | None] = {}  # servers that were lost, and which start of each
        self._looking: dict[PeerId, asyncio.Task[None]] = {}
        self._read: tuple[PlanRecord, SwarmPlan] | None = None  # the last plan that was read

    def connect_to(self, links: Links) -> None:
        """Use these links, which have to call `handle`, `lost` and `refused`."""
        self.links = links
        self.exchange = Exchange(links)
        self.outbox = Outbox(links, on_lost=self.lost)

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

    async def plan_in_view(self, model_digest: str) -> SwarmPlan | None:
        """The plan of a model by the view we have, without asking the swarm; None if there is none, or none to read."""
        record = self.swarm.view.plan(model_digest)
        if record is None:
            return None
        try:
            return await self.read_plan(record, self.swarm.view)
        except (PeerError, RecordError) as error:
            logger.info("the plan of epoch %d cannot be read: %s", record.epoch, error)
            return None

    async def read_plan(self, record: PlanRecord, view: View) -> SwarmPlan:
        """The plan of a record, fetched if it is too large for that; PeerError and RecordError as in `plan`."""
        if self._read is None or self._read[0] != record:
            body = record.body if record.body is not None else await self.exchange.fetch(record, view)
            self._read = record, record.open(body)
        return self._read[1]

    def usable(self, model_digest: str) -> list[Announcement]:
        """Servers of the model that take sessions, but for those that were lost a moment ago."""
        return [server for server in self.swarm.view.online(model_digest) if not self._is_suspect(server)]

    def suspect(self, peer: PeerId) -> None:
        """A server was lost, or could not be reached: it is on no new chain until it shows that it lives."""
        record = self.swarm.view.servers.get(peer)
        self._suspects[peer] = record.started_at if record else None
        if peer not in self._looking:
            self._looking[peer] = asyncio.create_task(self._look_for(peer))

    def trust_again(self) -> bool:
        """Suspect nobody any more; whether anybody was."""
        had_some = bool(self._suspects)
        self._suspects.clear()
        return had_some

    def _is_suspect(self, server: Announcement) -> bool:
        return self._suspects.get(server.peer, -1.0) in (None, server.started_at)

    async def _look_for(self, peer: PeerId) -> None:
        """Try to reach a server that was lost: what was torn may be whole again, what was frozen may have thawed."""
        try:
            async with asyncio.timeout(SUSPECT_S):
                for pause_s in itertools.chain(LOOK_S, itertools.repeat(LOOK_S[-1])):
                    await asyncio.sleep(pause_s)
                    if peer not in self.swarm.view.servers:
                        return
                    with suppress(LinkLostError, TimeoutError):
                        async with asyncio.timeout(ALIVE_S):
                            await self.links.connect(peer)
                            await self.links.next_beat(peer)
                        if self.links.kind(peer) is not None:
                            return
        except TimeoutError:
            pass
        finally:
            self._suspects.pop(peer, None)
            self._looking.pop(peer, None)

    async def open_on(
        self,
        chain: Chain,
        session_id: SessionId,
        model: ModelInSwarm,
        *,
        num_lanes: int,
        max_tokens: int,
        sampling: Sampling | None = None,
        prefix: tuple[bytes, ...] = (),
        ids: tuple[int, ...] = (),
        predict: Predict | None = None,
        on_end: Callable[[], None] = lambda: None,
    ) -> ChainSession:
        """Open a session on this chain, in token mode with `sampling`, where `prefix` are the hashes of the pages of
        its prompt `ids`.

        `on_end` is called when it is over, or could not be opened. LinkLostError and SessionRefusedError name the
        server that did not take it.
        """
        state = ClientSession(
            session_id,
            chain,
            model=model.digest,
            client=self.swarm.peer_id,
            num_lanes=num_lanes,
            max_tokens=max_tokens,
            sampling=sampling,
            prefix=prefix,
            ids=ids,
        )

        async def send(message: Message) -> None:
            try:
                await self.links.send(chain.head, message)
            except LinkLostError as error:
                session.deliver(Failed(session_id, chain.head, FailureCode.PEER_LOST, error.reason))

        def forget() -> None:
            if self._sessions.pop(session_id, None) is not None:
                on_end()

        session = ChainSession(state, send=send, on_close=forget, predict=predict)
        self._sessions[session_id] = session
        async with AsyncExitStack() as undo:
            undo.push_async_callback(session.close)
            for peer in dict.fromkeys((chain.head, chain.tail)):
                await self.links.connect(peer)
            await session.open()
            undo.pop_all()
        return session

    @contextmanager
    def answers_about(self, places: Sequence[Candidate]) -> Iterator[asyncio.Queue[PlaceAnswer]]:
        """What heads answer about these places, while they are asked for them."""
        answers: asyncio.Queue[PlaceAnswer] = asyncio.Queue()
        self._searches.update({place.session: (place.head, answers) for place in places})
        try:
            yield answers
        finally:
            for place in places:
                del self._searches[place.session]

    def handle(self, peer: PeerId, message: Message) -> None:
        """Take a message from a server: about a plan or a place, or what a session's head or tail says to it."""
        if isinstance(message, Ask | Answer):
            self.exchange.handle(peer, message)
            return
        if isinstance(message, Failed) and message.code is FailureCode.PEER_LOST:
            self.suspect(message.peer)
        if isinstance(message, PlaceAnswer):
            head, answers = self._searches.get(message.session, (None, None))
            if answers is not None and head == peer:
                answers.put_nowait(message)
            if not isinstance(message, Failed):
                return  # of a place that was found meanwhile: its session has the same id
        if not isinstance(message, SessionMessage):
            return
        for session_id in sessions_of(message):
            session = self._sessions.get(session_id)
            if session is not None and peer in (session.chain.head, session.chain.tail):
                session.deliver(message)

    def lost(self, peer: PeerId, reason: str) -> None:
        """The link to a server is gone: its sessions are over, and its places."""
        self.outbox.forget(peer)
        self.suspect(peer)
        for session_id, session in list(self._sessions.items()):
            if peer in (session.chain.head, session.chain.tail):
                session.deliver(Failed(session_id, peer, FailureCode.PEER_LOST, f"link lost: {reason}"))
        for session_id, (head, answers) in list(self._searches.items()):
            if head == peer:
                answers.put_nowait(Failed(session_id, peer, FailureCode.PEER_LOST, f"link lost: {reason}"))

    def refused(self, peer: PeerId, error: FrameError) -> None:
        """A server's frame made no sense: the sessions it was for are over."""
        for session_id in map(SessionId, error.sessions):
            if session := self._sessions.get(session_id):
                session.deliver(Failed(session_id, peer, FailureCode.BAD_MESSAGE, str(error)))

    async def close(self) -> None:
        """End all sessions and leave the swarm."""
        for session in list(self._sessions.values()):
            await session.close()
        for task in (self._watching, *self._looking.values()):
            task.cancel()
        await self.outbox.close()
        await self.links.close()
        await self.swarm.close()


def sessions_of(message: SessionMessage) -> set[SessionId]:
    """The sessions that a message is for."""
    match message:
        case Activations():
            return {step.session for step in message.steps}
        case Sampled():
            return {choice.session for choice in message.choices}
        case _:
            return {message.session}
