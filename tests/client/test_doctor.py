"""`chainserve doctor`: what it finds, how bad that is, and what it says to do."""

import argparse
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from live_swarms import server

from chainserve import __version__
from chainserve.errors import UsageError
from chainserve.swarm.records import ServerState
from chainserve.types import Span
from chainserve_client.doctor import machine, swarm
from chainserve_client.doctor.command import check, run
from chainserve_client.doctor.finding import Finding, Level, failed, ok, warning
from chainserve_client.doctor.model import model
from chainserve_client.status import Way


def options(**given: Any) -> argparse.Namespace:
    usual = {"token": None, "model": None, "device": "cpu", "host": None, "port": None, "json": False}
    return argparse.Namespace(**usual | given)


@pytest.mark.parametrize("with_colours", [False, True])
def test_a_finding_says_what_to_do_within_the_width_of_a_terminal(with_colours: bool) -> None:
    text = warning("a name", "fact " * 40, "do " * 60).text(with_colours=with_colours)
    assert ("\x1b[33mwarning\x1b[0m" in text) == with_colours
    lines = text.replace("\x1b[33m", "").replace("\x1b[0m", "").splitlines()
    assert lines[0].startswith("warning  a name      fact")
    assert sum("-> do" in line for line in lines) == 1
    assert max(map(len, lines)) <= 100


async def test_the_exit_status_says_whether_something_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(machine, "memory", lambda: ok("memory", "plenty"))
    assert await run(options(), say=said.append, with_colours=False) == 0
    monkeypatch.setattr(machine, "memory", lambda: failed("memory", "none", "buy some"))
    assert await run(options(json=True), say=said.append, with_colours=False) == 1
    content = json.loads(said[-1])
    assert content["ok"] is False
    [memory] = [finding for finding in content["findings"] if finding["name"] == "memory"]
    assert memory == {"name": "memory", "level": "failed", "fact": "none", "advice": "buy some"}


def test_what_does_not_go_together_is_refused() -> None:
    for wrong in ({"port": 80}, {"host": "0.0.0.0", "port": 65535}, {"host": "0.0.0.0", "port": 0}):
        with pytest.raises(UsageError):
            check(options(**wrong))
    check(options(host="0.0.0.0", port=8300))


def test_packages_that_are_missing_make_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.packages().level is Level.OK
    monkeypatch.setattr(machine, "_version", lambda name: None if name == "hivemind" else "1")
    finding = machine.packages()
    assert finding.level is Level.NOTE
    assert "no hivemind: this machine can ask, and not serve" in finding.fact
    assert "chainserve[server]" in finding.advice


@pytest.mark.parametrize(
    ("free", "level"), [(machine.LEAST_MEMORY_BYTES - 1, Level.FAILED), (machine.LEAST_MEMORY_BYTES, Level.OK)]
)
def test_too_little_memory_is_a_failure(free: float, level: Level) -> None:
    assert machine.memory(lambda: (int(free), 10**10)).level is level


@pytest.mark.parametrize(
    ("free", "needed", "level"), [(10**10, 0, Level.OK), (10**9, 0, Level.WARNING), (10**10, 10**11, Level.WARNING)]
)
def test_a_full_disk_is_a_warning(
    free: int, needed: int, level: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    finding = machine.disk(tmp_path / "not" / "there" / "yet", needed_bytes=needed)
    assert finding.level is level
    assert str(tmp_path) in finding.fact


def test_a_folder_that_cannot_be_written_to_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "access", lambda *_: False)
    assert machine.disk(tmp_path).level is Level.FAILED


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens at, with none free before it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_ports_that_are_taken_are_named(taken: int) -> None:
    for port in (taken, taken - 1):  # the next one is the DHT's
        finding = machine.ports("127.0.0.1", port)
        assert finding.level is Level.FAILED
        assert f"cannot listen at 127.0.0.1:{taken}" in finding.fact or port != taken
    assert machine.ports("192.0.2.1", taken).level is Level.FAILED


