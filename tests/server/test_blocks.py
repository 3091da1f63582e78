"""A server moves from some blocks to others while it serves: with the real engine, sessions and weights.

Whatever these tests do, at every tick of the loop and around every load the memory given is not exceeded, by what is
accounted and by what is really there, and nothing is announced that is not served.
"""

import asyncio
import gc
import random
import threading
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from chainserve.errors import WeightsError
from chainserve.models import cache as cache_module
from chainserve.models.cache import KVCache
from chainserve.models.load import LoadReport, bytes_by_block, load_weights
from chainserve.models.resolve import resolve
from chainserve.models.runner import Runner
from chainserve.models.skeleton import blocks_of, build_skeleton
from chainserve.models.source import ModelSource
from chainserve.models.wire import from_wire, to_wire
from chainserve.planning.moves import overlap
from chainserve.planning.profile import BlockProfile, StepTimes
from chainserve.protocol.messages import Activations, Close, Failed, FailureCode, Message, Open, Opened, Step
from chainserve.runtime.background import is_busy
from chainserve.swarm.records import ServerState
from chainserve.types import Hop, PeerId, SessionId, Span
from chainserve_server import blocks as blocks_module
from chainserve_server.blocks import Blocks
from chainserve_server.engine import Engine
from chainserve_server.prepare import Prepared
from chainserve_server.sessions import Sessions

LOADING, ONLINE, DRAINING = ServerState.LOADING, ServerState.ONLINE, ServerState.DRAINING
CPU = torch.device("cpu")
ME, CLIENT = PeerId("server"), PeerId("client")
NUM_BLOCKS, HIDDEN, KV_WIDTH = 6, 32, 16
BLOCK_BYTES = 4 * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV_WIDTH + 3 * HIDDEN * 64 + 2 * HIDDEN)
TOKEN_BYTES = 4 * 2 * KV_WIDTH
ACTIVATION_BYTES = 1000
PROFILE = BlockProfile(
    times=StepTimes(forward_s=0.0, prefill=((1, 1e-3), (8, 2e-3)), decode=((1, 1e-3), (8, 2e-3))),
    block_bytes=BLOCK_BYTES,
    embedding_bytes=0,
    head_bytes=0,
    is_tied=False,
    token_bytes=TOKEN_BYTES,
    activation_bytes=ACTIVATION_BYTES,
)


class Ended(Exception):
    """The server refused a session, or ended it."""

    def __init__(self, code: FailureCode) -> None:
        super().__init__(code)
        self.code = code


