"""A server that moves between blocks, with the real engine, sessions and weights, and a watch over its memory."""

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from chainserve.models import cache as cache_module
from chainserve.models.cache import KVCache
from chainserve.models.ends import End, Ends, ends_of
from chainserve.models.load import LoadReport, bytes_by_block, load_weights
from chainserve.models.resolve import resolve
from chainserve.models.runner import Runner
from chainserve.models.skeleton import blocks_of, build_skeleton
from chainserve.models.source import ModelSource
from chainserve.models.wire import from_wire, to_wire
from chainserve.planning.moves import overlap
from chainserve.planning.profile import BlockProfile, StepTimes
from chainserve.protocol.messages import (
    Activations,
    Close,
    Failed,
    FailureCode,
    Leaving,
    Message,
    Open,
    Opened,
    Step,
)
from chainserve.runtime.background import is_busy
from chainserve.swarm.records import ServerState
from chainserve.types import Hop, PeerId, SessionId, Span
from chainserve_server import blocks as blocks_module
from chainserve_server.blocks import Blocks
from chainserve_server.engine import Engine
from chainserve_server.prepare import Prepared
from chainserve_server.sessions import Sessions
from chainserve_server.work import Batch, Outcome

ONLINE = ServerState.ONLINE
CPU = torch.device("cpu")
ME, CLIENT = PeerId("server"), PeerId("client")
NUM_BLOCKS, HIDDEN, KV_WIDTH, VOCAB = 6, 32, 16, 8
BLOCK_BYTES = 4 * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV_WIDTH + 3 * HIDDEN * 64 + 2 * HIDDEN)
EMBEDDING_BYTES, HEAD_BYTES = 4 * VOCAB * HIDDEN, 4 * (VOCAB + 1) * HIDDEN
TOKEN_BYTES = 4 * 2 * KV_WIDTH
ENDS_BYTES = EMBEDDING_BYTES + HEAD_BYTES
ACTIVATION_BYTES = 1000
PROFILE = BlockProfile(
    times=StepTimes(
        forward_s=0.0, prefill=((1, 1e-3), (8, 2e-3)), decode=((1, 1e-3), (8, 2e-3)), head=((1, 1e-3), (2, 2e-3))
    ),
    block_bytes=BLOCK_BYTES,
    embedding_bytes=EMBEDDING_BYTES,
    head_bytes=HEAD_BYTES,
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
        """There is memory for both ends, so many blocks, and beside them for cache of so many tokens in one block."""
        source = resolve(str(folder))
        source.take_traffic()  # of the headers
        self.prepared = Prepared(
            source=source,
            pinned=None,
            device=CPU,
            dtype=torch.float32,
            profile=replace(PROFILE, is_tied=source.config.tie_word_embeddings),
            memory_bytes=ACTIVATION_BYTES + int(blocks * BLOCK_BYTES) + ENDS_BYTES + tokens * TOKEN_BYTES,
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
        self.read_ends: list[End] = []
        self.is_loading = False
        self.beside: list[set[int]] = []
        """Blocks that were in memory when others began to be loaded, every time."""
        self.gate = threading.Event()
        """Loading waits for it."""
        self.gate.set()
        self.broken: list[AssertionError] = []
        self.is_running = False
        self._loop = asyncio.get_running_loop()
        run_batch = self.engine._run_batch

        def watched(batch: Batch) -> Outcome:
            self.is_running = True
            try:
                return run_batch(batch)
            finally:
                self.is_running = False

        self.engine._run_batch = watched  # type: ignore[method-assign]
        self.buffers: list[weakref.ref[Tensor]] = []
        self._weights: list[tuple[int | End, weakref.ref[Tensor]]] = []
        self._reference = reference
        self._random = torch.Generator().manual_seed(0)
        self._ids = count(1)
        self._spans: dict[SessionId, Span] = {}
        self._lengths: dict[SessionId, int] = {}
        self._num_steps: dict[SessionId, int] = {}
        self._awaited: dict[SessionId, asyncio.Future[Tensor]] = {}

    @property
    def in_memory(self) -> set[int]:
        """Blocks whose weights are there, whoever still refers to them."""
        return {block for block, weight in self._weights if isinstance(block, int) and weight() is not None}

    @property
    def ends_in_memory(self) -> set[End]:
        return {end for end, weight in self._weights if isinstance(end, End) and weight() is not None}

    def check(self, *, coming_bytes: int = 0) -> None:
        """The rule that no move may break; so many bytes of weights are about to be read.

        In the event loop, where sessions come and go, so that none does while this looks.
        """
        cache = self.engine.cache
        promised = max(cache.budget_tokens * len(cache.span or ()), cache.reserved)
        used_bytes = self.blocks.weight_bytes + ACTIVATION_BYTES + promised * TOKEN_BYTES
        assert used_bytes <= self.prepared.memory_bytes, (used_bytes, self.prepared.memory_bytes)
        weights = bytes_of(weight for _, weight in list(self._weights))
        assert weights + coming_bytes <= self.blocks.weight_bytes, (self.in_memory, self.blocks.weight_bytes)
        is_running = self.is_running  # before what it may still hold
        buffers = bytes_of(list(self.buffers))
        assert weights + coming_bytes + ACTIVATION_BYTES + buffers <= self.prepared.memory_bytes
        assert is_running or buffers <= cache.reserved * TOKEN_BYTES  # a forward keeps what is released meanwhile

    def check_from_loader(self, *, coming_bytes: int = 0) -> None:
        async def check() -> None:
            self.check(coming_bytes=coming_bytes)

        asyncio.run_coroutine_threadsafe(check(), self._loop).result(20)

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
        inner = {End.EMBEDDING: skeleton.get_input_embeddings(), End.HEAD: skeleton.get_output_embeddings()}
        ends = [end for end, module in inner.items() if module is not None]
        if ends:
            assert not new, "ends are loaded apart"
            num_missing = sum(weight.numel() for weight in skeleton.parameters() if weight.is_meta)
            self.check_from_loader(coming_bytes=4 * num_missing)
        if new:
            self.check_from_loader(coming_bytes=len(new) * BLOCK_BYTES)
            self.beside.append(self.in_memory)
            self.is_loading = True
            assert self.gate.wait(20)
        report = load_weights(skeleton, source, **options)
        for block, module in new.items():
            self._weights += [(block, weakref.ref(weight)) for weight in module.parameters()]
        self._weights += [(end, weakref.ref(weight)) for end in ends for weight in skeleton.parameters()]
        self.check_from_loader()
        self.read += new
        self.read_ends += ends
        self.is_loading = False
        return report

    def note_lean(self, span: Span) -> None:
        """Blocks that run in another way than their family's have weights of their own."""
        assert self.engine.runner is not None
        for block in span:
            weights = self.engine.runner.blocks[block].parameters()
            self._weights += [(block, weakref.ref(weight)) for weight in weights]

    def weight_bytes(self, span: Span) -> int:
        """What blocks and ends of a span take, each shared weight once."""
        ends = ends_of(span, NUM_BLOCKS)
        end_bytes = EMBEDDING_BYTES * (End.EMBEDDING in ends) + HEAD_BYTES * (End.HEAD in ends)
        if self.prepared.profile.is_tied and len(ends) == 2:
            end_bytes -= EMBEDDING_BYTES
        return len(span) * BLOCK_BYTES + end_bytes

    def check_ends(self, span: Span) -> None:
        """The runner has the ends of its span, and no others; they do what the whole model's do."""
        assert self.engine.runner is not None
        ours, whole = self.engine.runner.ends, self._reference.ends
        there = ends_of(span, NUM_BLOCKS)
        assert (ours.has_embedding, ours.has_head) == (End.EMBEDDING in there, End.HEAD in there)
        if ours.has_embedding:
            assert torch.equal(ours.embed(torch.arange(VOCAB)), whole.embed(torch.arange(VOCAB)))
        if ours.has_head:
            hidden = torch.randn(3, HIDDEN, generator=self._random)
            torch.testing.assert_close(ours.logits(hidden), whole.logits(hidden))  # maybe added up in another order

    async def hold(self, span: Span) -> LoadReport:
        """Move; what is said meanwhile has to be true, and never leaves out what stays."""
        num_said, before = len(self.said), self.blocks.span if self.blocks.state is ONLINE else None
        report = await self.blocks.hold(span)
        self.note_lean(span)
        said = self.said[num_said:]
        assert said[-1] == (ONLINE, span)
        if (stays := overlap(before, span)) is not None:
            assert all(state is ONLINE and announced.covers(stays) for state, announced in said), said
        assert self.in_memory == set(span)
        assert self.ends_in_memory == set(ends_of(span, NUM_BLOCKS))
        self.check_ends(span)
        assert self.engine.cache.span == span
        left_bytes = self.prepared.memory_bytes - ACTIVATION_BYTES - self.weight_bytes(span)
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
        self._spans[session], self._lengths[session], self._num_steps[session] = span, 0, 0
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
            step = Step(session, 0, self._lengths[session], num_tokens, num_tokens, self._num_steps[session])
            self._num_steps[session] += 1
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
            assert isinstance(message, Opened | Leaving)

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
    """Memory of those tensors that live, by storages; oneDNN's have none, and share none."""
    living = [tensor for ref in tensors if (tensor := ref()) is not None]
    packed = {id(tensor): tensor.numel() * tensor.element_size() for tensor in living if tensor.is_mkldnn}
    storages = [tensor.untyped_storage() for tensor in living if not tensor.is_mkldnn]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) + sum(packed.values())


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


@contextmanager
def small_model(folder: Path, *, tied: bool = False) -> Iterator[Runner]:
    """Write a model of which every part matters into a folder; yields what runs any of its blocks."""
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=NUM_BLOCKS,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=VOCAB,
        tie_word_embeddings=tied,
    )
    generator = torch.Generator().manual_seed(7)
    saved = LlamaForCausalLM(config).requires_grad_(False)
    for parameter in saved.parameters():
        parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2, generator=generator)
    saved.save_pretrained(folder)
    source = resolve(str(folder))
    assert bytes_by_block(source.config, torch.float32) == (BLOCK_BYTES,) * NUM_BLOCKS
    whole = build_skeleton(source.config, Span(0, NUM_BLOCKS))
    load_weights(whole, source, dtype=torch.float32, device=CPU, progress=False)
    ends = build_skeleton(source.config, None, embed=True, head=True)
    load_weights(ends, source, dtype=torch.float32, device=CPU, progress=False)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them only wait for each other, where blocks are this small
    yield Runner(whole, Span(0, NUM_BLOCKS), KVCache(None, budget_tokens=0), ends=Ends(ends))
    torch.set_num_threads(num_threads)


MakeServer = Callable[..., Awaitable[Server]]


@asynccontextmanager
async def watched_server(folder: Path, reference: Runner, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeServer]:
    """Yields what makes one server, without blocks yet unless `span` names some, that is watched until this ends."""
    running: list[tuple[Server, asyncio.Task[None]]] = []
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
