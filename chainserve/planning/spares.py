"""Which servers a swarm would hardly miss: each is left out of the plan once."""

import math
from collections.abc import Sequence

from chainserve.errors import NoPlanError
from chainserve.planning.plan import SEARCH_EFFORT, Plan, plan
from chainserve.planning.values import LeftOut, PairSeconds
from chainserve.types import PeerId


def leave_out(
    planned: Plan,
    peer: PeerId,
    *,
    pair_s: PairSeconds | None = None,
    search_effort: int = SEARCH_EFFORT,
    concurrencies: Sequence[int] | None = None,
) -> LeftOut:
    """Plan again without one server, for the same model and workload, and compare.

    What is compared is the lower bound on the mean response time (Thm. 4), by which the plan was chosen; if the plan
    cannot bear the arrival rate, the time per request with all chains full. The slowdown is infinite if only the
    whole swarm can bear the arrival rate, or run all blocks. `pair_s`, `search_effort` and `concurrencies` are those
    of `plan`.
    """
    if peer not in planned.placement.spans:
        return LeftOut(0.0)
    others = [profile for profile in planned.profiles if profile.peer != peer]
    if not others:
        return LeftOut(math.inf, tuple(range(planned.model.num_blocks)))
    try:
        left = plan(
            others,
            planned.model,
            planned.workload,
            pair_s=pair_s,
            search_effort=search_effort,
            concurrencies=concurrencies,
        )
    except NoPlanError as error:
        return LeftOut(math.inf, error.missing)
    if planned.is_stable:
        return LeftOut(left.bounds.lower_s / planned.bounds.lower_s - 1)
    return LeftOut(planned.total_rate / left.total_rate - 1)
