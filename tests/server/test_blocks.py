"""A server moves from some blocks to others while it serves: with the real engine, sessions and weights.

Whatever these tests do, at every tick of the loop and around every load the memory given is not exceeded, by what is
accounted and by what is really there, and nothing is announced that is not served.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import torch
from moving_server import (
    BLOCK_BYTES,
    EMBEDDING_BYTES,
    HEAD_BYTES,
    HIDDEN,
    NUM_BLOCKS,
    Ended,
    MakeServer,
    small_model,
    until,
    watched_server,
)

from chainserve.errors import WeightsError
from chainserve.models import linear
from chainserve.models.ends import End, Ends
from chainserve.models.load import LoadReport
from chainserve.models.runner import Runner
from chainserve.protocol.messages import FailureCode
from chainserve.swarm.records import ServerState
from chainserve.types import Span
from chainserve_server import blocks as blocks_module

LOADING, ONLINE, DRAINING = ServerState.LOADING, ServerState.ONLINE, ServerState.DRAINING


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Runner]]:
    folder = tmp_path_factory.mktemp("model")
    with small_model(folder) as reference:
        yield folder, reference


@pytest.fixture
async def make_server(model: tuple[Path, Runner], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeServer]:
    async with watched_server(*model, monkeypatch) as make:
        yield make


async def test_the_first_blocks_are_loaded_and_then_served(make_server: MakeServer) -> None:
    server = await make_server(blocks=3, tokens=60)
    assert server.refusal(Span(0, 3)) is FailureCode.NOT_SERVING
    server.gate.clear()
    moving = asyncio.create_task(server.hold(Span(0, 3)))
    await until(lambda: server.is_loading)
    assert server.refusal(Span(0, 3)) is FailureCode.NOT_SERVING
    assert server.blocks.loaded_share is not None
    assert server.said == [(LOADING, Span(0, 3))]
    server.gate.set()
    report = await moving
    assert server.blocks.loaded_share is None
    num_bytes = 3 * BLOCK_BYTES + EMBEDDING_BYTES
    assert (report.bytes_read, server.blocks.weight_bytes) == (num_bytes, num_bytes)
    assert server.engine.cache.free_tokens == (60 + 9) // 3  # the head, which is not here, would take 9 tokens' cache
    session = server.open(Span(0, 3))
    await server.step(session, num_tokens=3)
    await server.step(session)


async def test_sessions_go_on_and_come_while_blocks_are_added(make_server: MakeServer) -> None:
    server = await make_server(blocks=5, span=Span(1, 3))
    old = server.open(Span(1, 3))
    await server.step(old, num_tokens=3)
    server.gate.clear()
    moving = asyncio.create_task(server.hold(Span(0, 5)))
    await until(lambda: server.is_loading)
    new = server.open(Span(1, 3))
    await server.step(old, new)
    assert server.refusal(Span(0, 5)) is FailureCode.NOT_HELD
    server.gate.set()
    report = await moving
    assert (report.bytes_read, server.read) == (3 * BLOCK_BYTES + EMBEDDING_BYTES, [0, 3, 4])
    await server.step(old, new, server.open(Span(0, 5)), server.open(Span(2, 4)))
    assert set(server.said) == {(ONLINE, Span(1, 3)), (ONLINE, Span(0, 5))}


async def test_blocks_are_given_up_when_the_sessions_that_run_them_are_over(make_server: MakeServer) -> None:
    server = await make_server(blocks=5, span=Span(0, 5))
    leaving, staying = server.open(Span(0, 5)), server.open(Span(2, 3))
    moving = asyncio.create_task(server.hold(Span(2, 4)))
    await until(lambda: server.blocks.span == Span(2, 4))
    assert server.refusal(Span(0, 5)) is FailureCode.NOT_HELD
    await server.step(leaving, staying, server.open(Span(2, 4)))
    assert server.in_memory == set(range(5))
    server.close(leaving)
    report = await moving
    assert (report.bytes_read, server.read, server.ended) == (0, [], {})
    await server.step(staying)


async def test_with_room_the_new_blocks_are_loaded_beside_the_old(make_server: MakeServer) -> None:
    server = await make_server(blocks=6, span=Span(0, 4))
    old = server.open(Span(0, 4))
    server.gate.clear()
    moving = asyncio.create_task(server.hold(Span(2, 6)))
    await until(lambda: server.is_loading)
    assert server.beside[-1] == {0, 1, 2, 3}
    new = server.open(Span(0, 2))
    await server.step(old, new)
    server.gate.set()
    await until(lambda: server.blocks.span == Span(2, 4))
    assert server.refusal(Span(0, 2)) is FailureCode.NOT_HELD
    staying = server.open(Span(2, 4))
    await server.step(old, new, staying)
    server.close(old, new)
    report = await moving
    assert (report.bytes_read, server.read, server.ended) == (2 * BLOCK_BYTES + HEAD_BYTES, [4, 5], {})
    await server.step(staying, server.open(Span(2, 6)))


async def test_without_room_the_old_blocks_go_first_and_what_stays_is_served(make_server: MakeServer) -> None:
    server = await make_server(blocks=5, span=Span(0, 4))
    leaving, staying = server.open(Span(0, 4)), server.open(Span(2, 4))
    server.gate.clear()
    moving = asyncio.create_task(server.hold(Span(2, 6)))
    await until(lambda: server.blocks.span == Span(2, 4))
    assert server.refusal(Span(1, 3)) is FailureCode.NOT_HELD
    await server.step(leaving, staying)
    assert not server.is_loading
    server.close(leaving)
    await until(lambda: server.is_loading)
    assert server.beside[-1] == {2, 3}
    new = server.open(Span(2, 4))
    await server.step(staying, new)
    server.gate.set()
    report = await moving
    assert (report.bytes_read, server.read, server.ended) == (2 * BLOCK_BYTES + HEAD_BYTES, [4, 5], {})
    await server.step(staying, new, server.open(Span(2, 6)))


@pytest.mark.parametrize(
    ("before", "after", "read"),
    [
        (Span(0, 2), Span(0, 3), []),
        (Span(0, 3), Span(0, 2), []),
        (Span(4, 6), Span(3, 6), []),
        (Span(0, 2), Span(1, 3), []),
        (Span(1, 3), Span(0, 3), [End.EMBEDDING]),
        (Span(1, 3), Span(2, 6), [End.HEAD]),
        (Span(0, 2), Span(0, 6), [End.HEAD]),
        (Span(4, 6), Span(0, 6), [End.EMBEDDING]),
        (Span(0, 6), Span(4, 6), []),
        (Span(0, 6), Span(0, 2), []),
        (Span(0, 2), Span(4, 6), [End.HEAD]),
    ],
    ids=lambda value: f"{value.start}:{value.end}" if isinstance(value, Span) else " ".join(value),
)
@pytest.mark.parametrize("blocks", [8, 6], ids=["room", "no room"])
async def test_ends_that_stay_are_not_read_again(
    make_server: MakeServer, before: Span, after: Span, read: list[End], blocks: int
) -> None:
    server = await make_server(blocks=blocks, span=before)
    server.read_ends.clear()
    report = await server.hold(after)
    assert server.read_ends == read
    end_bytes = EMBEDDING_BYTES * (End.EMBEDDING in read) + HEAD_BYTES * (End.HEAD in read)
    assert report.bytes_read == len(set(after) - set(before)) * BLOCK_BYTES + end_bytes


async def test_tied_ends_share_their_weights_whichever_came_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norm_bytes = HEAD_BYTES - EMBEDDING_BYTES
    with small_model(tmp_path, tied=True) as reference:
        async with watched_server(tmp_path, reference, monkeypatch) as make:
            server = await make(blocks=8)
            for span, end_bytes in (
                (Span(0, 2), EMBEDDING_BYTES),
                (Span(0, 6), norm_bytes),
                (Span(4, 6), 0),
                (Span(0, 6), 0),
                (Span(0, 2), 0),
                (Span(2, 4), 0),
                (Span(0, 6), HEAD_BYTES),
            ):
                before = server.blocks.span if server.engine.runner else None
                report = await server.hold(span)
                assert report.bytes_read == len(set(span).difference(before or ())) * BLOCK_BYTES + end_bytes
                assert server.blocks.weight_bytes == server.weight_bytes(span)


@pytest.fixture
async def make_tied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeServer]:
    """Servers of a model whose ends share their weights, and which oneDNN computes however small it is."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("only oneDNN packs heads, and this torch is without")
    with small_model(tmp_path, tied=True) as reference:
        monkeypatch.setattr(linear, "SMALL", 0)
        monkeypatch.setattr(linear, "HAS_ONEDNN", True)
        async with watched_server(tmp_path, reference, monkeypatch) as make:
            yield make


