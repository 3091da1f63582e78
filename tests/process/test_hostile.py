"""A member of the swarm that sends nonsense loses its own session; the server goes on serving others."""

import asyncio
import secrets
import time
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from bundled import MakeSwarm

from chainserve.errors import LinkLostError, SessionLostError
from chainserve.models.wire import to_wire
from chainserve.protocol.codec import decode, encode
from chainserve.protocol.fields import Limits
from chainserve.protocol.messages import Activations, Close, Failed, FailureCode, Open, Reorder, Step
from chainserve.swarm.identity import Identity
from chainserve.swarm.token import JoinToken
from chainserve.transport.direct import DirectTransport
from chainserve.transport.handshake import Credentials
from chainserve.transport.interface import HARD_FRAME_BYTES, Link
from chainserve.types import Hop, SessionId
from chainserve_client import AsyncClient

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


async def answer_from(link: Link, session: SessionId) -> Failed:
    """The next failure of `session` that comes over a link, whatever else comes before."""
    async with asyncio.timeout(5):
        while True:
            message = decode(await link.receive(), Limits())
            if isinstance(message, Failed) and message.session == session:
                return message


async def until_lost(link: Link) -> None:
    while True:
        await link.receive()


async def test_nonsense_costs_its_sender_one_session_and_nobody_else_anything(make_swarm: MakeSwarm) -> None:
    swarm = await asyncio.to_thread(make_swarm, "0:15", "15:30")
    async with await AsyncClient.connect(swarm.token) as client:
        bystander = client.stream("Once upon a time", max_new_tokens=400)
        await anext(bystander)

        # Frames that are no frames, and frames of a session that are not what was agreed.
        with pytest.raises(SessionLostError, match="width 7"):
            await misuse(client, torch.zeros(1, 7))
        with pytest.raises(SessionLostError, match="nothing is reserved"):
            await misuse(client, torch.zeros(1, 576), lane=3)
        with pytest.raises(SessionLostError, match="has 0 tokens"):
            await misuse(client, torch.zeros(1, 576), start=5)

        invitation = JoinToken.decode(swarm.token, now=time.time())
        identity = Identity.generate()
        transport = DirectTransport(Credentials(identity, invitation.secret))
        head, *others = sorted(client.network.swarm.view.servers.values(), key=lambda server: server.span)
        link = await transport.connect(head.peer, head.addresses)
        hops = (Hop(head.peer, head.span), *(Hop(tail.peer, tail.span) for tail in others))
        own = SessionId(secrets.token_bytes(16))
        opening = Open(own, client.model.digest, hops, 0, identity.peer_id, num_lanes=1, max_tokens=8)
        valid = encode(Activations((Step(own, 0, 0, 1, 1),), to_wire(torch.zeros(1, 576))))
        for frame in (
            b"",
            b"nonsense",
            bytes(100),
            valid[:-1],
            b"\xff" + valid[1:],
            bytes(Limits().max_frame_bytes + 1),
        ):
            await link.send(frame)
        for message in (Close(own), Reorder(own, (0,)), replace(opening, model="another model")):
            await link.send(encode(message))
        refused = await answer_from(link, own)
        assert refused.code is FailureCode.NOT_HELD

        # The link still stands; a frame beyond the hard limit ends it, and only it.
        with suppress(LinkLostError):
            await link.send(bytes(HARD_FRAME_BYTES + 1))
        with pytest.raises(LinkLostError):
            await asyncio.wait_for(until_lost(link), 20)
        await transport.close()

        stranger = DirectTransport(Credentials(identity, bytes(32)))
        with pytest.raises(LinkLostError):
            await stranger.connect(head.peer, head.addresses)
        await stranger.close()

        async for _ in bystander:
            pass
        assert bystander.result.finish_reason in ("length", "stop")
        assert all(server.process.poll() is None for server in swarm.servers)
        for server in swarm.servers:
            assert "Traceback" not in server.output()


async def misuse(client: AsyncClient, hidden: torch.Tensor, *, lane: int = 0, start: int = 0) -> None:
    """Open a session and send one step that does not fit it."""
    session = (await client.open_session(num_lanes=1, max_tokens=8)).line.current
    try:
        session.state.step([1], [1], chunk_tokens=8)  # so that an answer is awaited
        await session.send(Activations((Step(session.state.id, lane, start, 1, 1),), to_wire(hidden)))
        while session.state.failure is None:
            session.state.receive(await asyncio.wait_for(session._inbox.get(), 5))
        session._raise_if_lost()
    finally:
        await session.close()
