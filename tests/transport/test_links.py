"""The pool of links: one standing link per peer, watched, measured and shared by all who connect."""

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any

import pytest
from pairs import FAST, KINDS, A, B, MakePeers, Peer, activations, memory_peers, session, until

from chainserve.errors import FrameError, LinkLostError
from chainserve.protocol.codec import encode
from chainserve.protocol.fields import Limits
from chainserve.protocol.messages import Close, Message, Opened
from chainserve.transport.links import Timing
from chainserve.transport.memory import MemoryTransport, Wire
from chainserve.types import PeerId


@pytest.mark.parametrize("kind", KINDS)
async def test_messages_go_both_ways_over_one_link(make_peers: MakePeers, kind: str) -> None:
    a, b = await make_peers(kind)
    await a.links.connect(b.me)
    for number in range(100):
        await a.send(b, Opened(session(number)))
    for number in range(100):
        assert await b.messages.get() == (a.me, Opened(session(number)))
    large = activations(20 * 2**20)
    await asyncio.gather(b.send(a, large), a.send(b, large))  # b has not connected: it uses a's link
    assert await a.messages.get() == (b.me, large)
    assert await b.messages.get() == (a.me, large)
    assert a.links.counters.links_made == b.links.counters.links_made == 1
    assert a.links.kind(b.me) == b.links.kind(a.me) == ("direct" if kind == "tls" else kind)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_closed_peer_is_noticed_within_a_second(make_peers: MakePeers, kind: str) -> None:
    a, b = await make_peers(kind, timing=Timing())
    await a.links.connect(b.me)
    await until(lambda: b.links.kind(a.me))
    started = time.monotonic()
    await b.links.close()
    assert (await a.lost.get())[0] == b.me
    assert time.monotonic() - started < 1
    with pytest.raises(LinkLostError):
        await a.send(b, Opened(session(1)))
    assert b.lost.empty()  # its own doing


