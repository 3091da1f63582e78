"""What holds for all tests: profiles of their own, and without a GPU Triton's kernels run in its interpreter.

Test processes that share the cores compute with one thread each: more of them wait for each other.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from unittest.mock import patch

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # before anything imports torch; servers that tests start have it, too

if shutil.which("nvidia-smi") is None:
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton, as some libraries do


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Iterator[None]:
    """Keep profiles in a folder of this run: tests make the machine busy, and what is measured then is no user's."""
    if hasattr(config, "workerinput"):  # a process beside others has the environment of the first one
        return (yield)
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, XDG_CACHE_HOME=folder):
        return (yield)
