"""How the plan that a swarm follows is shown beside its servers."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from live_swarms import peer, plan_of, server, settle, view_of

from chainserve.planning.sharing import rate_when_full, turns_of
from chainserve.planning.values import Placement
from chainserve.swarm.offers import Demand, Reach, StepCheck
from chainserve.swarm.plans import SwarmPlan
from chainserve.swarm.records import Announcement, ServerState
from chainserve.swarm.rehearsal import MODEL_DIGEST
from chainserve.types import Span
from chainserve_client.live_plan import LivePlan
from chainserve_client.status import Status, Unreadable, look_into, to_json, to_text
from chainserve_client.tables import WIDTH

HALVES = (server("a", memory_gb=5), server("b", memory_gb=6, speed=2))


def status(servers: Sequence[Announcement], plan: SwarmPlan | None, **more: Any) -> Status:
    """Of servers that follow this plan."""
    if plan is None:
        return Status(swarm="home", view=view_of(servers), ways={})
    live: LivePlan | Unreadable = more.pop("live", None) or look_into(plan)
    return Status(swarm="home", view=view_of(servers, plan, **more), ways={}, plans={MODEL_DIGEST: live})


def text_of(servers: Sequence[Announcement], plan: SwarmPlan | None, **more: Any) -> str:
    text = to_text(status(servers, plan, **more))
    assert max(map(len, text.splitlines())) <= WIDTH
    text = text.replace("\N{NO-BREAK SPACE}", " ")
    assert text.replace("\n", "").isprintable()
    return text


def plan_json(servers: Sequence[Announcement], plan: SwarmPlan, **more: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(to_json(status(servers, plan, **more)))
    (model,) = content["models"]
    found: dict[str, Any] = model["plan"]
    return found


def test_a_swarm_that_has_not_planned_yet_says_so() -> None:
    assert text_of(HALVES, None).endswith("\n\nthere is no plan yet")
    assert json.loads(to_json(status(HALVES, None)))["models"][0]["plan"] is None


def test_a_plan_is_shown_with_who_follows_it_its_chains_and_what_to_expect() -> None:
    plan = plan_of(*HALVES)
    first, second = settle(HALVES, plan)
    lines = text_of([first, replace(second, epoch=0)], plan).splitlines()
    start = lines.index("plan 1 by aaaaaa, followed by 1 of 2 servers")
    demand = "for 0.1 requests per second of 512 tokens in and 128 out, sessions of up to 2,048 tokens"
    assert lines[start + 1 : start + 3] == [demand, ""]
    assert lines[start + 3].split("  ")[:3] == ["chain", "sessions", "first token"]
    way = " > ".join(f"{hop.peer[-6:]} {hop.span}" for hop in plan.chains[0].chain.hops)
    assert lines[start + 4].endswith(way)
    assert any(line.startswith("aaaaaa  no room for blocks") for line in lines[start:])
    num_sessions = sum(chain.capacity for chain in plan.chains)
    assert lines[-2].startswith(f"together {num_sessions} sessions at once, at most ")
    assert lines[-1].startswith("at 0.1 per second (load ")
    assert not any(line.startswith("under way") for line in lines)


def test_a_plan_outlives_its_planner() -> None:
    plan = plan_of(*HALVES)
    text = text_of(settle(HALVES, plan)[1:], plan)
    assert "plan 1 by aaaaaa (gone), followed by 1 of 1 server\n" in text
    assert "gone since then: aaaaaa\n" in text


def test_servers_that_are_not_where_the_plan_wants_them_are_under_way() -> None:
    plan = plan_of(*HALVES)
    first, second = plan.placement.spans.values()
    loading = [
        replace(HALVES[0], span=first, state=ServerState.LOADING, cache_tokens=0, free_tokens=0),
        replace(HALVES[1], span=Span(0, 1), state=ServerState.DRAINING, cache_tokens=9, free_tokens=9),
    ]
    text = text_of(loading, plan)
    assert f"under way: bbbbbb 0:1 > {second}, draining; aaaaaa {first}, loading\n" in text
    waiting = text_of(HALVES, plan)
    assert f"under way: aaaaaa none > {first}, joining; bbbbbb none > {second}, joining\n" in waiting


def test_a_step_towards_the_goal_says_what_comes_then() -> None:
    plan = plan_of(*HALVES)
    step = Placement({**plan.goal.spans, peer("a"): Span(0, 1)})
    under_way = replace(plan, placement=step)
    text = text_of(settle(HALVES, under_way), under_way)
    assert f"then: aaaaaa 0:1 > {plan.goal[peer('a')]}\n" in text
    assert "\nonce all have moved a request takes " in text
    found = plan_json(settle(HALVES, under_way), under_way)
    assert found["is_settled"] is False
    (moving,) = (entry for entry in found["servers"] if entry["peer"] == peer("a"))
    assert moving["blocks"] == [0, 1]
    assert moving["goal_blocks"] != [0, 1]


def test_of_many_moves_a_few_are_named() -> None:
    servers = [server(f"{number:02}") for number in range(10)]
    text = text_of(servers, plan_of(*servers))
    assert text.count("joining;") == 8
    assert "; and 2 others\n" in text


def test_a_shortage_is_said_in_words() -> None:
    servers = [server("a", memory_gb=5)]
    plan = plan_of(*servers)
    lines = text_of(servers, plan).splitlines()
    assert plan.shortage is not None
    first, gigabytes = plan.shortage.missing[0], plan.shortage.missing_bytes / 1e9
    needed = f"servers with {gigabytes:.3g} GB more are needed; the swarm waits for them"
    assert lines[-1] == f"no room for blocks {first}:8 of 8: {needed}"
    assert lines[4].split()[:3] == ["aaaaaa", "joining", "none"]
    found = plan_json(servers, plan)
    assert found["shortage"] == {
        "missing_blocks": list(plan.shortage.missing),
        "missing_bytes": plan.shortage.missing_bytes,
    }
    assert (found["chains"], found["load"], found["response_s"]) == ([], None, {"lower": None, "upper": None})


def test_servers_left_out_are_named_once_with_the_reason_and_what_they_sent_cannot_reach_the_terminal() -> None:
    refused = {peer("x"): "record has \x1b[2Jschema 1: upgrade the older peer"}
    plan = plan_of(*HALVES, left_out={**refused, peer("\x07"): "says that\nthe model has 9 blocks " + "!" * 500})
    text = text_of(settle(HALVES, plan), plan, refused=refused)
    assert text.startswith(
        "swarm home: 2 servers\nnot believed: xxxxxx (record has ?[2Jschema 1: upgrade the older peer)\n"
    )
    assert "left out: xxxxxx" not in text
    assert "left out: ?????? (says that?the model has 9 blocks " in text
    assert text.count("!") < 200
    content = json.loads(to_json(status(settle(HALVES, plan), plan, refused=refused)))
    assert content["refused"] == refused
    assert content["models"][0]["plan"]["left_out"] == plan.left_out


def test_who_came_after_the_plan_is_said() -> None:
    plan = plan_of(*HALVES)
    assert "come since then: cccccc\n" in text_of([*settle(HALVES, plan), server("c")], plan)


def test_steps_are_shown_beside_what_was_predicted() -> None:
    plan = plan_of(*HALVES)
    first, second = settle(HALVES, plan)
    assert "predicted" not in text_of([first, second], plan)
    step = StepCheck(predicted_s=0.04, observed_s=0.045)
    assert second.offer is not None
    reach = {first.peer: Reach(round_trip_s=0.0123, bytes_per_s=2e7)}
    demand = Demand(num_requests=3, window_s=60.0, input_tokens=7.0, output_tokens=20.0)
    observed = replace(second, offer=replace(second.offer, decode=step, reach=reach, demand=demand))
    text = text_of([first, observed], plan)
    assert "server  decode step  predicted  without it\n" in text
    assert "\nbbbbbb      45.0 ms    40.0 ms  no room" in text
    assert "between servers: round trips of 12.3 ms, rates of 20.0 MB/s\n" in text
    by_peer = {entry["peer"]: entry for entry in json.loads(to_json(status([first, observed], plan)))["servers"]}
    offer = by_peer[peer("b")]["offer"]
    assert offer["decode"] == {"predicted_s": 0.04, "observed_s": 0.045}
    assert offer["prefill"] is None
    assert offer["memory_bytes"] == 6_000_000_000
    assert offer["profile"]["block_bytes"] == 1_000_000_000
    assert offer["reach"] == {peer("a"): {"round_trip_s": 0.0123, "bytes_per_s": 2e7}}
    assert offer["demand"] == {"num_requests": 3, "window_s": 60.0, "input_tokens": 7.0, "output_tokens": 20.0}
    both = replace(second, offer=replace(second.offer, decode=step, prefill=step))
    assert "server  decode step  predicted  prefill step  predicted  without it\n" in text_of([first, both], plan)


def test_rates_that_nobody_measured_are_not_shown() -> None:
    near, far = Reach(round_trip_s=0.001), Reach(round_trip_s=0.05)
    servers = [server("a", Span(0, 4), reach={peer("b"): near}), server("b", Span(4, 8), reach={peer("a"): far})]
    assert "between servers: round trips of 1.00 ms to 50.0 ms\n" in text_of(servers, None)


def test_a_server_that_had_better_be_a_spare_is_named() -> None:
    servers = [server("a", memory_gb=20, speed=5), server("b", memory_gb=9)]
    plan = plan_of(*servers)
    assert text_of(settle(servers, plan), plan).endswith("\nbetter left as a spare: bbbbbb")
    found = plan_json(settle(servers, plan), plan)
    verdicts = {entry["peer"]: entry["without_it"]["is_spare"] for entry in found["servers"]}
    assert verdicts == {peer("a"): False, peer("b"): True}


def test_pinned_servers_bear_a_star() -> None:
    servers = [server("a", Span(0, 4), pinned=True), server("b", Span(4, 8), pinned=True)]
    plan = plan_of(*servers)
    text = text_of(servers, plan)
    assert "0:4*" in text
    assert "4:8*" in text
    assert "\n* blocks chosen by the server's owner\n" in text
    content = json.loads(to_json(status(servers, plan)))
    assert [entry["is_pinned"] for entry in content["servers"]] == [True, True]
    assert [entry["is_pinned"] for entry in content["models"][0]["plan"]["servers"]] == [True, True]


def test_a_plan_that_cannot_be_had_is_said_with_the_reason() -> None:
    plan = plan_of(*HALVES)
    servers = settle(HALVES, plan)
    unread = Unreadable("Qmaaaaaa: no plan within 5 s")
    text = text_of(servers, plan, live=unread)
    assert text.endswith(
        "plan 1 by aaaaaa, followed by 2 of 2 servers; it cannot be read: Qmaaaaaa: no plan within 5 s"
    )
    found = plan_json(servers, plan, live=unread)
    assert found == {
        "epoch": 1,
        "planner": peer("a"),
        "digest": plan.digest,
        "num_followers": 2,
        "cannot_be_read": "Qmaaaaaa: no plan within 5 s",
    }


def test_json_has_all_of_the_plan() -> None:
    ways = {peer("b"): Reach(round_trip_s=0.02, bytes_per_s=1e8)}
    servers = [server("a", memory_gb=5, reach=ways), HALVES[1]]
    plan = plan_of(*servers)
    found = plan_json(settle(servers, plan), plan)
    assert (found["epoch"], found["planner"], found["num_followers"]) == (1, peer("a"), 2)
    assert found["demand"] == {"requests_per_s": 0.1, "input_tokens": 512.0, "output_tokens": 128.0}
    assert {(way["from"], way["to"]) for way in found["ways"]} == set(plan.inputs.ways)
    assert found["chains"][0]["hops"] == [[hop.peer, *_pair(hop.span)] for hop in plan.chains[0].chain.hops]
    assert found["chains"][0]["request_s"] == plan.chains[0].service_s
    assert (
        found["response_s"] == found["goal_response_s"] == {"lower": plan.bounds.lower_s, "upper": plan.bounds.upper_s}
    )
    assert found["max_requests_per_s"] == rate_when_full(plan.chains, turns_of(plan.inputs.profiles()))
    first = found["servers"][0]
    assert first["peer"] == peer("a")
    assert first["blocks"] == first["goal_blocks"] == list(_pair(plan.placement[peer("a")]))
    assert (first["before_blocks"], first["is_held"]) == (None, False)
    assert first["decode_s"] == plan.inputs.servers[0].times.block.decode_s


def test_a_server_that_takes_no_part_in_plans_is_shown_as_well() -> None:
    plan = plan_of(*HALVES)
    servers = [*settle(HALVES, plan), server("c", Span(0, 2), offer=None, epoch=0)]
    text = text_of(servers, plan)
    (line,) = (line for line in text.splitlines() if line.startswith("cccccc"))
    assert "  2.00 GB  " in line
    assert "followed by 2 of 3 servers" in text
    assert json.loads(to_json(status(servers, plan)))["servers"][2]["offer"] is None


def _pair(span: Span) -> tuple[int, int]:
    return span.start, span.end
