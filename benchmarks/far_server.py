"""A server far from all others, and maybe one that only sleeps where it would compute: for distance.py.

    ONE_WAY_MS=25 OBSERVED=FOLDER [SLEEPS=CARD] python benchmarks/far_server.py OPTIONS   (as chainserve-server)

Every frame reaches this process so many milliseconds later. What the engine ran is written into the folder, as
observed_server.py does. A server that sleeps takes as long as its card in `CARDS` would, so that several equal ones fit
on one machine.
"""

import asyncio
import os
import sys
import time
from dataclasses import replace
from typing import Any

import observed_server
import torch

from chainserve.models.profiles import profile_of
from chainserve.models.runner import Runner
from chainserve.planning.profile import StepTimes
from chainserve.transport.direct import DirectLink
from chainserve_server import prepare, server

CARDS = {
    "workstation": StepTimes(
        forward_s=0.0005,
        prefill=((16, 0.0006), (64, 0.0008), (128, 0.0012), (256, 0.0021), (1024, 0.0078)),
        decode=((1, 0.0005), (8, 0.0006), (16, 0.0007)),
        head=((1, 0.001), (16, 0.0015)),
    ),
    "gaming": StepTimes(
        forward_s=0.0005,
        prefill=((16, 0.0013), (64, 0.0032), (128, 0.0061), (256, 0.0119), (1024, 0.0468)),
        decode=((1, 0.001), (8, 0.0012), (16, 0.0014)),
        head=((1, 0.002), (16, 0.003)),
    ),
}
"""Of one block, as of a model with some 7 billion parameters in 32 blocks. A good workstation's card fills up at some
hundred tokens; one for games of some years ago (half the memory rate, a sixth of the computing) at some tens."""

Arrival = tuple[float, bytes | Exception]
RECEIVE_NOW = DirectLink.receive


def move_away(one_way_s: float) -> None:
    """Let every frame of direct links arrive later in this process, in its order, many under way at once; of several
    calls the last one counts, for links made from then on."""
    arrivals: dict[DirectLink, asyncio.Queue[Arrival]] = {}
    readers: dict[DirectLink, asyncio.Task[None]] = {}

    async def read(link: DirectLink) -> None:
        while True:
            try:
                frame: bytes | Exception = await RECEIVE_NOW(link)
            except Exception as error:  # noqa: BLE001 (whatever it is, it is for who receives)
                frame = error
            arrivals[link].put_nowait((time.monotonic() + one_way_s, frame))
            if isinstance(frame, Exception):
                return

    async def receive(link: DirectLink) -> bytes:
        if link not in readers:
            arrivals[link] = asyncio.Queue()
            readers[link] = asyncio.create_task(read(link))
        due_s, frame = await arrivals[link].get()
        if (wait_s := due_s - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)
        if isinstance(frame, Exception):
            raise frame
        return frame

    DirectLink.receive = receive  # type: ignore[method-assign]


def sleep_instead(times: StepTimes) -> None:
    """Let blocks take this time and do nothing."""

    def forward(runner: Runner, hidden: torch.Tensor, steps: Any, span: Any) -> torch.Tensor:
        cache = runner.cache.begin(steps, span)
        num_tokens = [step.num_tokens for step in steps]
        num_decode = num_tokens.count(1)
        time.sleep(times.step_s(num_decode, sum(num_tokens) - num_decode, num_blocks=len(span)))
        cache.commit()
        return hidden

    def slept(*arguments: Any, **options: Any) -> Any:
        return replace(profile_of(*arguments, **options), times=times)

    Runner.forward = forward  # type: ignore[method-assign]
    prepare.profile_of = slept
    server.turns_on = lambda _device: None  # nothing is computed


if __name__ == "__main__":
    if one_way_ms := float(os.environ.get("ONE_WAY_MS", 0)):
        move_away(one_way_ms / 1000)
    if card := os.environ.get("SLEEPS"):
        sleep_instead(CARDS[card])
    sys.exit(observed_server.main())
