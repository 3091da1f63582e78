"""What one iteration takes, runs and passes on; the model is replaced by one that adds one."""

import asyncio
import threading
import weakref
from collections import deque
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chainserve.errors import StepError
from chainserve.models.wire import from_wire, to_wire
from chainserve.protocol.messages import Activations, FailureCode, Reorder, Step
from chainserve.runtime.turns import Turns
from chainserve.types import PeerId, SessionId, Span
from chainserve_server import engine
from chainserve_server.engine import Engine
from chainserve_server.iteration import run_batch
from chainserve_server.work import Batch, Item, Reordering, Work, choose_batch, leading_work

NEXT, CLIENT = PeerId("next"), PeerId("client")
WIDE, NARROW = Span(0, 4), Span(1, 3)


def session(number: int) -> SessionId:
    return SessionId(number.to_bytes(16, "big"))


def work(
    number: int,
    num_tokens: int = 1,
    *,
    lane: int = 0,
    start: int = 0,
    num_outputs: int = 1,
    span: Span = WIDE,
    receiver: PeerId = NEXT,
) -> Work:
    hidden = to_wire(torch.full((num_tokens, 2), float(number)))
    step = Step(session(number), lane, start, num_tokens, num_outputs)
    return Work(step, span, hidden, receiver, is_tail=receiver == CLIENT)


