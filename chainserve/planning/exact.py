"""The mean response time under JFFC without bounds, for systems small enough: an oracle for both bounds and simulator.

A state is the number of sessions on each chain. Below C = sum c_k sessions nobody waits, so these numbers are all there
is to know. From C on every chain is full and only the queue changes: up with the arrival rate, down with the total
rate nu. Its length is therefore geometric, and what lies above the full state hangs on the chain by one edge, on which
the flows up and down cancel: the states up to the full one keep their proportions when the rest is cut off. So the
finite chain is solved, and then the full state's share is spread over the tail.
"""

import math
from collections.abc import Sequence

import numpy as np

from chainserve.planning.dispatch import fastest_first
from chainserve.planning.values import require

MAX_STATES = 3000
"""Product of all c_k + 1. The matrix is dense: 72 MB and about a second at the limit."""


def exact_response_time(rates: Sequence[float], capacities: Sequence[int], *, arrival_rate: float) -> float:
    """Seconds from arrival to the end of a session, on average, under JFFC (Sun et al. 2026, Alg. 3).

    Poisson arrivals and exponential work, as in Thm. 4; infinite from the total rate nu on. ValueError for rates,
    capacities or an arrival rate that cannot be, and for more than MAX_STATES states.
    """
    order = fastest_first(rates, capacities)
    require("arrival_rate", arrival_rate)
    places = np.array([capacities[chain] for chain in order])
    num_states = math.prod(int(capacity) + 1 for capacity in places)
    if num_states > MAX_STATES:
        raise ValueError(f"{num_states} states are too many to solve: at most {MAX_STATES}")
    speeds = np.array([rates[chain] for chain in order], dtype=np.float64)
    total = math.fsum(places * speeds)
    if arrival_rate >= total:
        return math.inf

    sessions = np.indices(tuple(places + 1)).reshape(len(order), num_states)  # (chains, states): how many are where
    stride = np.append(np.cumprod(places[:0:-1] + 1)[::-1], 1)  # from a state to that with one session more
    flow = np.zeros((num_states, num_states))  # (to, from), as a share of the total rate
    below_full = np.arange(num_states - 1)
    fastest_free = np.argmax(sessions[:, :-1] < places[:, None], axis=0)
    flow[below_full + stride[fastest_free], below_full] = arrival_rate / total
    for chain, speed in enumerate(speeds):
        (occupied,) = np.nonzero(sessions[chain])
        flow[occupied - stride[chain], occupied] = sessions[chain, occupied] * speed / total
    balance = flow - np.diag(flow.sum(axis=0))
    balance[-1] = 1  # one balance follows from the others; instead the shares add up to one
    shares = np.linalg.solve(balance, np.append(np.zeros(num_states - 1), 1.0))

    numbers = sessions.sum(axis=0).astype(np.float64)
    shares[-1] *= total / (total - arrival_rate)
    numbers[-1] += arrival_rate / (total - arrival_rate)
    return float(shares @ numbers / shares.sum()) / arrival_rate
