"""A simulated server that is as fast as it was measured to be."""

import pytest
from token_swarms import A, planned

from chainserve.planning.dispatch import JoinFastestFree
from chainserve.planning.profile import StepTimes
from chainserve.simulator.tokens.membership import while_live
from chainserve.simulator.tokens.run import simulate
from chainserve.simulator.tokens.values import Link, TokenServer
from chainserve.simulator.workloads import make_requests


def test_a_simulated_session_takes_what_its_steps_are_predicted_to_take() -> None:
    times = StepTimes(
        forward_s=0.1, prefill=((8, 0.2), (32, 0.3)), decode=((1, 0.01), (2, 0.05)), head=((1, 1.0), (2, 2.0))
    )
    outcome = simulate(
        make_requests([0.0], input_tokens=20, output_tokens=4),
        [TokenServer(peer=A, speed=times, cache_tokens=1000)],
        link_of=lambda _sender, _receiver: Link(delay_s=0),
        replan=while_live([planned((A, 0, 3))]),
        make_policy=JoinFastestFree,
    )
    steps_s = [times.step_s(0, 20, num_blocks=3), *[times.step_s(1, 0, num_blocks=3)] * 3]
    assert outcome.response_s[0] == pytest.approx(sum(steps_s))