@pytest.mark.parametrize("blocks", [10, 6], ids=["room", "no room"])
async def test_a_head_in_an_order_of_its_own_is_unpacked_for_the_embedding_that_shares_it(
    make_tied: MakeServer, blocks: int
) -> None:
    server = await make_tied(blocks=blocks, span=Span(4, 6))
    assert server.engine.runner is not None
    assert server.engine.runner.ends.is_packed
    going_on = server.open(Span(4, 6))
    report = await server.hold(Span(0, 6))
    assert report.bytes_read == 4 * BLOCK_BYTES + HEAD_BYTES - EMBEDDING_BYTES  # the norm
    assert server.blocks.weight_bytes == server.weight_bytes(Span(0, 6))
    assert not server.engine.runner.ends.is_packed
    await server.step(going_on, server.open(Span(0, 6)))


async def test_without_room_for_a_copy_of_the_head_all_is_loaded_again(make_tied: MakeServer) -> None:
    server = await make_tied(blocks=6, tokens=0, span=Span(4, 6))
    report = await server.blocks.hold(Span(0, 6))
    assert report.bytes_read == 6 * BLOCK_BYTES + HEAD_BYTES
    assert list(dict.fromkeys(server.said)) == [(DRAINING, Span(4, 6)), (LOADING, Span(0, 6)), (ONLINE, Span(0, 6))]
    assert server.blocks.weight_bytes == server.weight_bytes(Span(0, 6))
    server.check_ends(Span(0, 6))


