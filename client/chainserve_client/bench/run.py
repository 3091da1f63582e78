"""Send requests at random times, each when its time has come, however long those before it take."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise

from chainserve.errors import ChainserveError
from chainserve_client.bench.targets import Target
from chainserve_client.bench.timing import Timed


def arrival_times(num_requests: int, *, rate: float, chance: random.Random) -> list[float]:
    """Seconds at which requests come, the first at once: a Poisson process of `rate` per second."""
    times = [0.0]
    while len(times) < num_requests:
        times.append(times[-1] + chance.expovariate(rate))
    return times


async def run(
    target: Target,
    times: Sequence[float],
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> list[Timed]:
    """Ask `target` at these times; what each request took, in their order. Errors count as results."""
    began_s = clock()

    async def ask(index: int, at_s: float) -> Timed:
        await sleep(max(0.0, began_s + at_s - clock()))
        arrivals: list[float] = []
        num_tokens, waited_s, error = 0, None, None
        try:
            async for arrival in target(index):
                num_tokens += arrival.num_tokens
                waited_s = arrival.waited_s if arrival.waited_s is not None else waited_s
                if arrival.num_tokens:
                    arrivals.append(clock())
        except ChainserveError as raised:
            error = str(raised)
        return Timed(
            sent_s=at_s,
            first_s=arrivals[0] - began_s - at_s if arrivals else None,
            total_s=clock() - began_s - at_s,
            between_s=tuple(after - before for before, after in pairwise(arrivals)),
            waited_s=waited_s,
            num_tokens=num_tokens,
            error=error,
        )

    async with asyncio.TaskGroup() as asking:
        tasks = [asking.create_task(ask(index, at_s)) for index, at_s in enumerate(times)]
    return [task.result() for task in tasks]
