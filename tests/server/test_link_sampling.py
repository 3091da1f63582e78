"""Which ways a server measures, in which order, and how true what it finds is.

Most of it under a clock that jumps to the next timer: the wires are exact then, and a minute takes milliseconds.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest

from chainserve.errors import SwarmError
from chainserve.protocol.messages import Activations, Beat, Step, WireTensor
from chainserve.runtime.virtual import VirtualLoop
from chainserve.swarm.offers import Reach
from chainserve.transport.beats import Beats
from chainserve.transport.links import Links, Timing
from chainserve.transport.memory import MemoryNetwork, MemoryTransport, Wire
from chainserve.types import PeerId, SessionId
from chainserve_server import sampling
from chainserve_server.sampling import SMOOTHING, LinkSampler, smoothed

ME, NEAR, FAR, SLOW, GONE = (PeerId(name) for name in ("me", "near", "far", "slow", "gone"))
UP_S = 10_000.0
"""What the links' clocks show at first: a peer that lies can make a round trip as long as that."""
WIRES = {NEAR: Wire(0.005, 20e6), FAR: Wire(0.08, 5e6), SLOW: Wire(0.03, 0.5e6)}


def virtually(main: Callable[["Servers"], Coroutine[Any, Any, None]]) -> None:
    """Run a test under the jumping clock."""

    async def run() -> None:
        async with Servers(WIRES) as servers:
            await main(servers)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(run())


