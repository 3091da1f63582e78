"""Bytes are counted by what the peer at the other end is, also where that is known only after it has called."""

from contextlib import AsyncExitStack
from dataclasses import replace

from pairs import FAST, A, B, memory_peers, session, until

from chainserve.protocol.messages import Opened
from chainserve.types import PeerId


async def test_what_came_before_the_peer_was_known_counts_for_what_it_is(stack: AsyncExitStack) -> None:
    servers: set[PeerId] = set()

    def role_of(peer: PeerId) -> str:
        return "server" if peer in servers else "client"

    a, b, _ = await memory_peers(stack, timing=replace(FAST, known_s=0.1), role_of=role_of)
    await a.links.connect(B)
    await a.send(b, Opened(session(1)))
    servers.add(A)
    await until(lambda: b.links.counters.traffic)
    [(key, traffic)] = b.links.counters.traffic.items()
    assert key == ("server", "memory")
    assert 0 < traffic.bytes_received <= b.links.counters.bytes_received
    assert b.links.standing() == {("server", "memory"): 1}


async def test_of_a_link_that_ended_soon_everything_is_counted(stack: AsyncExitStack) -> None:
    a, b, _ = await memory_peers(stack, timing=FAST, role_of=lambda _: "client")
    await a.links.connect(B)
    await a.send(b, Opened(session(1)))
    await b.messages.get()
    await a.links.close()
    await b.lost.get()
    seen = b.links.counters
    traffic = seen.traffic["client", "memory"]
    assert (traffic.bytes_sent, traffic.bytes_received) == (seen.bytes_sent, seen.bytes_received)
    assert b.links.standing() == {}
