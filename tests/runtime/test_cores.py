"""Threads that compute together keep to cores of their own; all others go where they like. On a machine with one core
there is nothing to see."""

import os
import subprocess
import sys

import pytest

PRINTS_CORES = """
import os, sys, threading
import torch
from chainserve.runtime.cores import keep_apart

def threads():
    return set(map(int, os.listdir("/proc/self/task")))

def compute():
    torch.set_num_threads(int(sys.argv[1]))  # whatever hyperthreads there are
    before = threads()
    keep_apart()
    weight = torch.ones(512, 512)
    assert float((weight @ weight)[0, 0]) == 512
    for thread in (threading.get_native_id(), *(threads() - before)):
        print(*sorted(os.sched_getaffinity(thread)))

thread = threading.Thread(target=compute)
thread.start()
thread.join()
assert os.sched_getaffinity(0) == os.sched_getaffinity(os.getppid()), "another thread was kept to a core"
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads are kept to cores on Linux only")


def cores_of_threads(num_threads: int) -> list[list[int]]:
    """Where the thread that computes, and those that help it, may run."""
    program = [sys.executable, "-c", PRINTS_CORES, str(num_threads)]
    run = subprocess.run(program, check=True, timeout=60, stdout=subprocess.PIPE, text=True)
    return [[int(core) for core in line.split()] for line in run.stdout.splitlines()]


def test_where_they_take_all_cores_each_thread_has_one() -> None:
    cores = sorted(os.sched_getaffinity(0))
    assert sorted(cores_of_threads(len(cores))) == [[core] for core in cores]


def test_where_there_may_be_other_cores_for_them_they_choose() -> None:
    cores = sorted(os.sched_getaffinity(0))
    assert cores_of_threads(1) == [cores]