@pytest.mark.parametrize("kind", KINDS)
async def test_a_frozen_peer_is_noticed_even_while_a_send_waits_for_it(
    make_peers: MakePeers, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def freeze(*_: object) -> None:
        await asyncio.Event().wait()

    a, b = await make_peers(kind)
    monkeypatch.setattr(b.links, "_read", freeze)
    monkeypatch.setattr(b.links, "_beat", freeze)
    monkeypatch.setattr(b.links, "_watch", freeze)
    started = time.monotonic()
    await a.links.connect(b.me)

    async def send_forever() -> None:
        while True:
            await a.send(b, activations(2**20))

    sending = asyncio.create_task(send_forever())
    peer, reason = await a.lost.get()
    assert (peer, reason) == (b.me, "silent for 0.5 s")
    with pytest.raises(LinkLostError):
        await sending
    assert time.monotonic() - started < 2
    started = time.monotonic()
    await a.links.close()
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("kind", KINDS)
async def test_closing_takes_less_than_a_second_with_a_frozen_peer(
    make_peers: MakePeers, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def freeze(*_: object) -> None:
        await asyncio.Event().wait()

    a, b = await make_peers(kind, timing=Timing())
    monkeypatch.setattr(b.links, "_read", freeze)
    await a.links.connect(b.me)
    sending = [asyncio.create_task(a.send(b, activations(10 * 2**20))) for _ in range(8)]
    await asyncio.sleep(0.3)
    started = time.monotonic()
    await a.links.close()
    assert time.monotonic() - started < 1
    results = await asyncio.gather(*sending, return_exceptions=True)
    assert {type(result) for result in results} <= {type(None), LinkLostError}


@pytest.mark.parametrize("kind", KINDS)
async def test_two_peers_that_connect_at_once_keep_order(make_peers: MakePeers, kind: str) -> None:
    a, b = await make_peers(kind)
    await asyncio.gather(a.links.connect(b.me), b.links.connect(a.me))
    for number in range(300):
        await a.send(b, Opened(session(number)))
        await b.send(a, Close(session(number)))
    for number in range(300):
        assert await b.messages.get() == (a.me, Opened(session(number)))
        assert await a.messages.get() == (b.me, Close(session(number)))
    await a.links.close()
    assert (await b.lost.get())[0] == a.me
    assert b.lost.empty()  # told once, though there may have been two links


async def test_calls_at_once_share_one_attempt(stack: AsyncExitStack) -> None:
    a, b, _ = await memory_peers(stack, Wire(delay_s=0.02))
    await asyncio.gather(*(a.links.connect(B) for _ in range(10)))
    await a.links.connect(B)
    assert a.num_lookups == 1
    assert a.links.counters.links_made == 1
    assert b.links.counters.links_made == 1


async def test_a_caller_that_gives_up_leaves_the_attempt_to_the_others(stack: AsyncExitStack) -> None:
    a, _, _ = await memory_peers(stack, Wire(delay_s=0.05))
    first, second = (asyncio.create_task(a.links.connect(B)) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    await second
    assert a.links.kind(B) == "memory"


async def test_a_peer_that_nobody_knows_cannot_be_connected(stack: AsyncExitStack) -> None:
    a, _, _ = await memory_peers(stack)
    with pytest.raises(LinkLostError, match="no address"):
        await a.links.connect(PeerId("nobody"))
    with pytest.raises(LinkLostError, match="itself"):
        await a.links.connect(A)
    with pytest.raises(LinkLostError, match="no link"):
        await a.links.send(B, Opened(session(1)))
    assert a.links.kind(B) is None
    assert a.links.round_trip_s(B) is None


async def test_closing_ends_an_attempt_with_a_named_error(stack: AsyncExitStack) -> None:
    a, _, _ = await memory_peers(stack, Wire(delay_s=10), timing=Timing(connect_s=60))
    connecting = asyncio.create_task(a.links.connect(B))
    await asyncio.sleep(0.01)
    await a.links.close()
    with pytest.raises(LinkLostError, match="closed"):
        await connecting
    with pytest.raises(LinkLostError, match="closed"):
        await a.links.connect(B)


async def test_the_round_trip_is_measured_without_the_time_until_the_next_beat(stack: AsyncExitStack) -> None:
    timing = Timing(keepalive_s=0.09)  # a beat that takes 50 ms waits 40 for the next one back
    a, b, _ = await memory_peers(stack, Wire(delay_s=0.05), timing=timing)
    await a.links.connect(B)
    await until(lambda: a.links.counters.frames_received > 4 and b.links.counters.frames_received > 4)
    for measured in (a.links.round_trip_s(B), b.links.round_trip_s(A)):
        assert measured is not None
        assert 0.09 < measured < 0.13


async def test_an_active_link_beats_more_often(stack: AsyncExitStack) -> None:
    timing = Timing(heartbeat_s=10, keepalive_s=0.01, active_s=0.1)
    a, b, _ = await memory_peers(stack, timing=timing)
    await a.links.connect(B)
    await until(lambda: b.links.counters.frames_received >= 8)  # active when new
    await asyncio.sleep(0.2)
    before = b.links.counters.frames_received
    await asyncio.sleep(0.1)
    assert b.links.counters.frames_received == before  # then at rest


async def test_a_slow_link_is_not_taken_for_a_dead_one(make_peers: MakePeers, monkeypatch: pytest.MonkeyPatch) -> None:
    from chainserve.transport import direct

    send_bytes = direct.aiohttp.ClientWebSocketResponse.send_bytes

    async def slowly(self: Any, data: bytes, compress: int | None = None) -> None:
        await asyncio.sleep(0.1 if len(data) >= direct.PIECE_BYTES else 0)
        await send_bytes(self, data, compress)

    monkeypatch.setattr(direct.aiohttp.ClientWebSocketResponse, "send_bytes", slowly)
    a, b = await make_peers("direct")
    await a.links.connect(b.me)
    started = time.monotonic()
    await a.send(b, activations(10 * direct.PIECE_BYTES))  # twice the timeout
    assert (await b.messages.get())[0] == a.me
    assert time.monotonic() - started > FAST.timeout_s
    assert a.lost.empty()
    assert b.lost.empty()


async def test_a_stall_of_our_own_loop_loses_no_peer(stack: AsyncExitStack) -> None:
    a, b, _ = await memory_peers(stack)
    await a.links.connect(B)
    await asyncio.sleep(0.1)
    time.sleep(2 * FAST.timeout_s)  # noqa: ASYNC251  (the stall this test is about)
    await asyncio.sleep(0.3)
    assert a.lost.empty()
    assert b.lost.empty()


async def test_a_refused_frame_costs_only_that_frame(stack: AsyncExitStack, caplog: pytest.LogCaptureFixture) -> None:
    a, b, _ = await memory_peers(stack, limits=Limits(max_frame_bytes=1000))
    await a.links.connect(B)
    link = a.links._standing[B][0].link
    await link.send(b"nonsense")
    await link.send(encode(activations(2000)))
    await link.send(encode(activations(100))[:-1])
    await a.send(b, Opened(session(1)))
    assert await b.messages.get() == (A, Opened(session(1)))
    errors = [b.refused.get_nowait() for _ in range(3)]
    assert [(peer, error.reason, error.sessions) for peer, error in errors] == [
        (A, "foreign", ()),
        (A, "too-large", ()),
        (A, "tensor", (session(1),)),
    ]
    assert b.links.counters.refused == {"foreign": 1, "too-large": 1, "tensor": 1}
    assert len([record for record in caplog.records if "refused a frame" in record.message]) == 3
    assert b.lost.empty()


async def test_a_message_that_peers_would_refuse_is_not_sent(stack: AsyncExitStack) -> None:
    a, _, _ = await memory_peers(stack, limits=Limits(max_frame_bytes=1000))
    await a.links.connect(B)
    with pytest.raises(FrameError, match="Activations of 10"):
        await a.links.send(B, activations(1000))


async def test_a_failing_handler_ends_the_link_and_says_why(
    stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    a, b, _ = await memory_peers(stack)

    def fail(peer: PeerId, message: Message) -> None:
        raise ZeroDivisionError("a fault of ours")

    b.links._on_message = fail
    await a.links.connect(B)
    await a.send(b, Opened(session(1)))
    assert await b.lost.get() == (A, "this side failed")
    assert (await a.lost.get())[0] == B
    await until(lambda: any(record.exc_info for record in caplog.records))


async def test_a_new_link_of_the_same_peer_replaces_its_old_one(stack: AsyncExitStack) -> None:
    a, b, network = await memory_peers(stack)
    await a.links.connect(B)
    await until(lambda: b.links.kind(A))
    restarted = Peer(A, [MemoryTransport(network, A)], {B: b})  # a is still there as far as b can see
    stack.push_async_callback(restarted.links.close)
    await restarted.links.connect(B)
    assert await b.lost.get() == (A, "the peer has made a new link")
    await b.links.send(A, Opened(session(7)))
    assert await restarted.messages.get() == (B, Opened(session(7)))