def test_without_a_gpu_the_cpu_is_what_there_is() -> None:
    [finding] = machine.devices("cpu")
    assert (finding.level, "CPU cores" in finding.fact) == (Level.NOTE, True)
    [unknown] = machine.devices("tpu")
    assert unknown.level is Level.FAILED


def test_a_gpu_that_torch_does_not_see_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "_has_nvidia", lambda: True)
    for wanted in (None, "cuda", "cuda:1"):
        [finding] = machine.devices(wanted)
        assert finding.level is Level.FAILED
        assert "driver" in finding.advice


def test_a_gpu_is_looked_at_by_computing_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda name: f"card of {name}")
    memory = {"cuda:0": (8 * 10**9, 10**10), "cuda:1": (10**9, 10**10)}
    monkeypatch.setattr(torch.cuda, "mem_get_info", memory.__getitem__)
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *size, device: ones(*size))
    first, second, _ = machine.devices(None)
    assert (first.level, first.fact) == (Level.OK, "cuda:0: card of cuda:0, 8.00 GB free of 10.0 GB")
    assert second.level is Level.WARNING
    assert next(machine.devices("cuda")).fact.startswith("cuda:0")
    missing, _ = machine.devices("cuda:7")
    assert (missing.level, missing.advice) == (Level.FAILED, "give one of cuda:0, cuda:1")

    def broken(*_: int, device: str) -> None:
        raise RuntimeError("no kernel image is available\nmore")

    monkeypatch.setattr(torch, "ones", broken)
    first, *_ = machine.devices("cuda:0")
    assert first.fact == "cuda:0: card of cuda:0 cannot be used: no kernel image is available"


def test_a_model_is_found_or_it_is_said_why_not() -> None:
    found, room = model("smollm2-135m")
    assert (found.level, found.fact) == (Level.OK, "smollm2-135m: 30 blocks, 96.6 MB")
    assert room.name == "disk"
    [missing] = model("nonsense")
    assert missing.level is Level.FAILED
    assert missing.fact == "no model 'nonsense'"
    assert missing.advice.startswith("give smollm2-135m")


async def facts(token: str) -> list[Finding]:
    return [finding async for finding in swarm.swarm(token, host=None, port=0)]


async def test_what_is_no_token_is_the_only_finding() -> None:
    [finding] = await facts("hello")
    assert (finding.name, finding.level) == ("token", Level.FAILED)


@pytest.mark.parametrize(("ahead_s", "level"), [(0.5, Level.OK), (-0.5, Level.OK), (60, Level.WARNING)])
def test_a_clock_that_is_off_is_a_warning(ahead_s: float, level: Level) -> None:
    assert swarm.clock(ahead_s).level is level


def test_versions_that_differ_are_named() -> None:
    assert swarm.versions({__version__}).level is Level.OK
    finding = swarm.versions({__version__, "9.9\x1b"})
    assert finding.level is Level.WARNING
    assert "9.9?" in finding.fact


def test_servers_that_do_not_answer_here_are_named() -> None:
    records = {each.peer: each for each in (server("a", Span(0, 8)), server("b", Span(0, 8)))}
    a, b = records
    view: Any = SimpleNamespace(servers=records)
    way = Way("direct", 0.01)
    assert swarm.servers(view, {a: way, b: way}).level is Level.OK
    some = swarm.servers(view, {a: way})
    assert (some.level, b[-6:] in some.advice) == (Level.WARNING, True)
    assert swarm.servers(view, {}).level is Level.FAILED


def test_missing_blocks_are_a_failure_unless_they_are_being_loaded() -> None:
    assert swarm.blocks([server("a", Span(0, 8))], []).level is Level.OK
    assert swarm.blocks([server("a", Span(0, 4))], [4, 5, 6, 7]).level is Level.FAILED
    loading = server("b", Span(4, 8), state=ServerState.LOADING)
    assert swarm.blocks([loading], [4, 5, 6, 7]).level is Level.WARNING
