"""Swarm time is that of whoever created the swarm, and runs on whatever happens to a machine's clock."""

import asyncio
import math
import time

import pytest

from chainserve.errors import JoinError
from chainserve.swarm.clock import SwarmClock, swarm_time
from chainserve.swarm.memory import MemoryHub, MemorySwarm
from chainserve.types import PeerId

NOW = 1_800_000_000.0


class Machine:
    """A machine whose clock is off, and can be set; time passes as told."""

    def __init__(self, *, off_s: float = 0.0) -> None:
        self.off_s = off_s
        self.passed_s = 0.0

    def clock(self) -> SwarmClock:
        return SwarmClock(wall=lambda: NOW + self.off_s + self.passed_s, steady=lambda: 5.0 + self.passed_s)


def test_who_creates_a_swarm_gives_it_its_own_time() -> None:
    assert Machine(off_s=60.0).clock().now() == NOW + 60.0


def test_time_runs_on_when_the_clock_of_the_machine_is_set() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.off_s = -3600.0
    machine.passed_s = 7.0
    assert clock.now() == NOW + 7.0


@pytest.mark.parametrize("ahead_s", [-60.0, 0.0, 60.0, 86_000.0])
def test_who_joins_through_one_that_joined_has_the_time_of_the_first(ahead_s: float) -> None:
    first, second, third = Machine(off_s=ahead_s).clock(), Machine(off_s=-30.0).clock(), Machine().clock()
    second.follow([first.now() - second.now()])
    third.follow([second.now() - third.now()])
    assert second.now() == third.now() == first.now() == NOW + ahead_s


@pytest.mark.parametrize("wrong", [-80_000.0, 80_000.0, 1e12, -1e300, math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_bootstrap_peer_of_three_may_be_wrong(wrong: float, place: int) -> None:
    clock = Machine().clock()
    offsets = [60.0, 60.5]
    offsets.insert(place, wrong)
    clock.follow(offsets)
    assert NOW + 60.0 <= clock.now() <= NOW + 60.5


@pytest.mark.parametrize(("offset", "days"), [(86_401.0, "1.00001"), (-400 * 86_400.0, "400"), (-NOW, "20833.3")])
def test_a_swarm_days_away_is_not_followed(offset: float, days: str) -> None:
    clock = Machine().clock()
    with pytest.raises(JoinError, match=f"differ by {days} days: set the clock that is wrong"):
        clock.follow([offset, math.nan])
    assert clock.now() == NOW


async def test_the_swarm_whose_code_runs_says_what_time_it_is() -> None:
    ahead, behind = Machine(off_s=60.0).clock(), Machine(off_s=-60.0).clock()

    async def later() -> float:
        await asyncio.sleep(0)
        return swarm_time()

    with ahead.applied():
        started = asyncio.create_task(later())
        with behind.applied():
            assert (swarm_time(), await later()) == (NOW - 60.0, NOW - 60.0)
            assert await started == NOW + 60.0
        assert swarm_time() == NOW + 60.0
    assert swarm_time() == pytest.approx(time.time(), abs=5.0)


def test_by_default_the_time_is_that_of_this_machine() -> None:
    assert SwarmClock().now() == pytest.approx(time.time(), abs=5.0)
    assert MemorySwarm(MemoryHub(lambda: NOW), PeerId("A")).now() == NOW
