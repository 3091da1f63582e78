"""The thread in which models run: what comes back, and what does not run any more."""

import asyncio
import threading

import pytest

from chainserve_server.compute import ComputeThread


def number_of_threads() -> int:
    return sum(thread.name == "compute" for thread in threading.enumerate())


async def test_results_and_errors_come_back_in_order() -> None:
    thread = ComputeThread()
    first, failing, last = (thread.run(work) for work in (lambda: 1, lambda: [][1], lambda: 3))
    assert await first == 1
    with pytest.raises(IndexError):
        await failing
    assert await last == 3
    thread.stop()


async def test_what_nobody_waits_for_any_more_does_not_begin() -> None:
    thread = ComputeThread()
    begun, may_end, done = threading.Event(), threading.Event(), []

    def long() -> None:
        begun.set()
        may_end.wait(10)
        done.append("long")

    running, waiting = thread.run(long), thread.run(lambda: done.append("waiting"))
    await asyncio.to_thread(begun.wait, 10)
    running.cancel()
    waiting.cancel()
    may_end.set()
    await thread.run(lambda: None)
    assert done == ["long"]
    thread.stop()


async def test_the_thread_ends_behind_its_work() -> None:
    before = number_of_threads()
    thread = ComputeThread()
    result = thread.run(lambda: 1)
    thread.stop()
    assert await result == 1
    async with asyncio.timeout(10):
        while number_of_threads() > before:
            await asyncio.sleep(0.001)


def test_a_loop_that_is_closed_meanwhile_does_not_matter() -> None:
    may_end, ended = threading.Event(), threading.Event()

    async def begin() -> None:
        thread = ComputeThread()
        thread.run(lambda: may_end.wait(10))
        thread.run(ended.set)
        thread.stop()

    asyncio.run(begin())
    may_end.set()
    assert ended.wait(10)