class Servers:
    """We, and servers at wires of their own; GONE answers nobody."""

    def __init__(self, wires: Mapping[PeerId, Wire], timing: Timing | None = None) -> None:
        self.network = MemoryNetwork(lambda one, other: wires[other if one == ME else one])
        self.peers: list[PeerId] = list(wires)
        self.dialled: list[PeerId] = []
        self.links: dict[PeerId, Links] = {}
        self._timing = timing
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Servers":
        for peer in [ME, *self.peers]:
            self.links[peer] = Links(
                peer,
                [MemoryTransport(self.network, peer)],
                lookup=self._lookup,
                on_message=lambda *_: None,
                on_lost=lambda *_: None,
                on_refused=lambda *_: None,
                timing=self._timing,
                clock=lambda: asyncio.get_running_loop().time() + UP_S,
            )
            await self.links[peer].listen()
            self._stack.push_async_callback(self.links[peer].close)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _lookup(self, peer: PeerId) -> Sequence[str]:
        if peer not in self.dialled or self.dialled[-1] != peer:
            self.dialled.append(peer)
        return self.links[peer].addresses if peer in self.links else ()

    def sampler(self, me: PeerId = ME, **options: Any) -> LinkSampler:
        return LinkSampler(self.links[me], lambda: self.peers, chance=random.Random(0), **options)

    async def send(self, peer: PeerId, num_bytes: int) -> None:
        step = Step(SessionId(bytes(16)), 0, start=0, num_tokens=num_bytes // 2048, num_outputs=1)
        await self.links[ME].send(
            peer, Activations((step,), WireTensor("float16", (step.num_tokens, 1024), bytes(num_bytes)))
        )


def assert_true(way: Reach, wire: Wire, *, round_trip: float = 0.1, rate: float = 0.25) -> None:
    assert way.round_trip_s == pytest.approx(2 * wire.delay_s, rel=round_trip)
    assert way.bytes_per_s == pytest.approx(wire.bytes_per_s, rel=rate)


def test_each_turn_measures_one_peer_more_until_all_ways_are_known() -> None:
    async def main(servers: Servers) -> None:
        sampler = servers.sampler()
        assert sampler.reach == {}
        for num_known in (1, 2, 3, 3):
            await sampler.sample()
            assert len(sampler.reach) == servers.links[ME].counters.links_made == num_known
        for peer, wire in WIRES.items():
            assert_true(sampler.reach[peer], wire, round_trip=0.01, rate=0.01)

    virtually(main)


async def test_ways_are_true_under_a_real_clock() -> None:
    wires = {NEAR: Wire(0.05, 4e6), FAR: Wire(0.1, 2e6)}
    async with Servers(wires, Timing(keepalive_s=0.02)) as servers:
        sampler = servers.sampler()
        for _ in range(2):
            await sampler.sample()
        for peer, wire in wires.items():
            assert_true(sampler.reach[peer], wire)


def test_what_is_known_does_not_change_under_the_reader() -> None:
    async def main(servers: Servers) -> None:
        sampler = servers.sampler()
        await sampler.sample()
        before = sampler.reach
        await sampler.sample()
        assert len(before) == 1
        with pytest.raises(TypeError):
            before[ME] = Reach(round_trip_s=0)  # type: ignore[index]

    virtually(main)


def test_a_peer_that_cannot_be_reached_costs_one_try_a_turn_and_holds_up_no_other() -> None:
    async def main(servers: Servers) -> None:
        servers.peers = [GONE, NEAR, FAR]
        sampler = servers.sampler()
        for _ in range(3):
            await sampler.sample()
        assert sampler.reach.keys() == {NEAR, FAR}
        assert sorted(servers.dialled) == sorted([GONE, NEAR, FAR])
        await sampler.sample()
        await sampler.sample()
        assert servers.dialled[-1] == GONE
        assert sampler.reach.keys() == {NEAR, FAR}

    virtually(main)


def test_a_peer_that_does_not_answer_in_time_is_left_for_later() -> None:
    async def main(servers: Servers) -> None:
        loop, started = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        servers.peers = [SLOW]  # 524 KB at 0.5 MB/s
        sampler = servers.sampler(deadline_s=1.0)
        await sampler.sample()
        assert loop.time() - started == pytest.approx(1.0)
        assert sampler.reach[SLOW].bytes_per_s is None
        await asyncio.sleep(2)
        await sampler.sample()  # what came later counts, and it is not probed again
        assert_true(sampler.reach[SLOW], WIRES[SLOW])
        assert loop.time() - started == pytest.approx(3.0)

    virtually(main)


def test_a_swarm_that_does_not_answer_is_borne() -> None:
    async def main(servers: Servers) -> None:
        async def fail(peer: PeerId) -> Sequence[str]:
            raise SwarmError("no record could be read")

        servers.links[ME]._lookup = fail
        sampler = servers.sampler()
        await sampler.sample()
        assert sampler.reach == {}

    virtually(main)


def test_a_link_that_stands_is_measured_without_another_one() -> None:
    async def main(servers: Servers) -> None:
        await servers.links[FAR].connect(ME)
        servers.peers = [FAR]
        sampler = servers.sampler()
        await asyncio.sleep(0.5)
        await sampler.sample()
        assert sampler.reach[FAR].bytes_per_s is None  # in use, as far as we know
        assert sampler.reach[FAR].round_trip_s == pytest.approx(0.16, rel=0.01)
        await asyncio.sleep(2)
        await sampler.sample()
        assert_true(sampler.reach[FAR], WIRES[FAR])
        assert servers.links[ME].counters.links_made == 1

    virtually(main)


def test_a_link_that_carries_activations_is_never_probed() -> None:
    async def main(servers: Servers) -> None:
        servers.peers = [FAR]
        sampler = servers.sampler()
        await servers.links[ME].connect(FAR)
        for _ in range(20):
            await servers.send(FAR, 4096)
            await asyncio.sleep(0.5)
            await sampler.sample()
        assert sampler.reach[FAR].bytes_per_s is None
        assert servers.links[ME].counters.bytes_sent < 200_000
        await servers.send(FAR, 2**20)
        await asyncio.sleep(0.5)
        await sampler.sample()
        assert_true(sampler.reach[FAR], WIRES[FAR])

    virtually(main)


def test_peers_that_left_are_dropped() -> None:
    async def main(servers: Servers) -> None:
        sampler = servers.sampler()
        for _ in range(3):
            await sampler.sample()
        servers.peers = [NEAR]
        await sampler.sample()
        assert sampler.reach.keys() == {NEAR}

    virtually(main)


def test_what_was_known_of_a_way_outlives_its_link() -> None:
    async def main(servers: Servers) -> None:
        servers.peers = [NEAR]
        sampler = servers.sampler()
        await sampler.sample()
        before = sampler.reach
        await servers.links.pop(NEAR).close()
        await asyncio.sleep(1)
        assert servers.links[ME].kind(NEAR) is None
        await sampler.sample()
        assert sampler.reach == before

    virtually(main)


def test_no_links_are_made_beyond_what_a_record_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MAX_REACH", 2)

    async def main(servers: Servers) -> None:
        sampler = servers.sampler()
        for _ in range(5):
            await sampler.sample()
        assert len(sampler.reach) == servers.links[ME].counters.links_made == 2
        (other,) = WIRES.keys() - sampler.reach.keys()
        first, second = sampler.reach
        await servers.links[ME].connect(other)
        await servers.links[first].close()
        await asyncio.sleep(2)
        await sampler.sample()
        assert sampler.reach.keys() == {other, second}  # a link that stands before one that does not

    virtually(main)


def test_turns_come_at_intervals_until_cancelled() -> None:
    async def main(servers: Servers) -> None:
        sampler = servers.sampler(interval_s=10.0)
        running = asyncio.create_task(sampler.run())
        for num_known in (1, 2, 3):
            await asyncio.sleep(5)
            assert len(sampler.reach) == num_known
            await asyncio.sleep(6)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        assert running.cancelled()

    virtually(main)


def test_beats_that_lie_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(servers: Servers) -> None:
        beats = servers.links[NEAR]
        await servers.links[ME].connect(NEAR)
        next_beat = Beats.next_beat

        def lie(self: Beats, *, now_us: int) -> Beat:
            beat = next_beat(self, now_us=now_us)
            return Beat(beat.sent_us, 1, 0) if self is beats._standing[ME][0].beats else beat

        monkeypatch.setattr(Beats, "next_beat", lie)
        await asyncio.sleep(20)
        sampler = servers.sampler()
        for _ in range(3):
            await sampler.sample()
        assert NEAR not in sampler.reach

    virtually(main)


def test_ways_are_smoothed_over_turns() -> None:
    before, now = Reach(round_trip_s=0.1, bytes_per_s=1e6), Reach(round_trip_s=0.2, bytes_per_s=2e6)
    after = smoothed(before, now)
    assert after.round_trip_s == pytest.approx(0.1 + 0.1 * SMOOTHING)
    assert after.bytes_per_s == pytest.approx(1e6 + 1e6 * SMOOTHING)
    assert smoothed(before, Reach(round_trip_s=0.1)) == before
    assert smoothed(Reach(round_trip_s=0.1), before) == before
    assert smoothed(Reach(round_trip_s=0.1), Reach(round_trip_s=0.1)).bytes_per_s is None