class AddsOne:
    """Stands for a runner: every block span adds one, and remembers its batches."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, *, refuses: set[SessionId] | None = None, breaks: bool = False) -> None:
        self.batches: list[list[Step]] = []
        self.reordered: list[tuple[SessionId, tuple[int, ...]]] = []
        self.released: list[SessionId] = []
        self._refuses = refuses or set()
        self._breaks = breaks
        self.cache = SimpleNamespace(
            reorder=lambda session, sources: self.reordered.append((session, sources)), release=self.released.append
        )

    def forward(self, hidden: torch.Tensor, steps: list[Step], span: Span) -> torch.Tensor:
        for step in steps:
            if step.session in self._refuses:
                raise StepError(step.session, "does not fit")
        if self._breaks:
            raise RuntimeError("out of memory")
        self.batches.append(list(steps))
        return hidden + 1


def run(runner: AddsOne, works: list[Work], reorders: list[Reordering] | None = None) -> Any:
    return run_batch(cast(Any, runner), Batch(list(reorders or []), works))


def values(message: Activations) -> list[float]:
    return from_wire(message.tensor, dtype=torch.float32, device=torch.device("cpu"))[:, 0].tolist()


def test_steps_of_many_sessions_run_in_one_forward_and_leave_in_one_message() -> None:
    runner = AddsOne()
    outcome = run(runner, [work(1), work(2, 3)])
    assert len(runner.batches) == 1
    [(receiver, message)] = outcome.messages
    assert receiver == NEXT
    assert [step.num_tokens for step in message.steps] == [1, 3]
    assert values(message) == [2, 3, 3, 3]


def test_sessions_over_different_blocks_run_apart() -> None:
    runner = AddsOne()
    run(runner, [work(1), work(2, span=NARROW)])
    assert [len(batch) for batch in runner.batches] == [1, 1]


def test_of_the_tails_outputs_only_those_asked_for_leave() -> None:
    chunk, last = work(1, 3, num_outputs=0, receiver=CLIENT), work(2, 5, start=4, num_outputs=2, receiver=CLIENT)
    [(_, message)] = run(AddsOne(), [chunk, last]).messages
    assert message.steps == (Step(session(2), 0, 7, 2, 2),)
    assert values(message) == [3, 3]


def test_a_session_whose_step_does_not_fit_fails_and_the_others_run() -> None:
    runner = AddsOne(refuses={session(1)})
    outcome = run(runner, [work(1), work(2), work(1, lane=1)])
    assert [step.session for step in runner.batches[0]] == [session(2)]
    [(failed, code, _)] = outcome.failures
    assert (failed, code) == (session(1), FailureCode.BAD_MESSAGE)


def test_reorderings_come_before_steps_and_go_on_before_them() -> None:
    runner = AddsOne()
    passed_on, at_the_tail = Reorder(session(1), (1, 0)), Reorder(session(2), (0,))
    outcome = run(runner, [work(1)], [Reordering(passed_on, NEXT), Reordering(at_the_tail, None)])
    assert runner.reordered == [(session(1), (1, 0)), (session(2), (0,))]
    assert [(peer, type(message)) for peer, message in outcome.messages] == [(NEXT, Reorder), (NEXT, Activations)]


def test_a_second_step_of_a_lane_and_what_follows_a_reordering_wait() -> None:
    first, other, second = work(1), work(1, lane=1), work(1, start=1)
    assert leading_work([first, other, second]) == [first, other]
    assert leading_work([first, Reordering(Reorder(session(1), (0, 0)), NEXT), other]) == [first]


def test_a_long_prompt_does_not_hold_up_decoding() -> None:
    queues = {session(1): deque([work(1, 512)]), session(2): deque([work(2)])}
    assert choose_batch(queues, max_tokens=16) == [queues[session(2)][0]]


steps = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40), st.integers(0, 2)), min_size=1, max_size=12)


@given(steps, st.integers(1, 64))
def test_every_step_runs_once_in_its_sessions_order_within_the_budget(
    plan: list[tuple[int, int, int]], max_tokens: int
) -> None:
    queues: dict[SessionId, deque[Item]] = {}
    for number, num_tokens, lane in plan:
        queues.setdefault(session(number), deque()).append(work(number, num_tokens, lane=lane))
    done: list[Work] = []
    while any(queues.values()):
        batch = choose_batch(queues, max_tokens=max_tokens)
        assert batch
        assert len(batch) == 1 or sum(item.step.num_tokens for item in batch) <= max_tokens
        for item in batch:
            queues[item.step.session].remove(item)
        done += batch
    assert len(done) == len(plan)
    for number in {number for number, _, _ in plan}:
        ran = [(item.step.num_tokens, item.step.lane) for item in done if item.step.session == session(number)]
        assert ran == [(num, lane) for n, num, lane in plan if n == number]


class Loop:
    """An engine that runs, with what it emits."""

    def __init__(self, runner: AddsOne, *, turns: Turns | None = None) -> None:
        self.begun_when_counted: list[int] = []  # iterations when each forward was counted
        self.emitted: asyncio.Queue[tuple[PeerId, Activations]] = asyncio.Queue()
        self.failed: asyncio.Queue[tuple[SessionId, FailureCode, str]] = asyncio.Queue()
        self.engine = Engine(
            cast(Any, runner.cache),
            runner=cast(Any, runner),
            max_batch_tokens=64,
            emit=lambda peer, message: self.emitted.put_nowait((peer, message)),
            fail=lambda *failure: self.failed.put_nowait(failure),
            observe=lambda _forward: self.begun_when_counted.append(self.engine.num_begun),
            turns=turns,
        )

    async def __aenter__(self) -> "Loop":
        self._task = asyncio.create_task(self.engine.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._task


async def test_the_loop_runs_what_is_added_and_releases_what_is_over() -> None:
    runner = AddsOne()
    async with Loop(runner) as loop:
        loop.engine.add(work(1))
        _, message = await loop.emitted.get()
        assert values(message) == [2]
        loop.engine.release(session(1))
        loop.engine.add(work(2))
        await loop.emitted.get()
        assert runner.released == [session(1)]


async def test_the_next_iteration_begins_before_the_last_one_is_counted() -> None:
    async with Loop(AddsOne()) as loop:
        loop.engine.add(work(1))
        loop.engine.add(work(1, start=1))
        await loop.emitted.get()
        await loop.emitted.get()
        assert loop.begun_when_counted == [2]


async def test_work_of_a_released_session_does_not_run() -> None:
    runner = AddsOne()
    async with Loop(runner) as loop:
        loop.engine.add(work(1))
        loop.engine.release(session(1))
        loop.engine.add(work(2))
        await loop.emitted.get()
    assert [[step.session for step in batch] for batch in runner.batches] == [[session(2)]]


async def test_an_iteration_that_breaks_fails_its_sessions_and_the_loop_goes_on() -> None:
    runner = AddsOne(breaks=True)
    async with Loop(runner) as loop:
        loop.engine.add(work(1))
        failed, code, reason = await loop.failed.get()
        assert (failed, code) == (session(1), FailureCode.INTERNAL)
        assert "out of memory" in reason
        runner._breaks = False
        loop.engine.add(work(2))
        await loop.emitted.get()


class Waits(AddsOne):
    """A runner whose forward takes until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.is_running = threading.Event()
        self.go_on = threading.Event()

    def forward(self, hidden: torch.Tensor, steps: list[Step], span: Span) -> torch.Tensor:
        self.is_running.set()
        assert self.go_on.wait(10)
        return super().forward(hidden, steps, span)


