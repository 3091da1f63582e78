"""What every transport must do alike."""

import asyncio
import time

import pytest
from pairs import KINDS, MakePair

from chainserve.errors import LinkLostError
from chainserve.types import PeerId

pytestmark = pytest.mark.parametrize("kind", KINDS)


async def test_frames_arrive_in_order_and_both_ways(make_pair: MakePair, kind: str) -> None:
    pair = await make_pair(kind)
    near, far = await pair.connect()
    assert (near.peer, far.peer) == (pair.far_id, pair.near_id)
    frames = [bytes([i]) * (i * 37 % 5000 + 1) for i in range(200)]
    for frame in frames:
        await near.send(frame)
        await far.send(frame[::-1])
    assert [await far.receive() for _ in frames] == frames
    assert [await near.receive() for _ in frames] == [frame[::-1] for frame in frames]


async def test_frames_from_1_byte_to_20_megabytes_arrive(make_pair: MakePair, kind: str) -> None:
    pair = await make_pair(kind)
    near, far = await pair.connect()
    for size in (0, 1, 125, 126, 65_535, 65_536, 2**18 - 1, 2**18, 2**18 + 1, 2**20, 20_000_000):
        frame = bytes(range(256)) * (size // 256) + bytes(size % 256)
        for sender, receiver in ((near, far), (far, near)):
            _, arrived = await asyncio.gather(sender.send(frame), receiver.receive())
            assert arrived == frame


async def test_large_frames_of_several_tasks_do_not_mix(make_pair: MakePair, kind: str) -> None:
    pair = await make_pair(kind)
    near, far = await pair.connect()
    frames = [bytes([i]) * size for i, size in enumerate((1, 3_000_000, 10, 1_000_000, 700_000, 2))]
    async with asyncio.TaskGroup() as tasks:
        for frame in frames:
            tasks.create_task(near.send(frame))
        assert [await far.receive() for _ in frames] == frames


async def test_a_large_frame_shows_signs_of_life_before_it_is_complete(make_pair: MakePair, kind: str) -> None:
    pair = await make_pair(kind)
    near, far = await pair.connect()
    before = far.num_arrivals
    await asyncio.gather(near.send(bytes(4_000_000)), far.receive())
    assert far.num_arrivals - before > (1 if kind != "memory" else 0)


async def test_the_other_end_sees_a_close_within_a_second(make_pair: MakePair, kind: str) -> None:
    pair = await make_pair(kind)
    for closing, staying in (await pair.connect(), (await pair.connect())[::-1]):
        waiting = asyncio.create_task(staying.receive())
        await asyncio.sleep(0)
        started = time.monotonic()
        await closing.send(b"last words")
        await closing.close()
        await closing.close()
        assert await waiting == b"last words"
        for _ in range(10):  # and goes on saying so
            with pytest.raises(LinkLostError):
                await staying.receive()
        assert time.monotonic() - started < 1
        with pytest.raises(LinkLostError):
            await closing.send(b"x")
        with pytest.raises(LinkLostError):
            await closing.receive()


async def test_a_close_ends_a_receive_on_the_same_side(make_pair: MakePair, kind: str) -> None:
    pair = await make_pair(kind)
    for link in await pair.connect():
        waiting = asyncio.create_task(link.receive())
        await asyncio.sleep(0.01)
        await link.close()
        with pytest.raises(LinkLostError):
            await waiting


async def test_a_sender_waits_for_a_receiver_that_does_not_read(make_pair: MakePair, kind: str) -> None:
    pair = await make_pair(kind)
    near, far = await pair.connect()
    num_sent = 0

    async def send_many() -> None:
        nonlocal num_sent
        for _ in range(100):
            await near.send(num_sent.to_bytes(4, "little") + bytes(2**20))
            num_sent += 1

    sending = asyncio.create_task(send_many())
    seen = -1
    while num_sent > seen:  # until a while passes without progress
        seen = num_sent
        await asyncio.sleep(0.4)
    assert num_sent < 60
    received = [int.from_bytes((await far.receive())[:4], "little") for _ in range(100)]
    assert received == list(range(100))
    await sending


async def test_a_close_ends_a_send_that_waits(make_pair: MakePair, kind: str) -> None:
    pair = await make_pair(kind)
    near, _ = await pair.connect()

    async def send_forever() -> None:
        while True:
            await near.send(bytes(2**20))

    sending = asyncio.create_task(send_forever())
    await asyncio.sleep(0.5)
    started = time.monotonic()
    await near.close()
    with pytest.raises(LinkLostError):
        await sending
    assert time.monotonic() - started < 1


async def test_a_cancelled_receive_loses_nothing(make_pair: MakePair, kind: str) -> None:
    pair = await make_pair(kind)
    near, far = await pair.connect()
    frames = [bytes([i]) * 1_000_000 for i in range(10)]

    async def send_all() -> None:
        for frame in frames:
            await near.send(frame)

    sending = asyncio.create_task(send_all())
    received: list[bytes] = []
    while len(received) < len(frames):
        try:
            async with asyncio.timeout(0.001):
                received.append(await far.receive())
        except TimeoutError:
            pass
    assert received == frames
    await sending


# hivemind leaves the closing of a stream that could not be opened to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed <StreamWriter:ResourceWarning")
async def test_nobody_at_the_address_is_a_lost_link(make_pair: MakePair, kind: str) -> None:
    pair = await make_pair(kind)
    addresses = pair.far.addresses
    await pair.far.close()
    with pytest.raises(LinkLostError):
        await pair.near.connect(pair.far_id, addresses)
    with pytest.raises(LinkLostError):
        await pair.near.connect(PeerId("QmNobody"), ())


async def test_addresses_are_told_apart_by_kind(make_pair: MakePair, kind: str) -> None:
    pair = await make_pair(kind)
    assert pair.near.can_reach(pair.far.addresses)
    assert not pair.near.can_reach(["gopher://127.0.0.1"])
    assert not pair.near.can_reach([])


async def test_closing_a_transport_closes_its_links_within_a_second(make_pair: MakePair, kind: str) -> None:
    pair = await make_pair(kind)
    near, far = await pair.connect()
    pair.done.set()
    started = time.monotonic()
    await pair.far.close()
    with pytest.raises(LinkLostError):
        await near.receive()
    with pytest.raises(LinkLostError):
        await far.receive()
    assert time.monotonic() - started < 1
