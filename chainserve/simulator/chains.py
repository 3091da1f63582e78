"""Planned chains with their capacities, and a dispatch policy that says which one a request joins."""

from collections import deque
from collections.abc import Sequence

from chainserve.planning.dispatch import Policy
from chainserve.planning.values import PlannedChain
from chainserve.simulator.engine import Engine, InvariantError
from chainserve.simulator.times import ServiceTime


class ChainScheduler:
    """Requests join chains as the policy says and wait in one queue, or in one per chain.

    InvariantError when a chain would hold more sessions than its capacity (Eq. 3 holds for any mix up to those, so no
    server's cache is over-committed either), or a request would overtake one of its queue.
    """

    def __init__(self, policy: Policy, chains: Sequence[PlannedChain], service_s: ServiceTime) -> None:
        if not chains:
            raise ValueError("there are no chains")
        self._is_central = policy.is_central
        self._choose = policy.choose
        self._service_s = service_s
        self._capacities = [chain.capacity for chain in chains]
        self._num_running = [0] * len(chains)
        # Z_l: with one queue for all, nobody waits at a chain.
        self._num_joined = self._num_running if policy.is_central else [0] * len(chains)
        self._queues: list[deque[int]] = [deque() for _ in (chains[:1] if policy.is_central else chains)]
        self._last_started = [-1] * len(self._queues)

    def bind(self, engine: Engine) -> None:
        self._start_at_engine = engine.start
        self._chain_of = [0] * len(engine.requests)

    def arrive(self, request: int) -> None:
        if self._is_central:
            self._queues[0].append(request)
            self._dispatch()
            return
        chain = self._choose(self._num_joined)
        if chain is None:
            raise InvariantError(request, "is to wait in a central queue, by a policy that has none")
        self._num_joined[chain] += 1
        self._queues[chain].append(request)
        if self._num_running[chain] < self._capacities[chain]:
            self._start(chain, queue=chain)

    def finish(self, request: int) -> None:
        chain = self._chain_of[request]
        self._num_running[chain] -= 1
        if self._is_central:
            self._dispatch()
            return
        self._num_joined[chain] -= 1
        if self._queues[chain]:
            self._start(chain, queue=chain)

    def wake(self, key: int) -> None:
        raise InvariantError(key, "is woken, though it never asked for it")

    def _dispatch(self) -> None:
        """Start the head of the one queue for as long as the policy has a chain for it."""
        queue = self._queues[0]
        while queue:
            chain = self._choose(self._num_joined, len(queue))
            if chain is None:
                return
            self._start(chain, queue=0)

    def _start(self, chain: int, *, queue: int) -> None:
        """Start the head of a queue on a chain."""
        request = self._queues[queue].popleft()
        if request < self._last_started[queue]:
            raise InvariantError(request, f"is overtaken by request {self._last_started[queue]}")
        if self._num_running[chain] >= self._capacities[chain]:
            raise InvariantError(request, f"joins chain {chain}, whose {self._capacities[chain]} places are taken")
        self._last_started[queue] = request
        self._num_running[chain] += 1
        self._chain_of[request] = chain
        self._start_at_engine(request, self._service_s(request, chain), chain=chain)
