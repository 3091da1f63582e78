"""What servers announce becomes what a plan is worked out from: memory with the model's ends, and times of the head."""

from dataclasses import replace
from typing import Any

import pytest

from chainserve.planning.profile import BlockProfile, StepTimes
from chainserve.planning.values import Placement
from chainserve.swarm.inputs import MAX_SESSIONS, SLOT_TOKENS, ModelFacts, inputs_of
from chainserve.swarm.offers import Offer, StepCheck
from chainserve.swarm.plans import PlanInputs
from chainserve.swarm.records import Announcement, ServerState
from chainserve.types import Chain, Hop, PeerId, Span

A, B = PeerId("a"), PeerId("b")
NUM_BLOCKS = 4
MODEL = ModelFacts(num_blocks=NUM_BLOCKS, longest_tokens=4096, wire_bytes=2048)
TIMES = StepTimes(
    forward_s=0.001, prefill=((8, 0.01), (512, 0.1)), decode=((1, 0.002), (16, 0.01)), head=((1, 0.05), (2, 0.09))
)
HALVES = BlockProfile(
    times=TIMES,
    block_bytes=1_000_000,
    embedding_bytes=5_000_000,
    head_bytes=5_002_000,
    is_tied=True,
    token_bytes=100,
    activation_bytes=700_000,
)
FLOATS = replace(HALVES, block_bytes=2_000_000, embedding_bytes=10_000_000, head_bytes=10_004_000, token_bytes=200)


def server(
    peer: PeerId, profile: BlockProfile, *, memory_bytes: int = 20_000_000, span: Span | None = None, **offered: Any
) -> Announcement:
    return Announcement(
        peer=peer,
        state=ServerState.ONLINE if span else ServerState.JOINING,
        model="tiny",
        model_digest="00ff",
        num_blocks=NUM_BLOCKS,
        span=span,
        dtype="float16",
        cache_tokens=3000,
        free_tokens=3000,
        addresses=(),
        version="0",
        started_at=0.0,
        pinned=span is not None,
        offer=Offer(memory_bytes=memory_bytes, profile=profile, **offered),
    )


def inputs(*servers: Announcement) -> PlanInputs:
    return inputs_of({server.peer: server for server in servers}, MODEL, None)


def test_the_model_is_planned_with_its_ends() -> None:
    model = inputs(server(A, HALVES)).model
    assert (model.embedding_bytes, model.head_bytes, model.is_tied) == (5_000_000, 5_002_000, True)
    assert model.weight_bytes(Span(0, NUM_BLOCKS)) == 4_000_000 + 5_002_000
    assert model.weight_bytes(Span(0, 2)) == 2_000_000 + 5_000_000


@pytest.mark.parametrize("span", [Span(0, 2), Span(1, 3), Span(2, 4), Span(0, 4)])
def test_a_pinned_server_has_memory_for_its_blocks_with_their_ends_and_its_cache(span: Span) -> None:
    planned = inputs(server(A, HALVES, span=span))
    [profile] = planned.profiles()
    left = profile.memory_bytes - planned.model.weight_bytes(span)
    assert left == len(span) * 3000 * HALVES.token_bytes


def test_a_server_of_another_dtype_counts_in_the_planners_bytes() -> None:
    half, float_ = inputs(server(A, HALVES), server(B, FLOATS, memory_bytes=40_000_000)).servers
    assert half.memory_bytes == 20_000_000 - 700_000
    assert float_.memory_bytes == (40_000_000 - 700_000) / 2
    half, float_ = inputs(server(B, HALVES), server(A, FLOATS)).servers[::-1]
    assert half.memory_bytes == 2 * (20_000_000 - 700_000)
    assert float_.memory_bytes == 20_000_000 - 700_000


def test_ends_that_grow_by_more_than_blocks_do_not_overfill_a_server() -> None:
    heavy = replace(HALVES, head_bytes=3 * HALVES.head_bytes)  # a family may keep its head in float32
    planned = inputs(server(A, HALVES), server(B, heavy)).servers[1]
    assert planned.memory_bytes == pytest.approx((20_000_000 - 700_000) / 3)


def test_nobody_counts_for_more_than_the_whole_model_with_its_ends_and_many_sessions() -> None:
    planned = inputs(server(A, HALVES, memory_bytes=10**13))
    slots = NUM_BLOCKS * MAX_SESSIONS * SLOT_TOKENS * HALVES.token_bytes
    assert planned.servers[0].memory_bytes == planned.model.weight_bytes(Span(0, NUM_BLOCKS)) + slots


def test_the_head_costs_what_live_traffic_says() -> None:
    slow = StepCheck(predicted_s=0.1, observed_s=0.2)
    first, second = inputs(server(A, HALVES), server(B, HALVES, decode=slow)).servers
    assert (first.times.head_s, second.times.head_s) == (0.05, 0.1)


def test_a_plan_predicts_with_the_head_of_the_tail() -> None:
    def token_s(profile: BlockProfile, *hops: Hop) -> float:
        return inputs(server(A, HALVES), server(B, profile)).predict(Chain(hops), input_tokens=10).token_s

    slower = replace(HALVES, times=replace(TIMES, head=((1, 0.55), (2, 0.6))))
    last, first = Hop(B, Span(2, 4)), Hop(B, Span(0, 2))
    assert token_s(slower, Hop(A, Span(0, 2)), last) - token_s(HALVES, Hop(A, Span(0, 2)), last) == pytest.approx(0.5)
    assert token_s(slower, first, Hop(A, Span(2, 4))) == token_s(HALVES, first, Hop(A, Span(2, 4)))


def test_no_plan_overfills_whoever_holds_an_end() -> None:
    """Two servers whose memory is for half the blocks each, with one end but not with both."""
    untied = replace(HALVES, is_tied=False)
    cache = SLOT_TOKENS * HALVES.token_bytes
    room = 700_000 + 2 * (1_000_000 + cache) + 5_002_000
    found = inputs(server(A, untied, memory_bytes=room), server(B, untied, memory_bytes=room)).plan()
    assert found.placement in (
        Placement({A: Span(0, 2), B: Span(2, 4)}),
        Placement({B: Span(0, 2), A: Span(2, 4)}),
    )
