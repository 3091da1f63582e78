"""How far places asked of heads by messages are from one central queue: waiting by chains, tickets and delay.

    python benchmarks/admission.py [--requests N] [--output FILE]

Chains of capacity 2, each with its own head, whose service times grow evenly from 6 s to 14 s; Poisson arrivals,
exponential sizes, one client per request. Every message takes the same time. All cases of one number of chains and one
load have the same arrivals and sizes. Compared with JFFC in one central queue without messages, and with a centre that
is as far from clients and heads as they are from each other: a request asks it (one delay), is told its chain, opens
there, and tells the centre when it is done, so that a place is empty for three delays between two sessions, as it is
with heads. Waiting is from arrival to the start at the head.
"""

import argparse
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from circumstances import PROJECT, circumstances, keep
from sections.admission import section

from chainserve.planning.dispatch import JoinFastestFree, JoinPatiently
from chainserve.planning.values import PlannedChain, total_rate
from chainserve.simulator.admission import Admission, AdmissionScheduler, run_admission
from chainserve.simulator.chains import ChainScheduler
from chainserve.simulator.engine import Outcome, run
from chainserve.simulator.report import Summary, num_warm_up
from chainserve.simulator.times import by_size
from chainserve.simulator.workloads import Requests, paper_requests
from chainserve.types import Chain, Hop, PeerId, Span

NUM_CHAINS = (2, 4, 8, 16, 32)
NUM_TICKETS = (1, 2, 4, 16)
DELAYS_S = (0.0, 0.02, 0.1, 0.3)
LOADS = (0.7, 0.9)
CAPACITY = 2
FASTEST_S, SLOWEST_S = 6.0, 14.0
PATIENT_LOADS, PATIENT_SLOWEST_S = (0.5, 0.7), 40.0  # where it makes a difference
WARM_UP = 0.2
SEED = 0


class Case:
    """The same requests for the same chains, centrally and not."""

    def __init__(self, num_chains: int, *, load: float, num_requests: int, slowest_s: float = SLOWEST_S) -> None:
        self.chains = [
            PlannedChain(Chain((Hop(PeerId(f"head {place}"), Span(0, 1)),)), CAPACITY, float(service_s))
            for place, service_s in enumerate(np.linspace(FASTEST_S, slowest_s, num_chains))
        ]
        self.rate = load * total_rate(self.chains)
        self.requests: Requests = paper_requests(num_requests, rate=self.rate, rng=np.random.default_rng(SEED))
        self._service_s = by_size(self.requests, self.chains)

    def central(self, *, delay_s: float = 0.0, is_patient: bool = False) -> dict[str, float]:
        """One queue, with a centre that is so far from everybody."""
        rates, capacities = [chain.rate for chain in self.chains], [chain.capacity for chain in self.chains]
        make = partial(JoinPatiently, arrival_rate=self.rate) if is_patient else JoinFastestFree

        def held_s(request: int, chain: int) -> float:  # the client is told, opens, and closes when it is served
            return self._service_s(request, chain) + 3 * delay_s

        outcome = run(self.requests, ChainScheduler(make(rates, capacities), self.chains, held_s))
        # The centre hears of each a delay after it arrives, and each starts two delays after it is given a place.
        return figures(outcome, way_s=3 * delay_s)

    def with_heads(
        self, *, delay_s: float, admission: Admission | None = None, is_patient: bool = False
    ) -> dict[str, float]:
        """The live system's own objects at clients and heads."""
        scheduler = AdmissionScheduler(
            self.chains,
            self._service_s,
            delay_s=lambda _source, _target: delay_s,
            rng=random.Random(SEED),
            admission=admission or Admission(**({"arrival_rate": self.rate} if is_patient else {})),
            is_checked=False,
        )
        return figures(run_admission(self.requests, scheduler)) | {
            "messages_per_request": scheduler.num_messages / len(self.requests)
        }


def figures(outcome: Outcome, *, way_s: float = 0.0) -> dict[str, float]:
    """Mean and P99 of waiting and response; `way_s` of what counts as service there is waiting here."""
    assert not outcome.is_refused.any()
    first = num_warm_up(len(outcome.requests), warm_up=WARM_UP)
    waiting = Summary.of(outcome.waiting_s[first:] + way_s)
    response = Summary.of(outcome.response_s[first:])
    return {
        "waiting_mean_s": waiting.mean_s,
        "waiting_p99_s": waiting.p99_s,
        "response_mean_s": response.mean_s,
        "response_p99_s": response.p99_s,
    }


def by_chains(case: Case) -> dict[str, Any]:
    """With the tickets that a request has by default, at every delay."""
    return {
        str(delay_s): {"heads": case.with_heads(delay_s=delay_s), "central": case.central(delay_s=delay_s)}
        for delay_s in DELAYS_S
    }


def by_tickets(case: Case) -> dict[str, Any]:
    """All heads are asked, some tickets are kept."""
    return {
        str(num_tickets): {
            str(delay_s): case.with_heads(
                delay_s=delay_s, admission=Admission(max_asked=len(case.chains), max_tickets=num_tickets)
            )
            for delay_s in DELAYS_S
        }
        for num_tickets in NUM_TICKETS
    }


def by_patience(case: Case) -> dict[str, Any]:
    """With slow chains that wait for a long queue, and without."""
    return {
        name: {
            "central": case.central(is_patient=is_patient),
            **{str(delay_s): case.with_heads(delay_s=delay_s, is_patient=is_patient) for delay_s in DELAYS_S},
        }
        for name, is_patient in (("JFFC", False), ("patient", True))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--output", type=Path, default=PROJECT / "benchmarks" / "results" / "admission.json")
    options = parser.parse_args()
    chains: dict[str, Any] = {}
    tickets: dict[str, Any] = {}
    patience: dict[str, Any] = {}
    for load in LOADS:
        cases = {num: Case(num, load=load, num_requests=options.requests) for num in NUM_CHAINS}
        chains[str(load)] = {str(num): by_chains(case) for num, case in cases.items()}
        tickets[str(load)] = by_tickets(cases[16])
    for load in PATIENT_LOADS:
        case = Case(4, load=load, num_requests=options.requests, slowest_s=PATIENT_SLOWEST_S)
        patience[str(load)] = by_patience(case)
    about = circumstances("admission", "numpy", seed=SEED, requests=options.requests)
    print(section(keep(options.output, about, {"chains": chains, "tickets": tickets, "patience": patience})))


if __name__ == "__main__":
    main()
