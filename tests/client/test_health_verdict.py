"""How a model stands, from who holds what; and what would be missing without a server."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_swarms import NUM_BLOCKS, peer, server, view_of

from chainserve.swarm.records import Announcement, ServerState
from chainserve.swarm.rehearsal import MODEL_DIGEST
from chainserve.types import Span
from chainserve_client.health.snapshot import Snapshot
from chainserve_client.health.verdict import Health, coverage, judge, missing_without, ranges


def moment(*servers: Announcement, silent: str = "", is_current: bool = True) -> Snapshot:
    quiet = frozenset(map(peer, silent))
    return Snapshot(swarm="home", view=view_of(servers), silent=quiet, is_current=is_current)


def test_a_model_whose_blocks_are_all_on_two_servers_is_healthy() -> None:
    verdict = judge(moment(server("a", Span(0, 8)), server("b", Span(0, 5)), server("c", Span(4, 8))), MODEL_DIGEST)
    assert (verdict.health, verdict.num_to_break) == (Health.HEALTHY, 2)
    assert verdict.weakest == (Span(0, 4), Span(5, 8))
    assert verdict.missing == ()


def test_a_model_with_a_block_on_one_server_is_at_risk_and_that_server_is_named() -> None:
    verdict = judge(moment(server("a", Span(0, 8)), server("b", Span(0, 5))), MODEL_DIGEST)
    assert (verdict.health, verdict.num_to_break) == (Health.AT_RISK, 1)
    assert (verdict.weakest, verdict.weakest_servers) == ((Span(5, 8),), (peer("a"),))


def test_blocks_of_a_server_that_does_not_answer_are_missing() -> None:
    verdict = judge(moment(server("a", Span(0, 5)), server("b", Span(4, 8)), silent="b"), MODEL_DIGEST)
    assert (verdict.health, verdict.missing, verdict.num_to_break) == (Health.BROKEN, (Span(5, 8),), 0)


@pytest.mark.parametrize(
    ("state", "health"), [(ServerState.LOADING, Health.LOADING), (ServerState.DRAINING, Health.BROKEN)]
)
def test_missing_blocks_that_servers_load_are_on_their_way(state: ServerState, health: Health) -> None:
    verdict = judge(moment(server("a", Span(0, 5)), server("b", Span(4, 8), state=state)), MODEL_DIGEST)
    assert (verdict.health, verdict.missing) == (health, (Span(5, 8),))


def test_of_an_old_view_nothing_is_known() -> None:
    assert judge(moment(server("a", Span(0, 8)), is_current=False), MODEL_DIGEST).health is Health.UNKNOWN


spans = st.tuples(st.integers(0, NUM_BLOCKS - 1), st.integers(1, NUM_BLOCKS)).map(
    lambda pair: Span(pair[0], min(NUM_BLOCKS, pair[0] + pair[1]))
)


@given(st.lists(spans, min_size=1, max_size=6))
def test_so_many_servers_have_to_go_until_a_block_is_missing(held: list[Span]) -> None:
    holding = [(peer(str(index)), span) for index, span in enumerate(held)]
    counts = coverage(holding, NUM_BLOCKS)
    for who, _ in holding:
        gone = missing_without(who, holding, NUM_BLOCKS)
        lost = {block for span in gone for block in span}
        assert lost == {block for block in range(NUM_BLOCKS) if counts[block] == 1 and block in dict(holding)[who]}


@given(st.sets(st.integers(0, 30)))
def test_ranges_are_the_fewest_spans_of_the_same_blocks(blocks: set[int]) -> None:
    found = ranges(sorted(blocks))
    assert {block for span in found for block in span} == blocks
    assert all(before.end < after.start for before, after in pairwise(found))
