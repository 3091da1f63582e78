"""Placements and dispatch rules of other systems in a live swarm, by the options that benchmarks give it."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from bundled import MODEL, Reference
from planned import SETTLE_S

from chainserve.errors import RequestError
from chainserve.swarm.plans import SwarmPlan
from chainserve.swarm.records import ServerState
from chainserve.swarm.view import View
from chainserve.types import Span
from chainserve_client import AsyncClient
from chainserve_server.local import LocalSwarm

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

NUM_BLOCKS = 30
MEMORY = ("900MB", "500MB", "450MB")
QUESTION = "What is the capital of France?"
NEW_TOKENS = 12
LOAD = ("--bench-load", "0.5,64,16")


def is_followed(plan: SwarmPlan | None, view: View) -> bool:
    """Whether all servers take part and are where the plan wants them; some may hold nothing."""
    if plan is None or plan.shortage or not plan.is_settled or len(plan.inputs.servers) != len(MEMORY):
        return False
    online = {peer: server.span for peer, server in view.servers.items() if server.state is ServerState.ONLINE}
    return online == plan.placement.spans and all(server.epoch == plan.epoch for server in view.servers.values())


@asynccontextmanager
async def swarm_by(folder: Path, placement: str, *more: str) -> AsyncIterator[tuple[LocalSwarm, SwarmPlan]]:
    """Servers that are placed by this rule, once they are."""
    with LocalSwarm(MODEL, folder, is_warm=True) as swarm:
        for memory in MEMORY:
            arguments = ("--memory", memory, "--bench-placement", placement, *LOAD, *more)
            await asyncio.to_thread(swarm.launch, "auto", arguments)
        async with await AsyncClient.connect(swarm.token) as client, asyncio.timeout(SETTLE_S):
            while not is_followed(plan := await client.plan(), client.network.swarm.view):
                await asyncio.sleep(0.2)
        assert plan is not None
        yield swarm, plan


async def answers_by(swarm: LocalSwarm, dispatches: Sequence[str], reference: Reference) -> None:
    """AssertionError unless requests are answered rightly under each of these rules, three at once."""
    prompt = reference.prompt(QUESTION)
    expected = reference.greedy(prompt, NEW_TOKENS)
    for dispatch in dispatches:
        async with await AsyncClient.connect(swarm.token, dispatch=dispatch) as client:
            asked = (client.generate(prompt, max_new_tokens=NEW_TOKENS, max_drafts=0) for _ in range(3))
            assert {answer.tokens for answer in await asyncio.gather(*asked)} == {expected}, dispatch


@pytest.mark.parametrize("name", ["petals", "bprr"])
async def test_clients_of_systems_without_chains_compose_their_routes(
    name: str, tmp_path: Path, reference: Reference
) -> None:
    async with swarm_by(tmp_path, name) as (swarm, plan):
        assert plan.inputs.rule.name == name
        assert plan.chains == ()
        assert plan.inputs.plan().placement == plan.placement
        await answers_by(swarm, [name, "jffc"], reference)
        async with await AsyncClient.connect(swarm.token, dispatch="sed") as client:
            with pytest.raises(RequestError, match="--bench-chains yes"):
                await client.generate(QUESTION, max_new_tokens=1)


@pytest.mark.parametrize(("name", "more"), [("whole-model", ()), ("random", ("--bench-seed", "3"))])
async def test_chains_over_other_placements_are_joined_by_every_rule(
    name: str, more: tuple[str, ...], tmp_path: Path, reference: Reference
) -> None:
    async with swarm_by(tmp_path, name, *more) as (swarm, plan):
        assert plan.inputs.rule.name == name
        assert plan.chains
        assert plan.inputs.plan().placement == plan.placement
        if name == "whole-model":
            assert list(plan.placement.spans.values()) == [Span(0, NUM_BLOCKS)]
            assert re.search("no blocks for this server", swarm.servers[1].output())
        await answers_by(swarm, ["jffc", "sed", "jsq", "random"], reference)
        async with await AsyncClient.connect(swarm.token, dispatch="petals") as client:
            with pytest.raises(RequestError, match="--bench-chains no"):
                await client.generate(QUESTION, max_new_tokens=1)
