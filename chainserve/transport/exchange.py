"""Plans that are too large for a record, handed from peer to peer over links."""

import asyncio
import logging
from collections import OrderedDict
from contextlib import suppress

from chainserve.errors import FrameError, LinkLostError, PeerError
from chainserve.protocol.messages import Message, PlanBody, PlanRequest
from chainserve.swarm.plans import PlanRecord, SwarmPlan
from chainserve.swarm.view import View
from chainserve.transport.links import Links
from chainserve.types import PeerId

logger = logging.getLogger(__name__)

NUM_KEPT = 4
"""Plans that are handed out: those who look rarely may ask for one that is not the last."""
ANSWER_S = 5.0
"""For each peer that is asked, to connect and to hand the plan out."""
MAX_ASKED = 3


class PlanExchange:
    """Asks others for plans, and answers those who ask. `Links` have to pass it the messages that it knows."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._kept: OrderedDict[str, bytes] = OrderedDict()  # by digest
        self._awaited: dict[asyncio.Future[bytes], tuple[PeerId, str]] = {}
        self._answers: set[asyncio.Task[None]] = set()

    def keep(self, plan: SwarmPlan) -> None:
        """Hand this plan out from now on."""
        self._kept[plan.digest] = plan.body
        self._kept.move_to_end(plan.digest)
        while len(self._kept) > NUM_KEPT:
            self._kept.popitem(last=False)

    def handle(self, peer: PeerId, message: Message) -> bool:
        """Take a message that is about a plan; False if it is about something else."""
        match message:
            case PlanRequest(digest):
                answer = PlanBody(digest, self._kept.get(digest, b""))
                task = asyncio.create_task(self._send(peer, answer))
                self._answers.add(task)
                task.add_done_callback(self._answers.discard)
            case PlanBody(digest, body):
                for awaited, asked in self._awaited.items():
                    if asked == (peer, digest) and not awaited.done():
                        awaited.set_result(bytes(body))
            case _:
                return False
        return True

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
                async with asyncio.timeout(ANSWER_S):
                    if body := await self._ask(peer, record.digest):
                        return body
                error = LinkLostError(peer, "does not have the plan that it follows")
            except TimeoutError:
                error = LinkLostError(peer, f"no plan within {ANSWER_S:g} s")
            except LinkLostError as lost:
                error = lost
        raise error

    async def _ask(self, peer: PeerId, digest: str) -> bytes:
        await self._links.connect(peer)
        awaited: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._awaited[awaited] = peer, digest
        try:
            await self._links.send(peer, PlanRequest(digest))
            return await awaited
        finally:
            del self._awaited[awaited]

    async def _send(self, peer: PeerId, answer: PlanBody) -> None:
        with suppress(LinkLostError, FrameError):  # who asked is gone, and will ask another
            await self._links.send(peer, answer)
