"""What mean response time to expect of given chains (Sun et al. 2026, Thm. 4).

With n sessions on the chains their total rate is at most that of the n fastest places and at least that of the n
slowest. Each makes the number of sessions a birth-death process, whose mean has a closed form.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from chainserve.planning.dispatch import fastest_first
from chainserve.planning.values import ResponseTimeBounds, require


def response_time_bounds(
    rates: Sequence[float], capacities: Sequence[int], *, arrival_rate: float
) -> ResponseTimeBounds:
    """Bound the mean response time under JFFC, for Poisson arrivals and exponential work (Thm. 4).

    `rates` are sessions per second of one place on each chain (mu_k), `capacities` its places (c_k). Infinite from
    the total rate nu on. ValueError for rates, capacities or an arrival rate that cannot be.
    """
    order = fastest_first(rates, capacities)
    require("arrival_rate", arrival_rate)
    places = np.repeat([rates[chain] for chain in order], [capacities[chain] for chain in order])
    total = math.fsum(rates[chain] * capacities[chain] for chain in order)
    if arrival_rate >= total:
        return ResponseTimeBounds(math.inf, math.inf)
    return ResponseTimeBounds(
        _mean_occupancy(np.cumsum(places), total, arrival_rate=arrival_rate) / arrival_rate,
        _mean_occupancy(np.cumsum(places[::-1]), total, arrival_rate=arrival_rate) / arrival_rate,
    )


def _mean_occupancy(death_rates: NDArray[np.float64], total: float, *, arrival_rate: float) -> float:
    """Mean number of sessions, given the total rate with 1..C of them; from C on it is `total`.

    The weight of n sessions is a product of n factors, up to e**10000 for large C: logarithms, relative to the
    largest, neither overflow nor lose what counts.
    """
    num_places = len(death_rates)
    logarithms = np.concatenate(([0.0], np.cumsum(math.log(arrival_rate) - np.log(death_rates))))
    weights = np.exp(logarithms - logarithms.max())
    numbers = np.arange(num_places + 1, dtype=np.float64)
    # From C on the weights fall geometrically: together w_C / (1 - rho), and C + rho / (1 - rho) sessions on average.
    weights[-1] *= total / (total - arrival_rate)
    numbers[-1] += arrival_rate / (total - arrival_rate)
    return float(weights @ numbers / weights.sum())
