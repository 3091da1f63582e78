"""The choice of c: the least figure of all tried, the chains that belong to it, and what a coarse search loses."""

import math
from itertools import accumulate

import numpy as np
import pytest
from examples import BLOOM, PAPER_WORKLOAD, WORKED_MODEL, WORKED_PROFILES, models, paper_servers, servers
from hypothesis import given, settings
from hypothesis import strategies as st

from chainserve.planning import tuning
from chainserve.planning.allocation import allocate, c_max
from chainserve.planning.bounds import response_time_bounds
from chainserve.planning.placement import greedy_placement
from chainserve.planning.tuning import Candidate, ConcurrencyChoice, Method, choose_concurrency
from chainserve.planning.values import ModelSpec, ServerProfile, Workload, total_rate
from chainserve.types import PeerId

PAPER_SERVERS = paper_servers(20, share_high=0.2, rng=np.random.default_rng(0))


def figure(candidate: Candidate, method: Method) -> float:
    return {"lower": candidate.lower_s, "upper": candidate.upper_s, "surrogate": candidate.surrogate}[method]


@settings(max_examples=40, deadline=None)
@given(servers(), models(), st.floats(0.01, 2), st.booleans())
def test_each_candidate_is_what_gbp_cr_and_gca_give_for_its_concurrency(
    profiles: tuple[ServerProfile, ...], model: ModelSpec, arrival_rate: float, place_all: bool
) -> None:
    workload = Workload(arrival_rate=arrival_rate)
    choice = choose_concurrency(profiles, model, workload, place_all=place_all)
    assert [candidate.concurrency for candidate in choice.candidates] == list(
        range(1, max(1, c_max(profiles, model)) + 1)
    )
    for candidate in choice.candidates:
        greedy = greedy_placement(
            profiles,
            model,
            concurrency=candidate.concurrency,
            required_rate=arrival_rate / (0.7 * candidate.concurrency),
            place_all=place_all,
        )
        chains = allocate(profiles, model, greedy.placement)
        assert candidate.rate == total_rate(chains)
        if chains:
            rates, capacities = [chain.rate for chain in chains], [chain.capacity for chain in chains]
            bounds = response_time_bounds(rates, capacities, arrival_rate=arrival_rate)
            assert (candidate.lower_s, candidate.upper_s) == (bounds.lower_s, bounds.upper_s)
        else:
            assert (candidate.lower_s, candidate.upper_s) == (math.inf, math.inf)
        if choice.chosen == candidate:
            assert (choice.placement, choice.chains) == (greedy, chains)


@settings(max_examples=40, deadline=None)
@given(servers(), models(), st.floats(0.01, 2), st.sampled_from(["surrogate", "lower", "upper"]))
def test_the_chosen_one_has_the_least_figure_or_else_the_greatest_rate(
    profiles: tuple[ServerProfile, ...], model: ModelSpec, arrival_rate: float, method: Method
) -> None:
    choice = choose_concurrency(profiles, model, Workload(arrival_rate=arrival_rate), method=method)
    if choice.chosen is None:
        assert all(candidate.rate == 0 for candidate in choice.candidates)
        assert (choice.placement, choice.chains, choice.is_stable) == (None, (), False)
        return
    assert choice.is_stable == (arrival_rate < choice.chosen.rate)
    least = min(figure(candidate, method) for candidate in choice.candidates)
    assert figure(choice.chosen, method) == least
    equals = [candidate for candidate in choice.candidates if figure(candidate, method) == least]
    if math.isinf(least):
        greatest = max(candidate.rate for candidate in choice.candidates)
        equals = [candidate for candidate in choice.candidates if candidate.rate == greatest]
    assert choice.chosen == equals[0]


def test_the_surrogate_counts_the_places_of_the_first_chains_that_bear_the_target_load() -> None:
    candidates = choose_concurrency(PAPER_SERVERS, BLOOM, PAPER_WORKLOAD).candidates
    for candidate in candidates[:12]:
        c = candidate.concurrency
        chains = greedy_placement(PAPER_SERVERS, BLOOM, concurrency=c).chains
        enough = [c * rate >= 0.2 / 0.7 for rate in accumulate(chain.rate for chain in chains)]
        assert candidate.surrogate == (c * (enough.index(True) + 1) if True in enough else math.inf)
    assert any(math.isfinite(candidate.surrogate) for candidate in candidates[:12])


def test_each_method_chooses_from_the_same_candidates() -> None:
    choices = {
        method: choose_concurrency(PAPER_SERVERS, BLOOM, PAPER_WORKLOAD, method=method)
        for method in ("surrogate", "lower", "upper")
    }
    assert len({choice.candidates for choice in choices.values()}) == 1
    lower, upper = choices["lower"].chosen, choices["upper"].chosen
    assert lower is not None
    assert upper is not None
    assert lower.lower_s <= upper.lower_s
    assert upper.upper_s <= lower.upper_s