def test_a_runner_asked_for_an_end_that_its_blocks_do_not_have_says_so() -> None:
    with pytest.raises(AssertionError, match="the first block is not here"):
        Ends().embed(torch.arange(2))
    with pytest.raises(AssertionError, match="the last block is not here"):
        Ends().logits(torch.zeros(1, HIDDEN))


async def test_a_jump_with_room_drains_only_once_the_new_blocks_are_there(make_server: MakeServer) -> None:
    server = await make_server(blocks=4, span=Span(0, 2))
    old = server.open(Span(0, 2))
    server.gate.clear()
    moving = asyncio.create_task(server.hold(Span(4, 6)))
    await until(lambda: server.is_loading)
    await server.step(old, server.open(Span(0, 1)))
    assert {state for state, _ in server.said} == {ONLINE}
    server.gate.set()
    await until(lambda: server.blocks.state is DRAINING)
    assert server.refusal(Span(0, 2)) is FailureCode.NOT_SERVING
    assert server.refusal(Span(4, 6)) is FailureCode.NOT_SERVING
    await server.step(old)
    server.close(*server._spans)
    await moving
    assert LOADING not in {state for state, _ in server.said}
    await server.step(server.open(Span(4, 6)))


async def test_a_jump_without_room_drains_drops_everything_and_loads(make_server: MakeServer) -> None:
    server = await make_server(blocks=3, span=Span(0, 2))
    old = server.open(Span(0, 2))
    server.gate.clear()
    moving = asyncio.create_task(server.hold(Span(4, 6)))
    await until(lambda: server.blocks.state is DRAINING)
    assert server.refusal(Span(0, 2)) is FailureCode.NOT_SERVING
    await server.step(old)
    server.close(old)
    await until(lambda: server.is_loading)
    assert server.beside[-1] == set()
    assert server.refusal(Span(4, 6)) is FailureCode.NOT_SERVING
    server.gate.set()
    await moving
    assert list(dict.fromkeys(server.said)) == [
        (ONLINE, Span(0, 2)),
        (DRAINING, Span(0, 2)),
        (LOADING, Span(4, 6)),
        (ONLINE, Span(4, 6)),
    ]
    await server.step(server.open(Span(4, 6)))


