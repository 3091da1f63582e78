"""Sharing the cores with other processes of a swarm on the same machine."""

import os

SETTINGS = {"GOMP_SPINCOUNT": "4000", "OPENBLAS_THREAD_TIMEOUT": "4"}
"""How long threads of OpenMP (torch) and of OpenBLAS (numpy) wait for more work before they sleep.

OpenMP's 4,000 turns are tens of microseconds, enough between two operators. The usual 300,000 keep a core busy for
milliseconds after each step, just when the next server, or the client, of the chain needs it: with three servers on two
cores a hop took 2.07 ms, 1.71 with a count of 10,000 and 0.64 with 2,000, while one server alone became a little slower
(63.4, 64.4, 66.4 ms per token). OpenBLAS's threads would wait 2^26 cycles, which is longer than most of a block takes,
and keep torch's from the cores meanwhile: attention of a long prompt took 1.7 times as long. After 2^4 they sleep.
"""


def free_idle_cores() -> None:
    """Let threads that compute sleep soon after they run out of work. Call before torch or numpy is imported."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