class Server:
    """Blocks that move, with engine and sessions around them, and what clients and the swarm see of it all."""

    def __init__(self, folder: Path, reference: Runner, *, blocks: float, tokens: int, grace_s: float) -> None:
        """There is memory for so many blocks, and beside them for cache of so many tokens in one block."""
        source = resolve(str(folder))
        source.take_traffic()  # of the headers
        self.prepared = Prepared(
            source=source,
            pinned=None,
            device=CPU,
            dtype=torch.float32,
            profile=PROFILE,
            memory_bytes=ACTIVATION_BYTES + int(blocks * BLOCK_BYTES) + tokens * TOKEN_BYTES,
            block_bytes=(BLOCK_BYTES,) * NUM_BLOCKS,
        )
        self.engine = Engine(
            KVCache(None, budget_tokens=0),
            max_batch_tokens=64,
            emit=self._emit,
            fail=lambda session, code, detail: self.sessions.fail(session, code, detail),
        )
        self.sessions = Sessions(
            ME,
            model=source.digest,
            hidden_size=HIDDEN,
            engine=self.engine,
            post=self._post,
            on_change=self._sessions_changed,
        )
        self.blocks = Blocks(self.prepared, self.engine, self.sessions, grace_s=grace_s, on_change=self._announce)
        self.said: list[tuple[ServerState, Span]] = []
        self.ended: dict[SessionId, FailureCode] = {}
        self.read: list[int] = []
        """Blocks that were loaded, in order."""
        self.is_loading = False
        self.beside: list[set[int]] = []
        """Blocks that were in memory when others began to be loaded, every time."""
        self.gate = threading.Event()
        """Loading waits for it."""
        self.gate.set()
        self.broken: list[AssertionError] = []
        self.buffers: list[weakref.ref[Tensor]] = []
        self._weights: list[tuple[int, weakref.ref[Tensor]]] = []
        self._reference = reference
        self._random = torch.Generator().manual_seed(0)
        self._ids = count(1)
        self._spans: dict[SessionId, Span] = {}
        self._lengths: dict[SessionId, int] = {}
        self._awaited: dict[SessionId, asyncio.Future[Tensor]] = {}

    @property
    def in_memory(self) -> set[int]:
        """Blocks whose weights are there, whoever still refers to them."""
        return {block for block, weight in self._weights if weight() is not None}

    def check(self, *, coming_bytes: int = 0) -> None:
        """The rule that no move may break; so many bytes of weights are about to be read."""
        cache = self.engine.cache
        promised = max(cache.budget_tokens * len(cache.span or ()), cache.reserved)
        used_bytes = self.blocks.weight_bytes + ACTIVATION_BYTES + promised * TOKEN_BYTES
        assert used_bytes <= self.prepared.memory_bytes, (used_bytes, self.prepared.memory_bytes)
        weights = bytes_of(weight for _, weight in list(self._weights))
        assert weights + coming_bytes <= self.blocks.weight_bytes, (self.in_memory, self.blocks.weight_bytes)
        assert bytes_of(list(self.buffers)) <= cache.reserved * TOKEN_BYTES

    def tick(self) -> None:
        try:
            self.check()
        except AssertionError as error:
            self.broken.append(error)

    def load(self, skeleton: PreTrainedModel, source: ModelSource, **options: Any) -> LoadReport:
        """Stands for `load_weights`, and looks what is in memory before and after. Runs in the loader's thread."""
        blocks = dict(enumerate(blocks_of(skeleton.base_model)))
        new = {
            block: module for block, module in blocks.items() if any(weight.is_meta for weight in module.parameters())
        }
        if new:
            self.check(coming_bytes=len(new) * BLOCK_BYTES)
            self.beside.append(self.in_memory)
            self.is_loading = True
            assert self.gate.wait(20)
        report = load_weights(skeleton, source, **options)
        for block, module in new.items():
            self._weights += [(block, weakref.ref(weight)) for weight in module.parameters()]
        self.check()
        self.read += new
        self.is_loading = False
        return report

    async def hold(self, span: Span) -> LoadReport:
        """Move; what is said meanwhile has to be true, and never leaves out what stays."""
        num_said, before = len(self.said), self.blocks.span if self.blocks.state is ONLINE else None
        report = await self.blocks.hold(span)
        said = self.said[num_said:]
        assert said[-1] == (ONLINE, span)
        if (stays := overlap(before, span)) is not None:
            assert all(state is ONLINE and announced.covers(stays) for state, announced in said), said
        assert self.in_memory == set(span)
        assert self.engine.cache.span == span
        left_bytes = self.prepared.memory_bytes - ACTIVATION_BYTES - len(span) * BLOCK_BYTES
        assert self.engine.cache.budget_tokens == left_bytes // TOKEN_BYTES // len(span)
        return report

    def open(self, span: Span, *, max_tokens: int = 8) -> SessionId:
        """A session as a client opens it, over one server; Ended if that refuses."""
        session = SessionId(next(self._ids).to_bytes(16, "big"))
        opening = Open(session, self.prepared.source.digest, (Hop(ME, span),), 0, CLIENT, 1, max_tokens)
        self.sessions.handle(CLIENT, opening)
        if session in self.ended:
            raise Ended(self.ended.pop(session))
        self._reference.cache.reserve(session, span, num_lanes=1, max_tokens=max_tokens)
        self._spans[session], self._lengths[session] = span, 0
        return session

    def refusal(self, span: Span) -> FailureCode:
        """Why a session over these blocks is not taken."""
        with pytest.raises(Ended) as caught:
            self.open(span)
        return caught.value.code

    async def step(self, *sessions: SessionId, num_tokens: int = 1) -> None:
        """Run the next tokens of sessions, with the outputs that the whole model gives; Ended if the server does."""
        for session in sessions:
            if session in self.ended:
                raise Ended(self.ended[session])
            hidden = torch.randn(num_tokens, HIDDEN, generator=self._random)
            step = Step(session, 0, self._lengths[session], num_tokens, num_tokens)
            expected = self._reference.forward(hidden, [step], self._spans[session])
            self._lengths[session] += num_tokens
            self._awaited[session] = asyncio.get_running_loop().create_future()
            self.sessions.handle(CLIENT, Activations((step,), to_wire(hidden)))
            async with asyncio.timeout(10):
                torch.testing.assert_close(await self._awaited[session], expected, rtol=1e-3, atol=1e-3)

    async def news(self) -> None:
        """Wait until something is announced."""
        num_said = len(self.said)
        await until(lambda: len(self.said) > num_said)

    def close(self, *sessions: SessionId) -> None:
        for session in sessions:
            self.sessions.handle(CLIENT, Close(session))

    def _post(self, peer: PeerId, message: Message) -> None:
        assert peer == CLIENT
        if isinstance(message, Failed):
            self.ended[message.session] = message.code
            if (awaited := self._awaited.get(message.session)) and not awaited.done():
                awaited.set_exception(Ended(message.code))
        else:
            assert isinstance(message, Opened)

    def _emit(self, peer: PeerId, message: Activations) -> None:
        rows = from_wire(message.tensor, dtype=torch.float32, device=CPU)
        for step, part in zip(message.steps, rows.split([step.num_tokens for step in message.steps]), strict=True):
            if (awaited := self._awaited.get(step.session)) and not awaited.done():
                awaited.set_result(part)

    def _sessions_changed(self) -> None:
        self.blocks.session_ended()
        self._announce()

    def _announce(self) -> None:
        """What `Server` does at news, at its soonest."""
        state, span = self.blocks.state, self.blocks.span
        if span is None:  # a session was refused before there were any
            return
        self.said.append((state, span))
        if state is ONLINE:
            assert (self.sessions.span, self.sessions.closed_because) == (span, None)
            assert self.engine.runner is not None
            assert self.engine.runner.span.covers(span)
        else:
            assert self.sessions.closed_because
        self.check()


