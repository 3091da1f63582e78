"""What the engine tells of the forwards it ran, with a runner that computes nothing."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import torch

from chainserve.errors import StepError
from chainserve.models.wire import to_wire
from chainserve.protocol.messages import Step
from chainserve.types import PeerId, SessionId, Span
from chainserve_server.engine import Engine
from chainserve_server.iteration import run_batch
from chainserve_server.work import Batch, Forward, Work

A, B, C = (SessionId(name * 16) for name in (b"a", b"b", b"c"))
WIDE, NARROW = Span(0, 4), Span(1, 3)


def work(session: SessionId, num_tokens: int, span: Span = WIDE) -> Work:
    hidden = to_wire(torch.zeros(num_tokens, 2))
    return Work(Step(session, 0, 0, num_tokens, 1), span, hidden, PeerId("next"), is_tail=False)


def runner(refuses: SessionId | None = None) -> Any:
    def forward(hidden: torch.Tensor, steps: list[Step], span: Span) -> torch.Tensor:
        if any(step.session == refuses for step in steps):
            raise StepError(cast(SessionId, refuses), "does not fit")
        return hidden

    return SimpleNamespace(dtype=torch.float32, device=torch.device("cpu"), cache=None, forward=forward)


def counts(forwards: list[Forward]) -> list[tuple[Span, int, int]]:
    assert all(forward.seconds > 0 for forward in forwards)
    return [(forward.span, forward.num_decode, forward.num_prefill_tokens) for forward in forwards]


def test_a_forward_counts_sessions_that_decode_and_tokens_of_prompts() -> None:
    outcome = run_batch(runner(), Batch([], [work(A, 1), work(B, 1), work(C, 30)]))
    assert counts(outcome.forwards) == [(WIDE, 2, 30)]


def test_sessions_over_other_blocks_are_another_forward() -> None:
    outcome = run_batch(runner(), Batch([], [work(A, 1), work(B, 7, NARROW)]))
    assert counts(outcome.forwards) == [(WIDE, 1, 0), (NARROW, 0, 7)]


def test_what_was_refused_is_not_counted() -> None:
    outcome = run_batch(runner(refuses=B), Batch([], [work(A, 1), work(B, 7)]))
    assert counts(outcome.forwards) == [(WIDE, 1, 0)]
    assert counts(run_batch(runner(refuses=B), Batch([], [work(B, 7)])).forwards) == []


async def test_the_engine_tells_its_observer() -> None:
    seen: asyncio.Queue[Forward] = asyncio.Queue()
    blocks = runner()
    engine = Engine(
        blocks.cache,
        runner=blocks,
        max_batch_tokens=64,
        emit=lambda *_: None,
        fail=lambda *_: None,
        observe=seen.put_nowait,
    )
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(engine.run())
        engine.add(work(A, 5))
        assert counts([await seen.get()]) == [(WIDE, 0, 5)]
        running.cancel()
