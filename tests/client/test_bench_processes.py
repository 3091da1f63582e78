"""Several client processes that share the requests, and one that does not live to send its part."""

import asyncio
import json
import os
import signal
from typing import Any

import pytest
from api_stub import DONE, event, stub, usage
from bench_asked import measured, of_url, options

from chainserve_client.bench import command, processes
from chainserve_client.bench.command import bench, measure
from chainserve_client.bench.figures import Run
from chainserve_client.bench.options import load_of
from chainserve_client.bench.processes import ClientProcessError
from chainserve_client.bench.run import INTERRUPTED

pytestmark = pytest.mark.slow

ANSWER = (event("a"), event("b"), event(finish_reason="stop"), usage(4, 2), DONE)


async def test_clients_share_the_requests_at_common_times() -> None:
    async with stub(*ANSWER) as server:
        given = of_url(server.url, "--requests", "7", "--clients", "2", "--rate", "20")
        result = await measured(given)
    assert [one.error for one in result.results] == [None] * 7
    assert [one.client for one in result.results] == [0, 1, 0, 1, 0, 1, 0]
    assert [one.arrival_s for one in result.results] == pytest.approx(
        [due.arrival_s for due in load_of(given)], abs=1e-6
    )
    assert [one.num_tokens for one in result.results] == [2] * 7
    assert len(server.bodies) == 7
    alone = await asked_alone(given)
    assert alone == {body["messages"][0]["content"] for body in server.bodies}


async def asked_alone(given: Any) -> set[str]:
    """The prompts of the same load from one client."""
    given.clients = 1
    async with stub(*ANSWER) as server:
        given.url = server.url
        await measured(given)
    return {body["messages"][0]["content"] for body in server.bodies}


async def test_what_a_dead_client_leaves_undone_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    start = processes.asyncio.create_subprocess_exec

    async def remembering(*words: str, **more: Any) -> Any:
        made.append(await start(*words, **more))
        return made[-1]

    monkeypatch.setattr(processes.asyncio, "create_subprocess_exec", remembering)
    async with stub(event("a"), hangs=True) as server:
        given = of_url(server.url, "--requests", "4", "--clients", "2", "--timeout", "3")
        running = asyncio.create_task(measured(given))
        async with asyncio.timeout(30):
            while len(server.bodies) < 4:
                await asyncio.sleep(0.02)
        os.kill(made[1].pid, signal.SIGKILL)
        result = await running
    errors = {one.index: one.error or "" for one in result.results}
    assert errors[0] == errors[2] == "the request did not end within 3 s"
    assert errors[1] == errors[3] == "client process 1 ended with status -9"


async def test_an_interrupted_run_has_what_is_there_so_far() -> None:
    async with stub(event("a"), hangs=True) as server:
        given = of_url(server.url, "--requests", "3", "--clients", "2", "--rate", "1")
        load = load_of(given)
        running = asyncio.create_task(measure(given, [*load[:2], *load_of(options("T", "--rate", "0.001"))[2:3]]))
        async with asyncio.timeout(30):
            while len(server.bodies) < 2:
                await asyncio.sleep(0.02)
        running.cancel()
        result = await running
    assert result.is_interrupted
    assert [(one.index, one.error) for one in result.results] == [(0, INTERRUPTED), (1, INTERRUPTED)]
    assert result.num_due == 3


async def test_a_client_that_cannot_connect_is_an_error_before_anything_is_sent() -> None:
    given = options("nonsense", "--clients", "2", "--requests", "4")
    with pytest.raises(ClientProcessError, match="token"):
        await measured(given)


@pytest.mark.parametrize(("is_interrupted", "num_due", "status"), [(False, 0, 0), (False, 1, 1), (True, 0, 130)])
async def test_the_status_says_how_it_went(
    monkeypatch: pytest.MonkeyPatch, is_interrupted: bool, num_due: int, status: int
) -> None:
    async def measure(*_words: object, **_more: object) -> Run:
        return Run(results=(), num_due=num_due, is_interrupted=is_interrupted)

    monkeypatch.setattr(command, "measure", measure)
    done = await bench(options("T", "--json"), terminal=None)
    assert done.status == status
    assert json.loads(done.text)["settings"]["target"] == "swarm"
