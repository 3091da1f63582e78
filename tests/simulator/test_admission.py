"""Places asked of heads by messages: random schedules with faults, and against the one central queue."""

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from chainserve.planning.dispatch import JoinFastestFree
from chainserve.planning.values import PlannedChain, total_rate
from chainserve.protocol.places import PlaceLimits
from chainserve.simulator.admission import (
    Admission,
    AdmissionScheduler,
    ClientLost,
    Fault,
    Faults,
    PlanChanged,
    ServerLost,
    run_admission,
)
from chainserve.simulator.chains import ChainScheduler
from chainserve.simulator.engine import InvariantError, Outcome, run
from chainserve.simulator.times import by_size
from chainserve.simulator.workloads import Requests, make_requests, paper_requests
from chainserve.types import Chain, Hop, PeerId, Span


def chains_of(
    times_s: Sequence[float], capacities: Sequence[int], *, num_heads: int | None = None
) -> list[PlannedChain]:
    """Chains of two servers, their heads among so many, else each has its own."""
    return [
        PlannedChain(
            Chain(
                (
                    Hop(PeerId(f"head {k % (num_heads or len(times_s))}"), Span(0, 1)),
                    Hop(PeerId(f"tail {k}"), Span(1, 2)),
                )
            ),
            capacity,
            service_s,
        )
        for k, (service_s, capacity) in enumerate(zip(times_s, capacities, strict=True))
    ]


def no_delay(source: PeerId, target: PeerId) -> float:
    return 0.0


def random_delay(rng: random.Random, mean_s: float) -> Callable[[PeerId, PeerId], float]:
    """Far and near peers, each message by its own luck."""
    far: dict[frozenset[PeerId], float] = {}

    def delay_s(source: PeerId, target: PeerId) -> float:
        pair = frozenset((source, target))
        if pair not in far:
            far[pair] = rng.uniform(0, 2 * mean_s)
        return far[pair] * rng.uniform(0.5, 1.5)

    return delay_s


def central(requests: Requests, chains: Sequence[PlannedChain]) -> Outcome:
    policy = JoinFastestFree([chain.rate for chain in chains], [chain.capacity for chain in chains])
    return run(requests, ChainScheduler(policy, chains, by_size(requests, chains)))


@pytest.mark.parametrize(
    ("times_s", "capacities", "num_heads"),
    [([3.0], [2], None), ([2.0, 3.0, 5.0], [2, 1, 3], None), ([2.0, 2.0, 4.0, 4.0, 9.0], [1, 2, 2, 1, 1], 2)],
)
def test_without_delay_tickets_at_all_heads_are_the_one_central_queue(
    times_s: list[float], capacities: list[int], num_heads: int | None
) -> None:
    chains = chains_of(times_s, capacities, num_heads=num_heads)
    requests = paper_requests(1500, rate=0.9 * total_rate(chains), rng=np.random.default_rng(0))
    scheduler = AdmissionScheduler(
        chains,
        by_size(requests, chains),
        delay_s=no_delay,
        rng=random.Random(0),
        admission=Admission(max_tickets=len(chains)),
        is_checked=False,
    )
    outcome = run_admission(requests, scheduler)
    expected = central(requests, chains)
    assert expected.waiting_s.mean() > 1
    assert outcome.start_s.tolist() == expected.start_s.tolist()
    assert outcome.chain.tolist() == expected.chain.tolist()


def test_a_place_takes_three_delays_from_one_session_to_the_next() -> None:
    chains = chains_of([10.0], [1])
    requests = make_requests([0.0, 1.0])
    scheduler = AdmissionScheduler(chains, lambda _request, _chain: 10.0, delay_s=lambda *_: 0.5, rng=random.Random(0))
    outcome = run_admission(requests, scheduler)
    assert outcome.start_s.tolist() == [1.5, 13.0]  # asked, offered, opened; closed at 11.5, offered, opened
    assert scheduler.num_messages == 9  # Admit, Queued once, Admitted, Open and Close


