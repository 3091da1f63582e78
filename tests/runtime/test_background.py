"""What computes for a while leaves no threads behind, and an interrupt does not wait for it."""

import subprocess
import sys
import threading
from typing import Any

import pytest

from chainserve.errors import ModelNotFoundError
from chainserve.runtime.background import in_background, in_passing_thread
from chainserve_server import cli

COMPUTES = """
import os, time
import torch
from chainserve.runtime.background import in_passing_thread

def compute():
    weight = torch.ones(512, 512)
    return float((weight @ weight)[0, 0]), num_threads()

def num_threads():
    return len(os.listdir("/proc/self/task"))

before = num_threads()
product, during = in_passing_thread(compute)
assert product == 512
assert during > before + 1, "torch has no helpers here"
while num_threads() > before:
    time.sleep(0.01)
"""

IS_INTERRUPTED = """
import signal, threading, time
from chainserve.runtime.background import in_passing_thread, is_busy

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
goes_on = threading.Event()

def work():
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    assert goes_on.wait(30)

try:
    in_passing_thread(work)
except KeyboardInterrupt:
    assert is_busy()
else:
    raise AssertionError("the wait went on")
goes_on.set()
while is_busy():
    time.sleep(0.01)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted as Linux shows them")
def test_helpers_of_torch_end_with_the_thread_that_had_them() -> None:
    subprocess.run([sys.executable, "-c", COMPUTES], check=True, timeout=60, env={"OMP_NUM_THREADS": "3"})


def test_what_is_raised_is_raised_to_who_waits() -> None:
    with pytest.raises(ZeroDivisionError):
        in_passing_thread(lambda: 1 // 0)


def test_an_interrupt_ends_the_wait_and_not_the_work() -> None:
    subprocess.run([sys.executable, "-c", IS_INTERRUPTED], check=True, timeout=60)


def test_a_server_prepares_in_a_thread_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def prepare(_config: Any) -> None:
        threads.append(threading.current_thread())
        raise ModelNotFoundError("far enough")

    monkeypatch.setattr("chainserve_server.prepare.prepare", prepare)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # this process keeps its handlers
    assert cli.main(["--model", "smollm2-135m", "--blocks", "0:30"]) == 2
    assert threads[0] is not threading.main_thread()
    threads[0].join(30)
    assert not threads[0].is_alive()


async def test_a_thread_in_the_background_has_ended_when_its_result_is_there() -> None:
    for _ in range(20):
        thread = await in_background(threading.current_thread)
        assert not thread.is_alive()  # it would keep the result until it ends
