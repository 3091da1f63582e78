"""The rate of a link: measured by large frames as they pass, or by a probe where none do."""

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any

import pytest
from pairs import FAST, KINDS, A, B, MakePeers, Peer, activations, memory_peers, session, until

from chainserve.errors import LinkLostError
from chainserve.protocol.messages import Opened
from chainserve.transport import direct
from chainserve.transport.beats import LOAD_BYTES
from chainserve.transport.links import Timing
from chainserve.transport.memory import Wire

PROBE_BYTES = 2 * LOAD_BYTES


async def linked(stack: AsyncExitStack, wire: Wire, timing: Timing = FAST) -> tuple[Peer, Peer]:
    """Two peers that know their round trip from some beats."""
    a, b, _ = await memory_peers(stack, wire, timing=timing)
    await a.links.connect(B)
    await until(lambda: min(a.links.counters.frames_received, b.links.counters.frames_received) > 8)
    return a, b


@pytest.mark.parametrize("kind", KINDS)
async def test_a_probe_tells_the_rate_over_every_transport(make_peers: MakePeers, kind: str) -> None:
    a, b = await make_peers(kind, timing=Timing())
    await a.links.connect(b.me)
    started = time.monotonic()
    assert a.links.bytes_per_s(b.me) is None
    for _ in range(3):
        await a.links.probe(b.me, PROBE_BYTES)
    rate = a.links.bytes_per_s(b.me)
    assert rate is not None
    assert 2e6 < rate < 1e9
    assert time.monotonic() - started < 3
    assert b.messages.empty()  # no message, so nobody has to handle it
    await b.links.probe(a.me, PROBE_BYTES)
    assert b.links.bytes_per_s(a.me) is not None


@pytest.mark.parametrize("wire", [Wire(0.02, 2e6), Wire(0.005, 4e6), Wire(0.1, 3e6)], ids=["slow", "fast", "far"])
async def test_a_probe_tells_the_rate_of_the_wire(stack: AsyncExitStack, wire: Wire) -> None:
    a, _ = await linked(stack, wire)
    for _ in range(3):
        await a.links.probe(B, PROBE_BYTES)
    assert a.links.bytes_per_s(B) == pytest.approx(wire.bytes_per_s, rel=0.25)


async def test_activations_tell_the_rate_of_the_wire_both_ways_at_once(stack: AsyncExitStack) -> None:
    a, b = await linked(stack, Wire(0.02, 4e6))

    async def send_many(sender: Peer, receiver: Peer) -> None:
        for _ in range(5):
            await sender.send(receiver, activations(PROBE_BYTES))

    await asyncio.gather(send_many(a, b), send_many(b, a))
    await until(lambda: a.links.bytes_per_s(B) and b.links.bytes_per_s(A))
    await asyncio.sleep(0.3)  # until the last has arrived
    assert a.links.bytes_per_s(B) == pytest.approx(4e6, rel=0.25)
    assert b.links.bytes_per_s(A) == pytest.approx(4e6, rel=0.25)
    for measured in (a.links.round_trip_s(B), b.links.round_trip_s(A)):
        assert measured == pytest.approx(0.04, rel=0.25)  # though beats waited behind activations


async def test_a_link_slower_than_its_beats_is_measured(make_peers: MakePeers, monkeypatch: pytest.MonkeyPatch) -> None:
    send_bytes = direct.aiohttp.ClientWebSocketResponse.send_bytes

    async def slowly(self: Any, data: bytes, compress: int | None = None) -> None:
        await asyncio.sleep(0.1 if len(data) >= direct.PIECE_BYTES else 0)
        await send_bytes(self, data, compress)

    monkeypatch.setattr(direct.aiohttp.ClientWebSocketResponse, "send_bytes", slowly)
    a, b = await make_peers("direct")
    await a.links.connect(b.me)
    await until(lambda: a.links.counters.frames_received > 8)
    for _ in range(2):
        await a.links.probe(b.me, 3 * direct.PIECE_BYTES)  # takes 0.3 s, and a beat comes every 0.02
        assert a.links.bytes_per_s(b.me) == pytest.approx(direct.PIECE_BYTES / 0.1, rel=0.25)


async def test_small_frames_carry_no_beat_behind_them(stack: AsyncExitStack) -> None:
    a, b, _ = await memory_peers(stack, timing=Timing(heartbeat_s=60, keepalive_s=60))
    await a.links.connect(B)
    await until(lambda: a.links.counters.frames_received and b.links.counters.frames_received)
    before, answers = a.links.counters.frames_sent, b.links.counters.frames_sent
    for number in range(100):
        await a.send(b, Opened(session(number)))
        await a.send(b, activations(LOAD_BYTES // 2))
    assert a.links.counters.frames_sent - before == 200
    await a.send(b, activations(LOAD_BYTES))
    assert a.links.counters.frames_sent - before == 202
    await until(lambda: b.links.counters.frames_sent == answers + 1)  # at once, not a minute later


async def test_a_probe_needs_a_link_and_ends_with_it(stack: AsyncExitStack) -> None:
    a, b, _ = await memory_peers(stack, Wire(0.01, 1e5))
    with pytest.raises(LinkLostError, match="no link"):
        await a.links.probe(B, PROBE_BYTES)
    with pytest.raises(LinkLostError, match="no link"):
        await a.links.next_beat(B)
    assert a.links.bytes_per_s(B) is None
    await a.links.connect(B)
    probing = asyncio.create_task(a.links.probe(B, PROBE_BYTES))
    waiting = asyncio.create_task(a.links.next_beat(B))
    await until(lambda: waiting.done())
    await b.links.close()
    with pytest.raises(LinkLostError):
        await probing


async def test_closing_ends_a_probe_with_a_named_error(stack: AsyncExitStack) -> None:
    a, _, _ = await memory_peers(stack, Wire(0.01, 1e5))
    await a.links.connect(B)
    probing = asyncio.create_task(a.links.probe(B, PROBE_BYTES))
    await asyncio.sleep(0.05)
    await a.links.close()
    with pytest.raises(LinkLostError, match="closed"):
        await probing


async def test_who_gives_up_a_probe_breaks_no_link(make_peers: MakePeers) -> None:
    a, b = await make_peers("direct")
    await a.links.connect(b.me)
    for _ in range(20):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await a.links.probe(b.me, PROBE_BYTES)
    await a.send(b, Opened(session(1)))
    assert await b.messages.get() == (a.me, Opened(session(1)))
    assert a.links.counters.links_lost == 0
    await until(lambda: a.links.bytes_per_s(b.me))


async def test_a_link_in_use_is_told_from_one_at_rest(stack: AsyncExitStack) -> None:
    a, b, _ = await memory_peers(stack, timing=Timing(active_s=0.1))
    await a.links.connect(B)
    assert not a.links.is_active(A)
    await until(lambda: not a.links.is_active(B) and not b.links.is_active(A))
    await a.links.probe(B, PROBE_BYTES)
    assert not a.links.is_active(B)
    await a.send(b, activations(100))
    assert a.links.is_active(B)
    await until(lambda: b.links.is_active(A))
