"""What one peer asks another for over links, beside its sessions: plans, and what a client has to know."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from chainserve.errors import FrameError, LinkLostError, PeerError
from chainserve.protocol.messages import Answer, Ask, Message, Topic
from chainserve.swarm.plans import PlanRecord, SwarmPlan
from chainserve.swarm.view import View
from chainserve.transport.links import Links
from chainserve.types import PeerId

NUM_KEPT = 4
"""Plans that are handed out: those who look rarely may ask for one that is not the last."""
ANSWER_S = 5.0
"""For each peer that is asked, to connect and to hand out what it was asked for."""
MAX_ASKED = 3
MAX_OWED = 8
"""Answers that one peer may wait for: what it asks beyond that is dropped, as each may be large."""

Find = Callable[[str], Awaitable[bytes]]
"""Finds what is asked for by this name; empty if it is not here."""
TryToReach = Callable[[PeerId, str], Awaitable[bytes]]
"""Calls who asks, where it says, and tells how that went."""


class Exchange:
    """Asks others, and answers those who ask. `Links` have to pass it the messages that it knows."""

    def __init__(
        self, links: Links, *, answers: Mapping[Topic, Find] | None = None, try_to_reach: TryToReach | None = None
    ) -> None:
        """`answers` find what is handed out beside plans."""
        self._links = links
        self._try_to_reach = try_to_reach
        self._find = {Topic.PLAN: self._find_plan, **(answers or {})}
        self._kept: OrderedDict[str, bytes] = OrderedDict()  # plans by digest
        self._awaited: dict[asyncio.Future[bytes], tuple[PeerId, Topic, str]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._owed: Counter[PeerId] = Counter()

    def keep(self, plan: SwarmPlan) -> None:
        """Hand this plan out from now on."""
        self._kept[plan.digest] = plan.body
        self._kept.move_to_end(plan.digest)
        while len(self._kept) > NUM_KEPT:
            self._kept.popitem(last=False)

    def handle(self, peer: PeerId, message: Message) -> bool:
        """Take a message that asks or answers; False if it is about something else."""
        match message:
            case Ask():
                if self._owed[peer] < MAX_OWED:
                    self._owed[peer] += 1
                    task = asyncio.create_task(self._answer(peer, message))
                    self._answering.add(task)
                    task.add_done_callback(self._answering.discard)
            case Answer(topic, name, body):
                for awaited, asked in self._awaited.items():
                    if asked == (peer, topic, name) and not awaited.done():
                        awaited.set_result(bytes(body))
            case _:
                return False
        return True

    async def ask(self, peer: PeerId, topic: Topic, name: str, *, timeout_s: float = ANSWER_S) -> bytes:
        """What `peer` hands out, empty if it does not have it; LinkLostError if it does not answer within the time."""
        awaited: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                await self._links.connect(peer)
                self._awaited[awaited] = peer, topic, name
                await self._links.send(peer, Ask(topic, name))
                return await awaited
        except TimeoutError:
            raise LinkLostError(peer, f"no answer within {timeout_s:g} s") from None
        finally:
            self._awaited.pop(awaited, None)

    async def fetch(self, record: PlanRecord, view: View) -> bytes:
        """The bytes of a plan: from its planner, or from others that follow it; PeerError if none hands them out."""
        followers = [
            peer
            for peer, server in view.servers.items()
            if (server.model_digest, server.epoch) == (record.model_digest, record.epoch)
        ]
        asked = dict.fromkeys((record.planner, *followers))
        error: PeerError = LinkLostError(record.planner, "nobody else follows its plan")
        for peer in list(asked)[:MAX_ASKED]:
            try:
                if body := await self.ask(peer, Topic.PLAN, record.digest):
                    return body
                error = LinkLostError(peer, "does not have the plan that it follows")
            except LinkLostError as lost:
                error = lost
        raise error

    async def _find_plan(self, digest: str) -> bytes:
        return self._kept.get(digest, b"")

    async def _body(self, peer: PeerId, asked: Ask) -> bytes:
        if asked.topic is Topic.REACH:
            return await self._try_to_reach(peer, asked.name) if self._try_to_reach else b""
        find = self._find.get(asked.topic)
        return await find(asked.name) if find else b""

    async def _answer(self, peer: PeerId, asked: Ask) -> None:
        try:
            body = await self._body(peer, asked)
            with suppress(LinkLostError, FrameError):  # who asked is gone, and will ask another
                await self._links.send(peer, Answer(asked.topic, asked.name, body))
        finally:
            self._owed[peer] -= 1
            if not self._owed[peer]:
                del self._owed[peer]
