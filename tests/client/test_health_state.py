"""The state of a swarm as JSON: what is said of plans and chains, with numpy and without, and what is not believed."""

import json
from dataclasses import replace

import pytest
from health_states import broken, healthy, loading, snapshot_of, swarm_of

from chainserve.swarm.reports import ChainUse
from chainserve_client import live_plan
from chainserve_client.health.state import state_json


@pytest.mark.parametrize("make", [healthy, broken, loading])
def test_every_state_is_json_with_finite_numbers(make: object) -> None:
    assert callable(make)
    json.dumps(state_json(make(3)), allow_nan=False)


def test_chains_are_shown_as_predicted_and_as_their_heads_see_them() -> None:
    [model] = state_json(healthy(3))["models"]
    chain = model["plan"]["chains"][0]
    assert (chain["is_whole"], chain["num_held"], chain["used_share"], chain["observed_s"]) == (True, 2, 0.4, 21.0)
    assert chain["predicted"]["request_s"] > 0
    assert model["plan"]["now"]["requests_per_s"] == pytest.approx(0.03)
    assert model["plan"]["now"]["response_s"]["lower"] > 0
    assert model["queue"] == {"num_waiting": 0, "wait_s": 0.0}
    assert all(server["if_it_leaves"]["after_planning"] for server in model["servers"])


def test_without_numpy_the_state_says_less_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    servers, plan = swarm_of(3, num_blocks=30)
    monkeypatch.setattr(live_plan, "find_spec", lambda _name: None)
    state = state_json(snapshot_of(servers, plan, can_plan=live_plan.can_plan()))
    [model] = state["models"]
    assert not state["can_plan"]
    assert model["plan"]["now"]["response_s"] is None
    assert model["plan"]["response_s"]["lower"] > 0  # which the planner has worked out
    assert not any(server["if_it_leaves"]["after_planning"] for server in model["servers"])
    assert all(server["if_it_leaves"]["missing_blocks"] is not None for server in model["servers"])


def test_nobody_is_believed_about_a_chain_that_begins_at_another() -> None:
    servers, plan = swarm_of(3, num_blocks=30)
    head = plan.chains[0].chain.head
    claims = tuple(
        ChainUse(chain=at, num_held=999, used_share=1.0, num_waiting=999, wait_s=9.0, service_s=None) for at in (0, 40)
    )
    liars = [
        replace(one, report=one.report and replace(one.report, chains=claims)) if one.peer != head else one
        for one in servers
    ]
    [model] = state_json(snapshot_of(liars, plan))["models"]
    assert model["plan"]["chains"][0]["num_held"] == 2