@pytest.mark.parametrize("blocks", [6, 5], ids=["room", "no room"])
async def test_sessions_that_do_not_finish_in_time_are_ended(make_server: MakeServer, blocks: int) -> None:
    server = await make_server(blocks=blocks, grace_s=0.05, span=Span(0, 4))
    slow, staying = server.open(Span(0, 4)), server.open(Span(2, 4))
    await server.step(slow, staying)
    await server.hold(Span(2, 6))
    assert server.ended == {slow: FailureCode.NOT_SERVING}
    assert server.engine.cache.reserved == 2 * 8
    await server.step(staying)


async def test_the_last_sessions_make_room_for_new_blocks(make_server: MakeServer) -> None:
    server = await make_server(blocks=3, tokens=40, grace_s=0.05, span=Span(0, 2))
    first, second, third = (server.open(Span(0, 2), max_tokens=num_tokens) for num_tokens in (15, 50, 50))
    await server.step(first, second, third)
    await server.hold(Span(0, 3))
    assert server.ended == dict.fromkeys((second, third), FailureCode.NOT_SERVING)
    assert server.engine.cache.reserved == 2 * 15
    await server.step(first)


async def test_sessions_that_end_in_time_make_room_for_new_blocks(make_server: MakeServer) -> None:
    server = await make_server(blocks=3, tokens=40, span=Span(0, 2))
    first, second, third = (server.open(Span(0, 2), max_tokens=num_tokens) for num_tokens in (15, 50, 50))
    moving = asyncio.create_task(server.hold(Span(0, 3)))
    await until(lambda: server.engine.cache.free_tokens == 0)
    with pytest.raises(Ended, match="cache-full"):
        server.open(Span(0, 1))
    await server.step(third)
    for session in (second, third):
        assert not server.is_loading
        server.close(session)
    async with asyncio.timeout(10):
        await moving
    assert server.ended == {}
    await server.step(first)


async def test_a_session_that_has_just_ended_is_in_nobodys_way(make_server: MakeServer) -> None:
    server = await make_server(blocks=3, tokens=40, span=Span(0, 2))
    session = server.open(Span(0, 2), max_tokens=100)
    server.gate.clear()
    moving = asyncio.create_task(server.hold(Span(1, 3)))
    server.close(session)  # before the task begins, and the engine has yet to release it
    await until(lambda: server.is_loading)
    assert server.beside[-1] == {0, 1}
    server.gate.set()
    await moving


@pytest.mark.parametrize("num_ticks", range(4))
async def test_no_end_of_a_session_is_missed(make_server: MakeServer, num_ticks: int) -> None:
    server = await make_server(blocks=3, tokens=40, span=Span(0, 2))
    first, second = (server.open(Span(0, 2), max_tokens=50) for _ in range(2))
    moving = asyncio.create_task(server.hold(Span(0, 3)))
    await until(lambda: server.engine.cache.free_tokens == 0)
    server.close(first)
    for _ in range(num_ticks):
        await asyncio.sleep(0)
    server.close(second)
    async with asyncio.timeout(10):  # where it would be missed until the grace is over
        await moving


async def test_a_smaller_goal_promises_no_cache_before_its_memory_is_free(make_server: MakeServer) -> None:
    server = await make_server(blocks=4, span=Span(0, 4))
    old = server.open(Span(0, 4))
    moving = asyncio.create_task(server.hold(Span(3, 5)))
    await until(lambda: server.blocks.span == Span(3, 4))
    with pytest.raises(Ended, match="cache-full"):
        server.open(Span(3, 4), max_tokens=101)
    server.close(old)
    await moving
    server.open(Span(3, 4), max_tokens=101)


