"""Sharing the cores with other processes of a swarm on the same machine."""

import os

SPIN_COUNT = "4000"
"""Turns an OpenMP thread waits for more work before it sleeps: tens of microseconds, enough between two operators.
The usual 300,000 keep a core busy for milliseconds after each step, just when the next server, or the client, of the
chain needs it: with three servers on two cores a hop took 2.07 ms, 1.71 with a count of 10,000 and 0.64 with 2,000,
while one server alone became a little slower (63.4, 64.4, 66.4 ms per token). With 4,000 one server is as fast as
transformers and a hop costs less than 2 ms (docs/benchmarks.md)."""


def free_idle_cores() -> None:
    """Let torch's threads sleep soon after they run out of work. Call before torch is imported."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
