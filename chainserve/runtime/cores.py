"""Sharing the cores with other processes of a swarm on the same machine."""

import os
import sys
from contextlib import suppress

SPIN_COUNT = "2000"
"""Turns an OpenMP thread waits for more work before it sleeps: tens of microseconds, enough between two operators.
The usual 300,000 keep a core busy for milliseconds after each step, just when the next server, or the client, of the
chain needs it. On two cores one server is as fast with 2,000 as with 4,000 (46.9 and 47.5 tokens/s), and slower with
1,000 (43.0) and 500 (21); two servers are a little faster, and 8 sessions over them a third. None of it matters in a
process with more such threads than cores: then they sleep at once (see `background.in_passing_thread`)."""

LEAST_SHARED = 32_768
"""Numbers of a tensor for each of torch's threads, below which it takes fewer."""


def free_idle_cores() -> None:
    """Let torch's threads sleep soon after they run out of work. Call before torch is imported."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def keep_apart() -> None:
    """Give this thread, and each of torch's that helps it, a core of its own where together they take all there are.

    Call it in the thread that computes from then on, before anything else there. Threads that sleep between two steps
    may wake on the same core, and share it for as long as a scheduler takes to see that another is idle: steps of
    8 ms then take 15 (docs/decisions/linear-layers.md). Nothing is done where threads have cores to choose from, or
    systems do not let them be chosen.
    """
    import torch  # which must not be imported before `free_idle_cores` was called

    if sys.platform != "linux":
        return
    cores = sorted(os.sched_getaffinity(0))
    if not 1 < len(cores) == torch.get_num_threads():
        return
    own, others = cores[0], cores[1:]
    with suppress(OSError):  # some containers forbid it
        os.sched_setaffinity(0, others)  # which tells those that begin now from all others
        torch.zeros(LEAST_SHARED * len(cores)).add_(1)
        os.sched_setaffinity(0, {own})
        helpers = [thread for thread in map(int, os.listdir("/proc/self/task")) if _cores_of(thread) == others]
        for helper, core in zip(helpers, others, strict=False):
            os.sched_setaffinity(helper, {core})


def _cores_of(thread: int) -> list[int]:
    """Where it may run; nowhere if it has ended."""
    try:
        return sorted(os.sched_getaffinity(thread))
    except ProcessLookupError:
        return []
