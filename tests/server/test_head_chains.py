"""What a plan says to the heads of its chains."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from chainserve.planning.values import PlannedChain, ServerProfile
from chainserve.protocol.places import Places
from chainserve.swarm.inputs import DEFAULT_DEMAND
from chainserve.types import Chain, Hop, PeerId, SessionId, Span
from chainserve_server.admission import chain_uses, head_chains

A, B = PeerId("a"), PeerId("b")


def hops(*peers: PeerId) -> Chain:
    return Chain(tuple(Hop(peer, Span(index, index + 1)) for index, peer in enumerate(peers)))


def plan(*chains: PlannedChain, rate: float = 0.02, turn_s: float = 0.0) -> Any:
    profiles = [ServerProfile(peer=p, memory_bytes=1, communication_s=0, block_s=1, turn_s=turn_s) for p in (A, B)]
    inputs = SimpleNamespace(
        arrival_rate=rate, input_tokens=100.0, output_tokens=20.0, slot_tokens=2048, profiles=lambda: profiles
    )
    return cast(Any, SimpleNamespace(chains=chains, inputs=inputs))


FAST, SLOW = PlannedChain(hops(A, B), 2, 10.0), PlannedChain(hops(B, A), 3, 40.0)


def test_each_head_knows_its_own_chains_with_room_in_tokens() -> None:
    [chain] = head_chains(plan(FAST, SLOW), A)
    assert (chain.hops, chain.capacity_tokens, chain.service_s) == (hops(A, B).hops, 4096, 10.0)
    [chain] = head_chains(plan(FAST, SLOW), B)
    assert (chain.hops, chain.capacity_tokens) == (hops(B, A).hops, 6144)
    assert head_chains(plan(FAST, SLOW), PeerId("c")) == []
    assert head_chains(plan(), A) == []


def test_a_head_tells_how_its_chains_are_used_by_their_place_in_the_plan() -> None:
    made, client = plan(FAST, SLOW), PeerId("client")
    places = Places(B)
    places.follow(1, head_chains(made, B), now_s=0.0)
    [use] = chain_uses(made, places)
    assert (use.chain, use.num_held, use.num_waiting, use.wait_s, use.service_s) == (1, 0, 0, 0.0, None)
    session = SessionId(b"0123456789abcdef")
    assert places.open(client, session, hops(B, A).hops, 3072, now_s=0.0) is None
    [use] = chain_uses(made, places)
    assert (use.num_held, use.used_share) == (1, 0.5)
    places.end(client, session, now_s=10.0)
    [use] = chain_uses(made, places)
    assert (use.num_held, use.service_s) == (0, pytest.approx(34.0))  # a fifth of the way from 40 s to 10 s
    assert chain_uses(plan(FAST), places) == ()  # of a plan that is not followed here yet


def test_a_slow_chain_is_patient_and_the_fastest_is_not() -> None:
    [fast], [slow] = head_chains(plan(FAST, SLOW), A), head_chains(plan(FAST, SLOW), B)
    assert fast.patience <= 0
    assert (fast.patience_s, slow.patience_s) == (0.0, 30.0)
    assert slow.patience == pytest.approx(5.4)  # (S - lambda) (1 / mu - n / S) with S = 0.2, n = 2


def test_a_slow_chain_is_less_patient_where_the_fast_one_is_slow_when_full() -> None:
    [slow] = head_chains(plan(FAST, SLOW, turn_s=5.0), B)
    # Two sessions of 10 s on A and B, each beside the other for 5 s; the newcomer beside both.
    assert slow.patience == pytest.approx((2 / 15 - 0.02) * (40 + 10 - 15))


def test_nobody_is_patient_while_the_load_is_only_assumed() -> None:
    assumed = plan(FAST, SLOW, rate=DEFAULT_DEMAND.arrival_rate)
    assumed.inputs.input_tokens = DEFAULT_DEMAND.input_tokens
    assumed.inputs.output_tokens = DEFAULT_DEMAND.output_tokens
    [slow] = head_chains(assumed, B)
    assert slow.patience == 0