def random_run(seed: int) -> tuple[Outcome, bool]:
    """A small swarm, a few clients and their requests; and whether any of them may have been refused."""
    rng = random.Random(seed)
    num_chains, num_requests = rng.randint(1, 4), rng.randint(2, 10)
    times_s = [rng.uniform(2, 10) for _ in range(num_chains)]
    capacities = [rng.randint(1, 3) for _ in range(num_chains)]
    chains = chains_of(times_s, capacities, num_heads=rng.randint(1, num_chains))
    clients = [PeerId(f"client {n}") for n in range(rng.randint(1, 5))]
    spread_s = rng.choice([0.0, 3.0, 20.0])
    requests = make_requests(
        sorted(rng.uniform(0, spread_s) for _ in range(num_requests)),
        input_tokens=[rng.choice([10, 30, 100]) for _ in range(num_requests)],
        output_tokens=[rng.randint(1, 28) for _ in range(num_requests)],
        size=[rng.expovariate(1) + 0.01 for _ in range(num_requests)],
    )
    admission = Admission(
        max_asked=rng.randint(1, num_chains),
        max_tickets=rng.randint(1, num_chains),
        limits=PlaceLimits(lease_s=rng.uniform(3, 6), max_places_of_client=rng.choice([1, 2, 64])),
        arrival_rate=rng.choice([0.1, math.inf]),
        slot_tokens=rng.choice([None, 64]),
        ask_again_s=rng.choice([2.0, 10.0]),
        tick_s=rng.uniform(1, 3),
    )
    faults = random_faults(rng, clients, chains, num_requests) if rng.random() < 0.8 else Faults()
    mean_delay_s = rng.choice([0.01, 0.3, 2.0])
    scheduler = AdmissionScheduler(
        chains,
        by_size(requests, chains),
        delay_s=random_delay(rng, mean_delay_s),
        rng=rng,
        admission=admission,
        faults=faults,
        clients=clients,
    )
    may_be_late = mean_delay_s > 1  # to open, within the lease
    may_be_too_long = admission.slot_tokens is not None and min(capacities) == 1
    return run_admission(requests, scheduler), bool(faults.at or faults.silent_after or may_be_late or may_be_too_long)


def random_faults(
    rng: random.Random, clients: Sequence[PeerId], chains: Sequence[PlannedChain], num_requests: int
) -> Faults:
    at: list[tuple[float, Fault]] = []
    for _ in range(rng.randint(0, 4)):
        fault: Fault
        match rng.randrange(4):
            case 0:
                fault = ClientLost(rng.choice(clients))
            case 1:
                fault = ServerLost(rng.choice(rng.choice(chains).chain.hops).peer)
            case _:
                fault = PlanChanged(tuple(rng.choice([0, chain.capacity, rng.randint(1, 3)]) for chain in chains))
        at.append((rng.uniform(0, 20), fault))
    silent = {request: rng.randint(0, 3) for request in range(num_requests) if rng.random() < 0.1}
    return Faults(duplicated=rng.choice([0.0, 0.3]), silent_after=silent, at=at)


@pytest.mark.parametrize(
    "first_seed", [0, *(pytest.param(first_seed, marks=pytest.mark.slow) for first_seed in range(250, 3000, 250))]
)
def test_whatever_goes_wrong_no_place_is_given_twice_or_leaked_and_no_request_forgotten(first_seed: int) -> None:
    num_served = num_refused = 0
    for seed in range(first_seed, first_seed + 250):
        try:
            outcome, may_refuse = random_run(seed)
        except (InvariantError, AssertionError) as error:
            raise AssertionError(f"seed {seed}") from error
        assert may_refuse or not outcome.is_refused.any(), f"seed {seed}: refused without a fault"
        num_served += int((~outcome.is_refused).sum())
        num_refused += int(outcome.is_refused.sum())
    assert num_served > num_refused > 0