async def test_a_change_is_made_at_once_where_nothing_runs() -> None:
    made: list[str] = []
    async with Loop(AddsOne()) as loop:
        await loop.engine.between_iterations(lambda: made.append("a change"))
        assert made == ["a change"]


async def test_changes_wait_for_the_forward_and_come_in_order_after_what_was_released() -> None:
    runner, made = Waits(), list[Any]()
    async with Loop(runner) as loop:
        loop.engine.add(work(1))
        await asyncio.to_thread(runner.is_running.wait, 10)

        def change(number: int) -> None:
            made.append((number, len(runner.batches), runner.released == [session(1)]))

        changes = [asyncio.create_task(loop.engine.between_iterations(partial(change, number))) for number in range(3)]
        loop.engine.release(session(1))
        await asyncio.sleep(0)
        loop.engine.add(work(2))
        assert made == []
        runner.go_on.set()
        await asyncio.gather(*changes)
        assert made == [(number, 1, True) for number in range(3)]
        await loop.emitted.get()
        await loop.emitted.get()


async def test_a_change_that_fails_is_its_callers_affair() -> None:
    def breaks() -> None:
        raise KeyError("no such block")

    async with Loop(AddsOne()) as loop:
        broken, fine = await asyncio.gather(
            loop.engine.between_iterations(breaks),
            loop.engine.between_iterations(lambda: None),
            return_exceptions=True,
        )
        assert isinstance(broken, KeyError)
        assert fine is None
        loop.engine.add(work(1))
        await loop.emitted.get()


async def test_a_change_that_nobody_waits_for_any_more_is_not_made() -> None:
    runner, made = Waits(), list[str]()
    async with Loop(runner) as loop:
        loop.engine.add(work(1))
        await asyncio.to_thread(runner.is_running.wait, 10)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await loop.engine.between_iterations(lambda: made.append("too late"))
        runner.go_on.set()
        await loop.engine.between_iterations(lambda: made.append("in time"))
        assert made == ["in time"]
        await loop.emitted.get()


async def test_an_exchanged_runner_is_used_from_then_on_and_the_old_one_is_free_at_once() -> None:
    async with Loop(AddsOne()) as loop:
        engine = loop.engine
        old: Any = Waits()
        old.cache = None  # refers back to it
        is_running, go_on, gone = old.is_running, old.go_on, weakref.ref(old)
        engine.runner, new = old, AddsOne()
        del old
        engine.add(work(1))
        await asyncio.to_thread(is_running.wait, 10)
        engine.add(work(2))
        is_alive: list[bool] = []

        def exchange() -> None:
            engine.runner = cast(Any, new)
            is_alive.append(gone() is not None)

        go_on.set()
        await engine.between_iterations(exchange)
        await loop.emitted.get()
        await loop.emitted.get()
        assert [step.session for batch in new.batches for step in batch] == [session(2)]
        assert is_alive == [False]