def bytes_of(tensors: Any) -> int:
    """Memory of those tensors that live, by storages."""
    storages = [tensor.untyped_storage() for ref in tensors if (tensor := ref()) is not None]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Runner]]:
    """A model of which every part matters: its folder, and what runs any of its blocks."""
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=NUM_BLOCKS,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=32,
    )
    generator, folder = torch.Generator().manual_seed(7), tmp_path_factory.mktemp("model")
    saved = LlamaForCausalLM(config).requires_grad_(False)
    for parameter in saved.parameters():
        parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2, generator=generator)
    saved.save_pretrained(folder)
    source = resolve(str(folder))
    assert bytes_by_block(source.config, torch.float32) == (BLOCK_BYTES,) * NUM_BLOCKS
    whole = build_skeleton(source.config, Span(0, NUM_BLOCKS))
    load_weights(whole, source, dtype=torch.float32, device=CPU, progress=False)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them only wait for each other, where blocks are this small
    yield folder, Runner(whole, Span(0, NUM_BLOCKS), KVCache(None, budget_tokens=0))
    torch.set_num_threads(num_threads)


MakeServer = Callable[..., Awaitable[Server]]


@pytest.fixture
async def make_server(model: tuple[Path, Runner], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeServer]:
    """Makes one server, without blocks yet, that is watched until the test is over."""
    running: list[tuple[Server, asyncio.Task[None]]] = []
    folder, reference = model
    reference.cache = KVCache(Span(0, NUM_BLOCKS), budget_tokens=10**6)
    monkeypatch.setattr(PreTrainedModel, "initialize_weights", lambda self: None)  # slow, and on the meta device
    loop: Any = asyncio.get_running_loop()
    run_once = loop._run_once

    async def make(*, blocks: float, tokens: int = 100, grace_s: float = 30.0, span: Span | None = None) -> Server:
        server = Server(folder, reference, blocks=blocks, tokens=tokens, grace_s=grace_s)
        running.append((server, asyncio.create_task(server.engine.run())))
        monkeypatch.setattr(blocks_module, "load_weights", server.load)
        room = cache_module._room

        def noted_room(new: Tensor, max_tokens: int) -> Tensor:
            buffer = room(new, max_tokens)
            if threading.current_thread() is not threading.main_thread():  # where the reference runs
                server.buffers.append(weakref.ref(buffer))
            return buffer

        def checked_run_once() -> None:
            run_once()
            server.tick()

        monkeypatch.setattr(cache_module, "_room", noted_room)
        loop._run_once = checked_run_once  # a task that looks at every tick would be the one that keeps it busy
        if span is not None:
            await server.hold(span)
            server.read.clear()
            server.said.clear()
        return server

    gc.disable()  # what is dropped has to be free at once
    try:
        yield make
    finally:
        gc.enable()
        del loop._run_once
        [(server, engine)] = running
        server.gate.set()
        assert not engine.done(), engine
        engine.cancel()
        with pytest.raises(asyncio.CancelledError):
            await engine
        await until(lambda: not is_busy())
        if server.broken:
            raise server.broken[0]


async def test_the_first_blocks_are_loaded_and_then_served(make_server: MakeServer) -> None:
    server = await make_server(blocks=3, tokens=60)
    assert server.refusal(Span(0, 3)) is FailureCode.NOT_SERVING
    server.gate.clear()
    moving = asyncio.create_task(server.hold(Span(0, 3)))
    await until(lambda: server.is_loading)
    assert server.refusal(Span(0, 3)) is FailureCode.NOT_SERVING
    assert server.said == [(LOADING, Span(0, 3))]
    server.gate.set()
    report = await moving
    assert (report.bytes_read, server.blocks.weight_bytes) == (3 * BLOCK_BYTES, 3 * BLOCK_BYTES)
    assert server.engine.cache.free_tokens == 20
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
    assert (report.bytes_read, server.read) == (3 * BLOCK_BYTES, [0, 3, 4])
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
    assert (report.bytes_read, server.read, server.ended) == (2 * BLOCK_BYTES, [4, 5], {})
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
    assert (report.bytes_read, server.read, server.ended) == (2 * BLOCK_BYTES, [4, 5], {})
    await server.step(staying, new, server.open(Span(2, 6)))


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
            if not set(before or ()) <= set(span) and new:
                gave_up_first.add(server.beside[-1] != set(before or ()))
            assert (report.bytes_read, set(server.read[num_read:])) == (len(new) * BLOCK_BYTES, new)
        for client in clients:
            client.cancel()
    server.close(*server._spans)
    await until(lambda: server.engine.cache.reserved == 0)
    server.engine.cache.check()
    assert num_steps > 30
    assert gave_up_first == {True, False}
    assert FailureCode.NOT_SERVING in ends
    assert set(ends) <= {FailureCode.NOT_SERVING, FailureCode.NOT_HELD, FailureCode.CACHE_FULL}
