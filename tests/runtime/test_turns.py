"""Processes take turns, but wait for none that is frozen, or dead."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from chainserve.runtime.turns import PATIENCE_S, Turns, try_lock

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no turns on Windows")

HOLDS = """
import sys
from pathlib import Path
from chainserve.runtime.turns import Turns

turns = Turns(Path(sys.argv[1]))
for line in sys.stdin:
    turns.wait()
    print("holds", flush=True)
    sys.stdin.readline()
    turns.give_back()
    print("has let go", flush=True)
"""


class Other:
    """Another process, which takes its turn and gives it back when it is told."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDS, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def goes_on(self) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "computing"


@pytest.fixture
def other(path: Path) -> Iterator[Other]:
    other = Other(path)
    try:
        assert other.goes_on() == "holds"
        yield other
    finally:
        other.process.kill()
        other.process.communicate()


def is_free(path: Path) -> bool:
    with path.open("wb") as file:
        return try_lock(file)


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def seconds_to_wait(self, turns: Turns) -> float:
        began_s = self.now_s
        turns.wait()
        waited_s = self.now_s - began_s
        turns.give_back()
        return waited_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("chainserve.runtime.turns.time", clock)
    return clock


def test_a_turn_is_taken_and_given_back(path: Path) -> None:
    turns = Turns(path)
    for take in (turns.take, turns.wait):
        take()
        assert not is_free(path)
        turns.give_back()
        assert is_free(path)


def test_the_turn_of_another_process_is_waited_for(path: Path, other: Other) -> None:
    turns = Turns(path, patience_s=60)
    assert not turns.take()
    lets_go = threading.Timer(0.1, other.goes_on)
    lets_go.start()
    turns.wait()
    assert not is_free(path)
    lets_go.join()
    turns.give_back()


def test_the_turn_of_one_that_has_died_is_free(path: Path, other: Other, clock: Clock) -> None:
    assert not is_free(path)
    other.process.kill()
    other.process.wait()
    assert clock.seconds_to_wait(Turns(path)) == 0


def test_one_that_holds_it_too_long_is_waited_for_once(path: Path, other: Other, clock: Clock) -> None:
    turns = Turns(path)
    os.kill(other.process.pid, signal.SIGSTOP)
    assert clock.seconds_to_wait(turns) >= PATIENCE_S
    assert turns.take(), "without it"
    assert clock.seconds_to_wait(turns) == 0
    os.kill(other.process.pid, signal.SIGCONT)
    assert other.goes_on() == "has let go"
    assert clock.seconds_to_wait(turns) == 0
    assert other.goes_on() == "holds"
    assert clock.seconds_to_wait(turns) >= PATIENCE_S, "patient again"


def test_where_nothing_can_be_kept_there_are_no_turns(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    turns = Turns(tmp_path / "file" / "computing")
    assert turns.take()
    turns.give_back()
