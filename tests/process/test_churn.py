"""Real servers come, leave and are killed, the planner among them, and the swarm goes on serving."""

import asyncio
import logging
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundled import MODEL, Reference
from planned import check_memory, plan_when, settled_plan

from chainserve.errors import ChainserveError
from chainserve.swarm.identity import Identity
from chainserve.swarm.records import ServerState
from chainserve.types import PeerId
from chainserve_client import AsyncClient
from chainserve_server.local import LocalServer, LocalSwarm

pytestmark = [pytest.mark.process, pytest.mark.timeout(1200)]

logger = logging.getLogger(__name__)

SEED = 4
NUM_AT_FIRST, NUM_EVENTS, NUM_AT_MOST = 8, 30, 10
MEMORY_MB = (265, 295, 325, 355, 385)
BLOCK_MB = 18.0  # weights, and cache for a session
OVERHEAD_MB = 149.0  # activations, and embedding or head, which any of them may be given
LEASE_S = 8.0
COVERED_S = 120.0  # lease, plan and loading, on a machine that does many other things
PROMPT = "Why is the sky blue?"
NEW_TOKENS = 4


class Churn:
    """The processes, and what is known of them."""

    def __init__(self, folder: Path) -> None:
        self.rng = random.Random(SEED)
        self.swarm = LocalSwarm(MODEL, folder, is_warm=True)
        self.live: dict[LocalServer, int] = {}  # with their memory in MB
        # Others join through the first server, so that stays; one with the largest id of a few hardly ever plans.
        first = max((Identity.generate() for _ in range(6)), key=lambda identity: identity.peer_id)
        (folder / "server-0.key").write_bytes(first.to_bytes())

    def join(self) -> str:
        memory = self.rng.choice(MEMORY_MB)
        server = self.swarm.launch("auto", ("--memory", f"{memory}MB", "--lease", str(LEASE_S)))
        self.live[server] = memory
        return f"server {self.swarm.servers.index(server)} with {memory} MB joins"

    def candidates(self) -> list[LocalServer]:
        """Servers that may go: the others have room for the model."""
        joined = [server for server in list(self.live)[1:] if server.has_joined]
        spare = sum(self.num_blocks(self.live[server]) for server in joined)
        return [server for server in joined if self.num_blocks(self.live[server]) <= spare - 32]

    def planner(self) -> LocalServer:
        """The server with the smallest id."""
        return min((server for server in self.live if server.has_joined), key=lambda server: server.peer)

    def lose(self, server: LocalServer, how: signal.Signals) -> str:
        del self.live[server]
        server.process.send_signal(how)
        server.process.wait(timeout=30)
        return f"server {self.swarm.servers.index(server)} {'is killed' if how is signal.SIGKILL else 'leaves'}"

    @staticmethod
    def num_blocks(memory: int) -> int:
        return int((memory - OVERHEAD_MB) / BLOCK_MB)


@pytest.fixture
def churn(tmp_path: Path) -> Iterator[Churn]:
    churn = Churn(tmp_path)
    with churn.swarm:
        yield churn


async def watch(client: AsyncClient) -> None:
    """Epochs only grow, and nobody takes more than its memory, whenever one looks."""
    epochs: dict[tuple[PeerId, float], int] = {}
    while True:
        for server in client.network.swarm.view.servers.values():
            check_memory(server)
            life = server.peer, server.started_at
            assert server.epoch >= epochs.get(life, 0), f"{server.peer} went back to epoch {server.epoch}"
            epochs[life] = server.epoch
        await asyncio.sleep(0.2)


async def test_a_swarm_lives_on_while_servers_come_and_go(churn: Churn, reference: Reference) -> None:
    prompt = reference.prompt(PROMPT)
    expected = reference.greedy(prompt, NEW_TOKENS)
    for _ in range(NUM_AT_FIRST):
        await asyncio.to_thread(churn.join)
    async with await AsyncClient.connect(churn.swarm.token) as client:
        await settled_plan(client, num_servers=NUM_AT_FIRST)
        watching = asyncio.create_task(watch(client))
        highest = 0
        for number in range(NUM_EVENTS):
            assert not watching.done(), watching.exception()
            candidates = churn.candidates()
            is_join = len(churn.live) < NUM_AT_FIRST or (len(churn.live) < NUM_AT_MOST and churn.rng.random() < 0.3)
            if is_join or not candidates:
                event = await asyncio.to_thread(churn.join)
            else:
                planner = churn.planner()
                leaver = planner if number % 4 == 0 and planner in candidates else churn.rng.choice(candidates)
                how = churn.rng.choice([signal.SIGINT, signal.SIGKILL])
                event = await asyncio.to_thread(churn.lose, leaver, how)
                event += ", the planner" if leaver is planner else ""
            took_s = await until_covered(churn, client)
            plan = await plan_when(client)
            logger.info("event %d: %s; covered after %.1f s, epoch %d", number, event, took_s, plan.epoch)
            assert plan.epoch >= highest
            highest = plan.epoch
            assert await answer(client, prompt) == expected

        plan = await settled_plan(client, num_servers=len(churn.live))
        again = await asyncio.to_thread(plan.inputs.plan)  # or the servers would take us for lost, who answer no beat
        assert (again.placement, again.chains) == (plan.placement, plan.chains)
        for planned in plan.chains:
            generation = await client.generate(prompt, chain=planned.chain, max_new_tokens=NEW_TOKENS)
            assert generation.tokens == expected
        watching.cancel()


async def until_covered(churn: Churn, client: AsyncClient) -> float:
    """Wait until servers that live serve every block; returns how long that took."""
    began_s = time.monotonic()
    async with asyncio.timeout(COVERED_S):
        while True:
            view = await client.network.swarm.refresh()
            live = {server.peer for server in churn.live if server.has_joined}
            spans = [s.span for s in view.servers.values() if s.peer in live and s.state is ServerState.ONLINE]
            if not set(range(client.model.num_blocks)).difference(*(span for span in spans if span)):
                return time.monotonic() - began_s
            await asyncio.sleep(0.1)


async def answer(client: AsyncClient, prompt: list[int]) -> tuple[int, ...]:
    """The tokens of an answer; a session that ends because its server moves is asked for again."""
    for attempt in range(20):
        try:
            return (await client.generate(prompt, max_new_tokens=NEW_TOKENS)).tokens
        except ChainserveError as error:
            logger.info("attempt %d: %s", attempt, error)
            await client.network.swarm.refresh()
            await asyncio.sleep(0.5)
    raise AssertionError("no answer")
