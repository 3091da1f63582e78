"""A server that sleeps where it would compute, for model.py: so fast or slow as its number says.

    SLOWNESS=1,2,2 ONE_WAY_MS=10 OBSERVED=FOLDER python benchmarks/model_server.py OPTIONS   (as chainserve-server)

The n-th server of a LocalSwarm (by the name of its key) takes SLOWNESS[n] times as long as far_server's workstation.
Norm and head sleep too, and every token comes out as token 0: what is compared is time, and nothing else on this
machine may make it.
"""

import os
import re
import sys
import time
from typing import Any

import far_server
import observed_server
import torch

from chainserve.models.ends import Ends
from chainserve.planning.profile import StepTimes
from chainserve_server.slowdown import longer


def sleep_in_the_head(times: StepTimes) -> None:
    """Let norm and head take their time, and give the first token."""

    def logits(ends: Ends, hidden: torch.Tensor) -> Any:
        seconds = times.step_s(1, 0, num_blocks=1, num_outputs=len(hidden)) - times.step_s(1, 0, num_blocks=1)
        time.sleep(seconds)
        return torch.zeros(len(hidden), ends.models[0].config.vocab_size)

    Ends.logits = logits  # type: ignore[method-assign]


if __name__ == "__main__":
    number = int(re.search(r"server-(\d+)\.key", " ".join(sys.argv))[1])  # type: ignore[index]
    factor = float(os.environ["SLOWNESS"].split(",")[number])
    times = longer(far_server.CARDS["workstation"], factor)
    if one_way_ms := float(os.environ.get("ONE_WAY_MS", 0)):
        far_server.move_away(one_way_ms / 1000)
    far_server.sleep_instead(times)
    sleep_in_the_head(times)
    sys.exit(observed_server.main())
