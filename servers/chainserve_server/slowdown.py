"""Servers that are slower than their device, for benchmarks: several machines of unlike, stable speed on one."""

from collections.abc import Callable
from dataclasses import replace

from chainserve.planning.profile import BlockProfile, Points, StepTimes
from chainserve_server.work import Forward

Pace = Callable[[Forward], float]
"""Seconds that a forward takes at least."""


def slowed(profile: BlockProfile, factor: float) -> BlockProfile:
    """The profile of a device that takes `factor` times as long for everything, and holds as much."""
    return replace(profile, times=longer(profile.times, factor))


def longer(times: StepTimes, factor: float) -> StepTimes:
    """All of it `factor` times."""

    def each(points: Points) -> Points:
        return tuple((size, factor * seconds) for size, seconds in points)

    return StepTimes(
        forward_s=factor * times.forward_s,
        prefill=each(times.prefill),
        decode=each(times.decode),
        head=each(times.head),
    )


def pace_of(times: StepTimes) -> Pace:
    """No forward is quicker than `times` say."""

    def least_s(forward: Forward) -> float:
        return times.step_s(
            forward.num_decode,
            forward.num_prefill_tokens,
            num_blocks=len(forward.span),
            num_outputs=forward.num_outputs,
        )

    return least_s
