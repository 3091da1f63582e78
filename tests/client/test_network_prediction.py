"""What the network bench predicts: the token-level simulator on a swarm as it announces itself."""

from dataclasses import replace

import numpy as np
import pytest
from live_swarms import plan_of, server, settle
from network.prediction import Predicted, Seen, Ways, predict

from chainserve.simulator.workloads import Requests, make_requests
from chainserve.types import PeerId, Span
from chainserve_client.policies.rules import DISPATCHES

CLIENT = PeerId("client")
AT_ONCE = make_requests([0.0, 0.01, 0.02, 0.03], input_tokens=512, output_tokens=4)
ONE_BY_ONE = make_requests([0.0, 1000.0], input_tokens=512, output_tokens=4)


def seen(*names: str, has_chains: bool = True) -> Seen:
    servers = [server(name, Span(0, 8), pinned=True, speed=1.0 if name == "a" else 0.8) for name in names]
    plan = plan_of(*servers)
    if not has_chains:
        plan = replace(plan, chains=(), inputs=replace(plan.inputs, rule=replace(plan.inputs.rule, has_chains=False)))
    return Seen(plan=plan, servers=tuple(settle(servers, plan)), hidden_bytes=8192)


def predicted(dispatch: str, where: Seen, requests: Requests = AT_ONCE, *, round_trip_s: float = 0.02) -> Predicted:
    peers = [CLIENT, *(one.peer for one in where.servers)]
    trips = {(first, second): round_trip_s for first in peers for second in peers if first != second}
    return predict(dispatch, requests, where, Ways(round_trip_s=trips, message_s=0.001))


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_every_rule_answers_all(dispatch: str) -> None:
    told = predicted(dispatch, seen("a", "b", has_chains=dispatch not in ("petals", "bprr")))
    assert np.isfinite(told.response_s).all()
    assert np.allclose(told.response_s, told.waiting_s + told.service_s)
    assert (told.first_token_s < told.response_s).all()
    assert 0 < told.bounds.lower_s <= told.bounds.upper_s


def test_prompts_that_come_together_go_to_different_servers_though_one_has_room_for_all() -> None:
    alone = predicted("jffc", seen("a"), ONE_BY_ONE).response_s.max()
    one, two = (predicted("jffc", seen(*names)).response_s.max() for names in ("a", "ab"))
    assert one > 3 * alone  # a server computes prompts one after another
    assert two < 0.75 * one


def test_links_count() -> None:
    near, far = (predicted("jffc", seen("a"), round_trip_s=trip_s).response_s.mean() for trip_s in (0.0, 0.5))
    assert far > near + 0.5