def test_the_order_of_the_servers_does_not_matter() -> None:
    shuffled = [PAPER_SERVERS[index] for index in np.random.default_rng(1).permutation(len(PAPER_SERVERS))]
    assert choose_concurrency(shuffled, BLOOM, PAPER_WORKLOAD) == choose_concurrency(
        PAPER_SERVERS, BLOOM, PAPER_WORKLOAD
    )


def test_more_requests_reserve_more_cache() -> None:
    chosen = [choose_concurrency(PAPER_SERVERS, BLOOM, Workload(arrival_rate=rate)).chosen for rate in (0.05, 0.2, 0.4)]
    few, some, many = (candidate.concurrency for candidate in chosen if candidate is not None)
    assert few < many
    assert few <= some <= many


def test_too_many_requests_get_the_greatest_rate_and_are_told() -> None:
    choice = choose_concurrency(WORKED_PROFILES, WORKED_MODEL, Workload(arrival_rate=1000))
    assert choice.chosen is not None
    assert not choice.is_stable
    assert choice.chosen.rate == max(candidate.rate for candidate in choice.candidates) == total_rate(choice.chains)


def test_servers_too_small_for_one_block_make_no_chain() -> None:
    tiny = ServerProfile(peer=PeerId("a"), memory_bytes=0.5, communication_s=1, block_s=1)
    choice = choose_concurrency([tiny], WORKED_MODEL, Workload(arrival_rate=1))
    assert choice == ConcurrencyChoice(
        "lower", None, (Candidate(1, 0, math.inf, math.inf, math.inf),), placement=None, chains=()
    )


def test_slow_links_count() -> None:
    pair_s = {(first.peer, second.peer): 100.0 for first in WORKED_PROFILES for second in WORKED_PROFILES}
    workload = Workload(arrival_rate=0.1)
    near, far = (
        choose_concurrency(WORKED_PROFILES, WORKED_MODEL, workload, pair_s=pairs).chosen for pairs in (None, pair_s)
    )
    assert near is not None
    assert far is not None
    assert near.lower_s < far.lower_s


@pytest.mark.parametrize("arrival_rate", [0.05, 0.2, 0.4, 50.0])
def test_a_coarse_search_tries_few_and_loses_little(arrival_rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = Workload(arrival_rate=arrival_rate)
    monkeypatch.setattr(tuning, "CHEAP", 0)
    coarse = choose_concurrency(PAPER_SERVERS, BLOOM, workload)
    every = choose_concurrency(PAPER_SERVERS, BLOOM, workload, exhaustive=True)
    assert len(every.candidates) == c_max(PAPER_SERVERS, BLOOM) == 351
    assert len(coarse.candidates) < 70
    assert set(coarse.candidates) <= set(every.candidates)
    assert coarse.chosen is not None
    assert every.chosen is not None
    if every.is_stable:
        assert coarse.chosen.lower_s <= 1.01 * every.chosen.lower_s
    else:
        assert coarse.chosen.rate >= 0.99 * every.chosen.rate


@settings(max_examples=40, deadline=None)
@given(servers(), models(), st.floats(0.01, 2), st.lists(st.integers(-2, 60), min_size=1, max_size=4))
def test_only_what_is_asked_for_is_tried_and_the_best_of_it_is_taken(
    profiles: tuple[ServerProfile, ...], model: ModelSpec, arrival_rate: float, only: list[int]
) -> None:
    workload = Workload(arrival_rate=arrival_rate)
    every = {candidate.concurrency: candidate for candidate in choose_concurrency(profiles, model, workload).candidates}
    choice = choose_concurrency(profiles, model, workload, only=only)
    asked = sorted({max(1, min(concurrency, max(every))) for concurrency in only})
    assert choice.candidates == tuple(every[concurrency] for concurrency in asked)
    if any(candidate.rate for candidate in choice.candidates):
        assert choice.chosen is not None
        assert choice.chosen.lower_s == min(candidate.lower_s for candidate in choice.candidates)
        assert choice == choose_concurrency(profiles, model, workload, only=[*only, choice.chosen.concurrency])
    else:
        assert (choice.chosen, choice.placement, choice.chains) == (None, None, ())
    assert choose_concurrency(profiles, model, workload, only=list(every)) == choose_concurrency(
        profiles, model, workload
    )


def test_a_choice_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no concurrency to try"):
        choose_concurrency(WORKED_PROFILES, WORKED_MODEL, Workload(arrival_rate=1), only=())


def test_two_profiles_of_one_server_are_refused() -> None:
    with pytest.raises(ValueError, match="two profiles of one server: j1"):
        choose_concurrency([*WORKED_PROFILES, WORKED_PROFILES[0]], WORKED_MODEL, Workload(arrival_rate=1))
