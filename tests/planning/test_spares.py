"""What is said of a swarm that has to do without one of its servers."""

import math

import pytest

from chainserve.planning.plan import Plan, plan
from chainserve.planning.spares import leave_out
from chainserve.planning.values import SPARE_SLOWDOWN, ModelSpec, ServerProfile, Workload
from chainserve.types import PeerId

MODEL = ModelSpec(num_blocks=4, block_bytes=1, slot_bytes=0.1)


def server(name: str, *, memory: float = 8, block_s: float = 1.0) -> ServerProfile:
    return ServerProfile(peer=PeerId(name), memory_bytes=memory, communication_s=0, block_s=block_s)


def planned(*servers: ServerProfile, rate: float = 0.001) -> Plan:
    return plan(servers, MODEL, Workload(arrival_rate=rate))


def test_a_slow_server_beside_a_fast_one_is_a_spare_and_not_the_other_way_round() -> None:
    whole = planned(server("fast"), server("slow", block_s=3))
    left_out = leave_out(whole, PeerId("slow"))
    assert left_out.is_spare
    assert left_out.slowdown == pytest.approx(0, abs=1e-6)
    assert leave_out(whole, PeerId("fast")).slowdown == pytest.approx(2, rel=0.01)
    assert not leave_out(whole, PeerId("fast")).is_spare


def test_a_server_without_blocks_is_a_spare() -> None:
    whole = planned(server("big"), server("tiny", memory=0.5))
    assert leave_out(whole, PeerId("tiny")).slowdown == 0


def test_a_server_whose_blocks_nobody_else_has_room_for_is_needed() -> None:
    left_out = leave_out(planned(server("a", memory=2.4), server("b", memory=2.4)), PeerId("b"))
    assert left_out.slowdown == math.inf
    assert left_out.missing == (2, 3)
    assert not left_out.is_spare


def test_the_only_server_is_needed_for_every_block() -> None:
    assert leave_out(planned(server("a")), PeerId("a")).missing == (0, 1, 2, 3)


def test_a_server_without_which_the_load_is_too_high_is_needed() -> None:
    whole = planned(server("a", memory=5), server("b", memory=5), rate=0.6)
    assert whole.is_stable
    left_out = leave_out(whole, PeerId("a"))
    assert left_out.slowdown == math.inf
    assert left_out.missing == ()


def test_where_the_load_is_too_high_already_the_rate_of_all_chains_is_compared() -> None:
    whole = planned(server("a", memory=5), server("b", memory=5), rate=50)
    assert not whole.is_stable
    alone = planned(server("b", memory=5), rate=50)
    assert leave_out(whole, PeerId("a")).slowdown == pytest.approx(whole.total_rate / alone.total_rate - 1)
    assert whole.total_rate > alone.total_rate


def test_the_limit_of_a_spare_is_small() -> None:
    assert 0 < SPARE_SLOWDOWN < 0.05