async def test_cancelled_while_it_loads_the_server_goes_on_as_it_was(make_server: MakeServer) -> None:
    server = await make_server(blocks=6, span=Span(0, 2))
    session = server.open(Span(0, 2))
    server.gate.clear()
    moving = asyncio.create_task(server.hold(Span(1, 4)))
    await until(lambda: server.is_loading)
    moving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await moving
    await server.step(session, server.open(Span(0, 2)))
    server.gate.set()
    await until(lambda: not server.is_loading)
    await server.step(session)
    await until(lambda: server.in_memory == {0, 1})
    assert set(server.said) == {(ONLINE, Span(0, 2))}


async def test_cancelled_while_it_loads_its_first_blocks_the_server_has_none(make_server: MakeServer) -> None:
    server = await make_server(blocks=6)
    server.gate.clear()
    moving = asyncio.create_task(server.hold(Span(1, 4)))
    await until(lambda: server.is_loading)
    moving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await moving
    assert server.refusal(Span(1, 4)) is FailureCode.NOT_SERVING


async def test_cancelled_while_sessions_finish_they_go_on(make_server: MakeServer) -> None:
    server = await make_server(blocks=5, span=Span(0, 4))
    session = server.open(Span(0, 4))
    moving = asyncio.create_task(server.hold(Span(2, 6)))
    await until(lambda: server.blocks.span == Span(2, 4))
    moving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await moving
    await server.step(session)


async def test_weights_that_cannot_be_read_end_the_move_and_not_the_sessions(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await make_server(blocks=6, span=Span(0, 2))
    session = server.open(Span(0, 2))

    def damaged(*_: object, **__: object) -> LoadReport:
        raise WeightsError("the file ends in the middle of a tensor")

    monkeypatch.setattr(blocks_module, "load_weights", damaged)
    with pytest.raises(WeightsError):
        await server.hold(Span(1, 4))
    await server.step(session)


async def test_thirty_moves_among_busy_clients(make_server: MakeServer) -> None:
    server = await make_server(blocks=4.5, grace_s=0.02)
    where, chance = random.Random(3), random.Random(4)
    spans = [Span(start, start + size) for size in range(1, 5) for start in range(NUM_BLOCKS - size + 1)]
    num_moves = num_steps = 0
    ends: Counter[FailureCode] = Counter()
    gave_up_first: set[bool] = set()

    async def talk(span: Span) -> None:
        """A session that takes a while, with pauses."""
        nonlocal num_steps
        last_move = num_moves + chance.randint(0, 3)
        session = server.open(span, max_tokens=chance.choice([8, 8, 20, 100]))
        await server.step(session, num_tokens=3)
        for _ in range(chance.randint(0, 5)):
            await server.step(session)
            num_steps += 1
        await until(lambda: num_moves >= last_move or session in server.ended)
        server.close(session)

    async def be_a_client() -> None:
        while True:
            held, anywhere = server.blocks.span, chance.random() < 0.1
            try:
                await talk(chance.choice([span for span in spans if anywhere or (held and held.covers(span))]))
            except Ended as end:
                ends[end.code] += 1
                await server.news()

    await server.hold(Span(0, 2))
    async with asyncio.TaskGroup() as tasks:
        clients = [tasks.create_task(be_a_client()) for _ in range(4)]
        for _ in range(30):
            before, span = server.blocks.span, where.choice(spans)
            num_read = len(server.read)
            report = await server.hold(span)
            num_moves += 1
            new = set(span).difference(before or ())
            end_bytes = EMBEDDING_BYTES * (0 in new) + HEAD_BYTES * (NUM_BLOCKS - 1 in new)
            if not set(before or ()) <= set(span) and new:
                gave_up_first.add(server.beside[-1] != set(before or ()))
            assert (report.bytes_read, set(server.read[num_read:])) == (len(new) * BLOCK_BYTES + end_bytes, new)
        for client in clients:
            client.cancel()
    server.close(*server._spans)
    await until(lambda: server.engine.cache.reserved == 0)
    server.engine.cache.check()
    assert num_steps > 30
    assert gave_up_first == {True, False}
    assert FailureCode.NOT_SERVING in ends
    assert set(ends) <= {FailureCode.NOT_SERVING, FailureCode.NOT_HELD, FailureCode.CACHE_FULL}
