"""What a server offers is bounded, so that whatever passes can be planned with."""

from dataclasses import replace

import pytest
from drawn import demands, offers
from hypothesis import given, settings
from hypothesis import strategies as st

from chainserve.planning.placement import blocks_that_fit, slots_beside
from chainserve.planning.profile import BlockProfile, StepTimes
from chainserve.planning.values import Placement, ResponseTimeBounds, by_peer
from chainserve.swarm.inputs import SLOT_TOKENS, ModelFacts, corrected, inputs_of, total_demand
from chainserve.swarm.offers import MAX_BYTES, MAX_POINTS, MAX_REACH, MAX_SIZE, Demand, Offer, Reach, StepCheck
from chainserve.swarm.plans import PlanInputs, SwarmPlan
from chainserve.swarm.records import Announcement, ServerState
from chainserve.types import PeerId, Span

PEERS = [PeerId(name) for name in "abcde"]
some_offers = offers(st.sampled_from(PEERS))


def test_ratios_and_rates_are_of_what_was_seen() -> None:
    assert StepCheck(predicted_s=0.1, observed_s=0.15).ratio == pytest.approx(1.5)
    assert Demand(num_requests=30, window_s=60.0, input_tokens=1, output_tokens=1).arrival_rate == 0.5


@settings(deadline=None)
@given(some_offers)
def test_an_offer_says_the_same_after_its_way_through_fields(offer: Offer) -> None:
    assert Offer.from_fields(offer.to_fields()) == offer


@pytest.mark.parametrize("fields", [None, 3, "text", [], {}, {"memory_bytes": 1}, [[1, 2], [3, 4]], [[[], 1]]])
def test_what_is_no_offer_is_refused(fields: object) -> None:
    with pytest.raises(ValueError, match=r"not an offer|dictionary update"):
        Offer.from_fields(fields)


@settings(deadline=None, max_examples=10)
@given(some_offers)
def test_limits_are_the_most_that_is_taken(offer: Offer) -> None:
    assert replace(offer, memory_bytes=MAX_BYTES).memory_bytes == 2**46
    with pytest.raises(ValueError, match="memory of"):
        replace(offer, memory_bytes=MAX_BYTES + 1)
    ways = {PeerId(f"p{number}"): Reach(round_trip_s=0.1) for number in range(MAX_REACH + 1)}
    assert replace(offer, reach=dict(list(ways.items())[:MAX_REACH]))
    with pytest.raises(ValueError, match="the way to 33 peers"):
        replace(offer, reach=ways)
    times = offer.profile.times
    points = tuple((size, 0.1) for size in range(1, MAX_POINTS + 2))
    assert replace(offer, profile=replace(offer.profile, times=replace(times, decode=points[:MAX_POINTS])))
    with pytest.raises(ValueError, match="a profile of 65 sizes"):
        replace(offer, profile=replace(offer.profile, times=replace(times, decode=points)))


@settings(deadline=None, max_examples=200)
@given(some_offers)
def test_whatever_is_offered_has_times_of_requests(offer: Offer) -> None:
    assert 0 < corrected(offer).request_s(1, 1) <= corrected(offer).request_s(MAX_SIZE, MAX_SIZE) < 1e20


@given(st.lists(st.none() | demands, max_size=6))
def test_whatever_was_seen_adds_up_to_a_demand(seen: list[Demand | None]) -> None:
    demand = total_demand(seen)
    assert 0 < demand.num_requests <= MAX_SIZE
    assert 0 < demand.arrival_rate < 1e13


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.sampled_from(PEERS), some_offers, min_size=1), st.data())
def test_whatever_members_offer_makes_inputs_of_a_plan_that_travel(
    offered: dict[PeerId, Offer], data: st.DataObject
) -> None:
    model = ModelFacts(num_blocks=4, longest_tokens=4096, wire_bytes=2048)
    members = {
        peer: Announcement(
            peer=peer,
            state=ServerState.JOINING,
            model="tiny",
            model_digest="00ff",
            num_blocks=4,
            span=span,
            dtype="float32",
            cache_tokens=10,
            free_tokens=10,
            addresses=(),
            version="0",
            started_at=0.0,
            pinned=span is not None and data.draw(st.booleans()),
            offer=offer,
        )
        for peer, offer in offered.items()
        for span in [data.draw(st.none() | st.just(Span(1, 3)))]
    }
    inputs = inputs_of(members, model, None)
    assert list(by_peer(inputs.profiles())) == sorted(offered)
    assert SwarmPlan.from_body(_plan(inputs).body, planner=PEERS[0]) == _plan(inputs)


def offering(peer: PeerId, *, memory_bytes: int, block_bytes: int, token_bytes: int, pinned: bool) -> Announcement:
    profile = BlockProfile(
        times=StepTimes(
            forward_s=0.001,
            prefill=((8, 0.02), (32, 0.05)),
            decode=((1, 0.004), (2, 0.007)),
            head=((1, 0.001), (2, 0.001)),
        ),
        block_bytes=block_bytes,
        embedding_bytes=0,
        head_bytes=0,
        is_tied=False,
        token_bytes=token_bytes,
        activation_bytes=1000,
    )
    return Announcement(
        peer=peer,
        state=ServerState.JOINING,
        model="tiny",
        model_digest="00ff",
        num_blocks=40,
        span=Span(0, 4) if pinned else None,
        dtype="float32",
        cache_tokens=SLOT_TOKENS * 8,
        free_tokens=0,
        addresses=(),
        version="0",
        started_at=0.0,
        pinned=pinned,
        offer=Offer(memory_bytes=memory_bytes, profile=profile),
    )


@pytest.mark.parametrize("reference", range(4))
def test_servers_that_hold_weights_and_cache_in_other_bits_are_planned_with_what_fits_them(reference: int) -> None:
    """Whoever is the smallest, in whose bytes the plan counts: bfloat16, nf4 in bfloat16, float32, nf4 in float32."""
    kinds = [(100_000, 2), (28_000, 2), (200_000, 4), (28_000, 4)]
    kinds = kinds[reference:] + kinds[:reference]
    model = ModelFacts(num_blocks=40, longest_tokens=4096, wire_bytes=2048)
    for pinned in (False, True):
        members = {
            peer: offering(peer, memory_bytes=1_501_000, block_bytes=block, token_bytes=token, pinned=pinned)
            for peer, (block, token) in zip(map(PeerId, "abcd"), kinds, strict=True)
        }
        inputs = inputs_of(members, model, None)
        for profile, (block, token) in zip(inputs.profiles(), kinds, strict=True):
            slot_bytes = token * SLOT_TOKENS
            if pinned:
                assert slots_beside(profile, inputs.model, Span(0, 4)) == 4 * 8
                continue
            for concurrency in (1, 2, 8, 50):
                fits = min(1_500_000 // (block + slot_bytes * concurrency), 40)
                assert blocks_that_fit(profile, inputs.model, concurrency=concurrency) == fits
            assert slots_beside(profile, inputs.model, Span(0, 4)) == (1_500_000 - 4 * block) // slot_bytes


def _plan(inputs: PlanInputs) -> SwarmPlan:
    return SwarmPlan(
        epoch=1,
        planner=PEERS[0],
        model_digest="00ff",
        inputs=inputs,
        goal=Placement({}),
        placement=Placement({}),
        chains=(),
        concurrency=1,
        bounds=ResponseTimeBounds(1.0, 2.0),
    )
