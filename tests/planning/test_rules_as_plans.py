"""The baselines' placements as plans that a swarm can follow."""

import pytest
from examples import WORKED_MODEL, WORKED_PROFILES

from chainserve.errors import NoPlanError
from chainserve.planning.baselines.plans import plan_by
from chainserve.planning.plan import Plan
from chainserve.planning.rules import BPRR, OURS, PETALS, RANDOM, WHOLE_MODEL, PlacementRule
from chainserve.planning.values import ModelSpec, Placement, ServerProfile, Workload
from chainserve.types import PeerId, Span

A, B, C = PeerId("A"), PeerId("B"), PeerId("C")
MODEL = ModelSpec(num_blocks=4, block_bytes=1, slot_bytes=0.1, embedding_bytes=1, head_bytes=1)
SLOT_TOKENS = 100


def profile(peer: PeerId, memory_bytes: float) -> ServerProfile:
    return ServerProfile(peer=peer, memory_bytes=memory_bytes, communication_s=0.1, block_s=1.0)


def planned(rule: PlacementRule, *profiles: ServerProfile, before: Placement | None = None, rate: float = 0.1) -> Plan:
    return plan_by(rule, profiles, MODEL, Workload(arrival_rate=rate), slot_tokens=SLOT_TOKENS, before=before)


@pytest.mark.parametrize("name", [PETALS, BPRR, RANDOM])
def test_every_rule_covers_the_model_with_chains_over_it(name: str) -> None:
    plan = plan_by(
        PlacementRule(name=name, cache_tokens=SLOT_TOKENS),
        WORKED_PROFILES,
        WORKED_MODEL,
        Workload(arrival_rate=0.01),
        slot_tokens=SLOT_TOKENS,
    )
    assert plan.placement.missing(WORKED_MODEL.num_blocks) == ()
    assert plan.chains
    assert all(plan.slots[peer] >= 1 for peer in plan.placement)


def test_servers_too_small_for_the_whole_model_are_left_idle() -> None:
    plan = planned(PlacementRule(name=WHOLE_MODEL), profile(A, 7), profile(B, 3))
    assert plan.placement.spans == {A: Span(0, 4)}
    assert [(chain.chain.head, chain.capacity) for chain in plan.chains] == [(A, 2)]


def test_where_nobody_can_hold_the_whole_model_there_is_no_plan() -> None:
    with pytest.raises(NoPlanError) as caught:
        planned(PlacementRule(name=WHOLE_MODEL), profile(A, 3), profile(B, 5))
    assert caught.value.missing == (0, 1, 2, 3)


def test_a_server_at_an_end_gives_up_blocks_for_it_and_others_do_not() -> None:
    rule = PlacementRule(name=PETALS, cache_tokens=SLOT_TOKENS)
    plan = planned(rule, *(profile(PeerId(name), 3.4) for name in "ABCDEF"))
    assert plan.placement.missing(4) == ()
    assert {len(span) for span in plan.placement.spans.values() if span.start and span.end < 4} <= {3}
    assert all(MODEL.weight_bytes(span) + 0.1 * len(span) <= 3.4 for span in plan.placement.spans.values())


def test_petals_servers_that_are_placed_well_stay() -> None:
    rule = PlacementRule(name=PETALS, cache_tokens=SLOT_TOKENS, seed=5)
    where = Placement({A: Span(2, 4), B: Span(0, 2)})
    plan = planned(rule, profile(A, 3.3), profile(B, 3.3), before=where)
    assert plan.placement == where


def test_petals_reserves_what_it_is_told_per_block() -> None:
    few, many = (
        planned(PlacementRule(name=PETALS, cache_tokens=num * SLOT_TOKENS), profile(A, 7), profile(B, 7))
        for num in (1, 20)
    )
    assert max(map(len, few.placement.spans.values())) > max(map(len, many.placement.spans.values()))


def test_bprr_reserves_for_fewer_sessions_where_blocks_would_be_left_out() -> None:
    plan = planned(PlacementRule(name=BPRR), profile(A, 3.5), profile(B, 3.5), rate=100.0)
    assert plan.placement.missing(4) == ()
    assert plan.chosen.concurrency >= 1


def test_equal_seeds_draw_equal_placements() -> None:
    profiles = [profile(PeerId(name), 3.4) for name in "ABCDEFGH"]
    one, same, other = (planned(PlacementRule(name=RANDOM, seed=seed), *profiles) for seed in (1, 1, 2))
    assert one.placement == same.placement != other.placement


@pytest.mark.parametrize("name", [PETALS, BPRR, RANDOM])
def test_where_some_block_finds_no_server_there_is_no_plan(name: str) -> None:
    with pytest.raises(NoPlanError) as caught:
        planned(PlacementRule(name=name, cache_tokens=SLOT_TOKENS), profile(A, 3.4))
    assert caught.value.missing


def test_servers_without_room_for_a_block_beside_an_end_leave_the_end_out() -> None:
    rule = PlacementRule(name=PETALS, cache_tokens=SLOT_TOKENS)
    with pytest.raises(NoPlanError) as caught:
        planned(rule, *(profile(PeerId(name), 1.5) for name in "ABCDEF"))
    assert {0, 3} <= set(caught.value.missing)


def test_blocks_without_cache_for_one_session_are_no_plan() -> None:
    with pytest.raises(NoPlanError):
        planned(PlacementRule(name=PETALS, cache_tokens=1), profile(A, 6.01))


def test_one_rule_is_ours() -> None:
    assert OURS.is_ours
    assert not PlacementRule(name=RANDOM).is_ours


def test_rules_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="no placement is called 'best'"):
        PlacementRule(name="best")
    with pytest.raises(ValueError, match="not negative: -1"):
        PlacementRule(seed=-1)
    with pytest.raises(ValueError, match="0 tokens per block"):
        PlacementRule(cache_tokens=0)
    with pytest.raises(ValueError, match="no baseline"):
        planned(PlacementRule(), profile(A, 7))
