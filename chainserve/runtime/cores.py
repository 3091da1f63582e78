"""Sharing the cores with other processes of a swarm on the same machine."""

import os

SPIN_COUNT = "2000"
"""Turns an OpenMP thread waits for more work before it sleeps: tens of microseconds, enough between two operators.
The usual 300,000 keep a core busy for milliseconds after each step, just when the next server, or the client, of the
chain needs it. On two cores one server is as fast with 2,000 as with 4,000 (46.9 and 47.5 tokens/s), and slower with
1,000 (43.0) and 500 (21); two servers are a little faster, and 8 sessions over them a third. None of it matters in a
process with more such threads than cores: then they sleep at once (see `background.in_passing_thread`)."""


def free_idle_cores() -> None:
    """Let torch's threads sleep soon after they run out of work. Call before torch is imported."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