class TwoOnTheSameCores:
    """An engine's turns, and those of another server, whose turn it is first. A lock on a file tells nobody that it
    was taken or let go: so these look every millisecond."""

    def __init__(self, path: Path) -> None:
        self.own, self.others = Turns(path, patience_s=60), Turns(path)
        assert self.others.take()

    async def until_the_engine_has_it(self) -> None:
        async with asyncio.timeout(10):
            while self.others.take():
                self.others.give_back()
                await asyncio.sleep(0.001)

    async def until_it_is_free(self) -> None:
        async with asyncio.timeout(10):
            while not self.others.take():
                await asyncio.sleep(0.001)


@pytest.fixture
def turns(tmp_path: Path) -> TwoOnTheSameCores:
    return TwoOnTheSameCores(tmp_path / "computing")


async def test_what_comes_while_a_turn_is_waited_for_runs_with_it(turns: TwoOnTheSameCores) -> None:
    runner = AddsOne()
    async with Loop(runner, turns=turns.own) as loop:
        loop.engine.add(work(1))
        await asyncio.sleep(0)
        loop.engine.add(work(2))
        assert runner.batches == []
        turns.others.give_back()
        await loop.emitted.get()
        assert [[step.session for step in batch] for batch in runner.batches] == [[session(1), session(2)]]
        await turns.until_it_is_free()


async def test_what_the_server_before_has_sent_runs_with_it(
    turns: TwoOnTheSameCores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "ON_THE_WAY_S", 60)
    runner = AddsOne()
    async with Loop(runner, turns=turns.own) as loop:
        loop.engine.add(work(1))
        await asyncio.sleep(0)
        turns.others.give_back()
        # It has the turn a moment before it waits for more, and what comes then is late.
        async with asyncio.timeout(10):
            while not loop.engine._num_vain:  # which tells nobody that it has changed
                await asyncio.sleep(0.001)
        loop.engine.add(work(2))
        await loop.emitted.get()
        assert [[step.session for step in batch] for batch in runner.batches] == [[session(1), session(2)]]


async def test_where_nothing_ever_comes_it_is_seldom_waited_for(
    turns: TwoOnTheSameCores, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Loop(AddsOne(), turns=turns.own) as loop:
        for number in range(engine.MOST_VAIN):
            loop.engine.add(work(number))
            await asyncio.sleep(0)
            turns.others.give_back()
            await loop.emitted.get()
            await turns.until_it_is_free()
        monkeypatch.setattr(engine, "ON_THE_WAY_S", 60)
        loop.engine.add(work(1))
        await asyncio.sleep(0)
        turns.others.give_back()
        await loop.emitted.get()


async def test_a_session_that_is_released_before_its_turn_does_not_run(
    turns: TwoOnTheSameCores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "ON_THE_WAY_S", 0.2)  # so that it is seen that it has come
    runner = AddsOne()
    async with Loop(runner, turns=turns.own) as loop:
        loop.engine.add(work(1))
        await asyncio.sleep(0)
        loop.engine.release(session(1))
        turns.others.give_back()
        await turns.until_the_engine_has_it()
        await turns.until_it_is_free()
        assert runner.batches == []
        turns.others.give_back()
        loop.engine.add(work(2))
        await loop.emitted.get()


async def test_a_turn_is_given_back_by_what_fails(turns: TwoOnTheSameCores) -> None:
    turns.others.give_back()
    async with Loop(AddsOne(breaks=True), turns=turns.own) as loop:
        loop.engine.add(work(1))
        await loop.failed.get()
        await turns.until_it_is_free()


async def test_an_engine_that_ends_while_it_waits_keeps_no_turn(turns: TwoOnTheSameCores) -> None:
    async with Loop(AddsOne(), turns=turns.own) as loop:
        loop.engine.add(work(1))
        await asyncio.sleep(0)
    turns.others.give_back()
    for thread in threading.enumerate():
        if thread.name == "compute":
            await asyncio.to_thread(thread.join, 10)  # it gets its turn, and ends
    assert turns.others.take()
