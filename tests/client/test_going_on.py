"""Sessions that go on elsewhere: the same outputs, whoever is lost, and named errors where nobody takes over."""

import asyncio
import itertools

import pytest
import torch
from served_in_memory import HIDDEN, MODEL, HeldEngine, MemorySwarmOfServers, served, until, whole_model

from chainserve.errors import NoPlaceError, PromptTooLongError, SessionLostError
from chainserve.protocol.messages import Activations, Admit, Admitted, FailureCode, Queued, Stalled
from chainserve.types import Span
from chainserve_client import chain_session, opening
from chainserve_client.lifeline import MAX_RECOVERIES
from chainserve_client.network import Network
from chainserve_client.opening import Request, open_line
from chainserve_client.session import Session

PAIRS = {"a": Span(0, 4), "b": Span(4, 8), "c": Span(0, 4), "d": Span(4, 8)}


def request(*, num_lanes: int = 1, max_tokens: int = 100, timeout_s: float = 20.0) -> Request:
    return Request(model=MODEL, num_lanes=num_lanes, max_tokens=max_tokens, timeout_s=timeout_s)


async def session_of(network: Network, asked: Request) -> Session:
    return Session(await open_line(network, asked), num_lanes=asked.num_lanes)


class Driver:
    """Steps a session with random rows, and compares with the whole model."""

    def __init__(self, session: Session, *, num_lanes: int = 1) -> None:
        self.session = session
        self.lanes = [torch.zeros(0, HIDDEN) for _ in range(num_lanes)]

    async def step(self, *num_tokens: int) -> None:
        new = [torch.randint(0, 97, (num, HIDDEN)).float() for num in num_tokens]
        self.lanes = [torch.cat([lane, rows]) for lane, rows in zip(self.lanes, new, strict=True)]
        outputs = await self.session.step(torch.cat(new), num_tokens, num_tokens)
        for lane, num, output in zip(self.lanes, num_tokens, outputs, strict=True):
            torch.testing.assert_close(output, whole_model(lane)[len(lane) - num :], rtol=0, atol=0)

    def serving(self, swarm: MemorySwarmOfServers, position: int) -> str:
        """Who is at this position of the chain now."""
        at = self.session.chain.hops[position].peer
        return next(name for name, made in swarm.servers.items() if made.peer == at)


async def driven(network: Network, *, num_lanes: int = 1) -> Driver:
    return Driver(await session_of(network, request(num_lanes=num_lanes)), num_lanes=num_lanes)


@pytest.mark.parametrize("is_planned", [True, False])
@pytest.mark.parametrize("position", [0, 1])
async def test_a_session_goes_on_over_others_when_a_server_dies(position: int, is_planned: bool) -> None:
    async with served(PAIRS) as swarm:
        if is_planned:
            swarm.plan(("ab", 1, 1.0), ("cd", 1, 2.0))
        driver = await driven(await swarm.client())
        await driver.step(5)
        await driver.step(1)
        lost = swarm.servers[driver.serving(swarm, position)]
        await lost.die()
        await driver.step(1)
        await driver.step(1)
        assert lost.peer not in {hop.peer for hop in driver.session.chain.hops}
        [recovery] = driver.session.recoveries
        assert (recovery.peer, recovery.num_tokens) == (lost.peer, 7)
        await driver.session.close()
        del swarm.servers[next(name for name, made in swarm.servers.items() if made is lost)]
        await until(lambda: not any(len(made.sessions) for made in swarm.servers.values()))
        swarm.check_free()


async def test_a_server_dies_while_a_step_is_under_way() -> None:
    async with served(PAIRS) as swarm:
        swarm.plan(("ab", 1, 1.0), ("cd", 1, 2.0))
        driver = await driven(await swarm.client())
        await driver.step(5)
        swarm.servers["b"].engine.is_held = True
        step = asyncio.create_task(driver.step(3))
        await until(lambda: any(isinstance(m, Activations) and m.steps[0].start for m in swarm.servers["b"].received))
        await swarm.servers["b"].die()
        await step
        assert driver.session.chain == swarm.chain("c", "d")


async def test_lanes_are_replayed_as_they_were_reordered_and_truncated() -> None:
    async with served(PAIRS) as swarm:
        driver = await driven(await swarm.client(), num_lanes=2)
        await driver.step(4, 6)
        await driver.session.reorder([1, 1])
        driver.lanes = [driver.lanes[1], driver.lanes[1]]
        await driver.step(1, 2)
        driver.session.truncate([3, 8])
        driver.lanes = [driver.lanes[0][:3], driver.lanes[1]]
        await driver.step(2, 1)
        await swarm.servers[driver.serving(swarm, 1)].die()
        await driver.step(0, 2)
        await driver.step(1, 1)
        assert len(driver.session.recoveries) == 1


async def test_a_server_that_leaves_hands_its_sessions_over_before_the_next_step() -> None:
    async with served(PAIRS) as swarm:
        swarm.plan(("ab", 1, 1.0), ("cd", 1, 2.0))
        driver = await driven(await swarm.client())
        await driver.step(5)
        leaving = swarm.servers["b"].sessions
        leaving.closed_because = "is leaving"
        leaving.leave(leaving.outside(None))
        await until(lambda: driver.session.line.current.leaving is not None)
        await driver.step(1)
        assert driver.session.chain == swarm.chain("c", "d")
        assert driver.session.recoveries == []  # nothing was lost
        await until(lambda: len(leaving) == 0)


async def test_who_has_nowhere_else_to_go_stays_until_the_end() -> None:
    async with served({"a": Span(0, 4), "b": Span(4, 8)}) as swarm:
        driver = await driven(await swarm.client())
        await driver.step(5)
        leaving = swarm.servers["b"].sessions
        leaving.leave(leaving.outside(None))
        await until(lambda: driver.session.line.current.leaving is not None)
        await driver.step(1)
        leaving.end(leaving.outside(None), FailureCode.NOT_SERVING, "left")
        with pytest.raises(SessionLostError, match=r"left .*no other chain took over: no server holds blocks 4:8 of 8"):
            await driver.step(1)


async def test_who_would_have_to_wait_elsewhere_stays_with_the_server_that_leaves() -> None:
    async with served(PAIRS) as swarm:
        swarm.plan(("ab", 1, 1.0), ("cd", 1, 2.0))
        network = await swarm.client()
        driver = Driver(await session_of(network, request(max_tokens=2048)))
        await session_of(network, request(max_tokens=2048))
        leaving = swarm.servers["b"].sessions
        leaving.leave(leaving.outside(None))
        await until(lambda: driver.session.line.current.leaving is not None)
        await driver.step(1)
        assert driver.session.chain == swarm.chain("a", "b")
        assert swarm.servers["c"].sessions.places.num_waiting == 0


async def test_a_session_that_is_closed_in_the_middle_of_a_step_is_not_opened_again() -> None:
    async with served(PAIRS) as swarm:
        network = await swarm.client()
        driver = await driven(network)
        for made in swarm.servers.values():
            made.engine.is_held = True
        step = asyncio.create_task(driver.step(1))
        await until(lambda: any(isinstance(m, Activations) for made in swarm.servers.values() for m in made.received))
        await network.close()
        with pytest.raises(SessionLostError, match="was closed here"):
            await step
        assert driver.session.line.num_recoveries == 0


async def test_chains_are_not_worn_out_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "PAUSE_S", 0.01)
    async with served(PAIRS) as swarm:
        network = await swarm.client()
        monkeypatch.setattr(network, "suspect", lambda peer: None)
        driver = await driven(network)
        for made in swarm.servers.values():
            made.engine.add = lambda item, made=made: made.sessions.fail(  # type: ignore[method-assign]
                item.step.session, FailureCode.INTERNAL, "out of memory"
            )
        with pytest.raises(SessionLostError, match="out of memory"):
            await driver.step(1)
        assert driver.session.line.num_recoveries == MAX_RECOVERIES
        await until(lambda: not any(len(made.sessions) for made in swarm.servers.values()))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that find a step late after a tenth of a second."""
    monkeypatch.setattr(chain_session, "SLACK_S", 0.1)
    monkeypatch.setattr(chain_session, "SLACK", 0.0)


@pytest.mark.usefixtures("hasty")
async def test_a_server_that_does_not_run_its_steps_is_found() -> None:
    async with served(PAIRS) as swarm:
        swarm.plan(("ab", 1, 1.0), ("cd", 1, 2.0))
        driver = await driven(await swarm.client())
        await driver.step(2)
        swarm.servers["b"].engine.is_held = True
        await driver.step(1)
        [recovery] = driver.session.recoveries
        assert (recovery.peer, recovery.reason) == (swarm.servers["b"].peer, "step 1 is late and not done (stalled)")
        assert driver.session.chain == swarm.chain("c", "d")


@pytest.mark.usefixtures("hasty")
async def test_a_server_that_runs_others_first_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(PAIRS) as swarm:
        swarm.plan(("ab", 1, 1.0), ("cd", 1, 2.0))
        driver = await driven(await swarm.client())
        await driver.step(2)
        busy, waiting = swarm.servers["b"], []
        run = busy.engine.add
        monkeypatch.setattr(busy.engine, "add", waiting.append)
        step = asyncio.create_task(driver.step(1))
        for num_asked in range(1, 4):
            await until(lambda: waiting)
            busy.engine.num_begun += 1
            await until(lambda: sum(isinstance(m, Stalled) for m in busy.received) >= num_asked)  # noqa: B023
        for item in waiting:
            run(item)
        await step
        assert driver.session.chain == swarm.chain("a", "b")
        assert driver.session.line.num_recoveries == 0


@pytest.mark.usefixtures("hasty")
async def test_a_step_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_session, "STEP_TIMEOUT_S", 0.5)
    monkeypatch.setattr(chain_session, "BLAME_S", 0.1)
    async with served(PAIRS) as swarm:
        swarm.plan(("ab", 1, 1.0), ("cd", 1, 2.0))
        driver = await driven(await swarm.client())
        await driver.step(2)
        swarm.servers["b"].engine.is_held = True
        begun = itertools.count()  # whoever looks at an engine finds that it has begun something more
        monkeypatch.setattr(
            HeldEngine, "num_begun", property(lambda _: next(begun), lambda _, _to: None), raising=False
        )
        await driver.step(1)
        assert [recovery.reason for recovery in driver.session.recoveries] == ["no output in time (stalled)"]
        assert driver.session.chain == swarm.chain("c", "d")


async def test_an_answer_that_lost_its_chain_waits_before_those_that_have_not_begun() -> None:
    async with served(PAIRS) as swarm:
        swarm.plan(("ab", 1, 1.0), ("cd", 1, 2.0))
        network = await swarm.client()
        whole = request(max_tokens=2048)
        driver = Driver(await session_of(network, whole))
        await driver.step(2)
        other = await session_of(network, whole)
        places = swarm.servers["c"].sessions.places
        late = asyncio.create_task(session_of(network, whole))
        await until(lambda: places.num_waiting == 1)
        await swarm.servers["a"].die()
        step = asyncio.create_task(driver.step(1))
        await until(lambda: places.num_waiting == 2)
        await other.close()
        await step
        assert not late.done()
        await driver.session.close()
        await (await late).close()


async def test_requests_take_the_fastest_chain_and_then_wait_their_turn() -> None:
    async with served(PAIRS) as swarm:
        swarm.plan(("cd", 1, 1.0), ("ab", 1, 2.0))
        network = await swarm.client()
        opened = [await session_of(network, request(max_tokens=2048)) for _ in range(2)]
        assert {session.chain for session in opened} == {swarm.chain("a", "b"), swarm.chain("c", "d")}
        order: list[int] = []

        async def wait(number: int) -> Session:
            session = await session_of(network, request(max_tokens=2048))
            order.append(number)
            return session

        waiting = []
        for number in range(3):
            waiting.append(asyncio.create_task(wait(number)))
            num_tickets = 2 * (number + 1)
            await until(
                lambda: sum(made.sessions.places.num_waiting for made in swarm.servers.values()) == num_tickets  # noqa: B023
            )
        for session in opened:
            await session.close()
        for task in waiting[:2]:
            await (await task).close()
        await (await waiting[2]).close()
        assert order == [0, 1, 2]
        await until(lambda: not any(len(made.sessions) for made in swarm.servers.values()))
        await until(lambda: not any(made.sessions.places.num_held for made in swarm.servers.values()))
        swarm.check_free()


async def test_a_request_that_may_not_wait_longer_is_told_how_long_it_would_take() -> None:
    async with served(PAIRS) as swarm:
        swarm.plan(("ab", 1, 40.0))
        network = await swarm.client()
        first = await session_of(network, request(max_tokens=2048))
        with pytest.raises(NoPlaceError, match=r"after 0.3 s, and about 40 s more") as caught:
            await session_of(network, request(max_tokens=2048, timeout_s=0.3))
        assert caught.value.wait_s == pytest.approx(40.0, rel=0.05)
        await first.close()
        await until(lambda: swarm.servers["a"].sessions.places.num_waiting == 0)
        await until(lambda: not any(len(made.sessions) for made in swarm.servers.values()))
        swarm.check_free()


async def test_what_is_longer_than_any_place_goes_where_the_caches_have_room() -> None:
    async with served(PAIRS, cache_tokens=5000) as swarm:
        swarm.plan(("ab", 1, 1.0))
        network = await swarm.client()
        session = await session_of(network, request(max_tokens=4000))
        assert session.chain.num_blocks == 8
        with pytest.raises(PromptTooLongError, match="at most 5000"):
            await session_of(network, request(max_tokens=5001))


async def test_an_answer_about_a_place_that_comes_late_does_not_disturb_its_session() -> None:
    async with served(PAIRS) as swarm:
        swarm.plan(("ab", 1, 1.0))
        network = await swarm.client()
        driver = Driver(await session_of(network, request(max_tokens=2048)))
        session_id = driver.session.line.current.state.id
        for answer in (Queued(session_id, 0, 100), Admitted(session_id, 0)):
            network.handle(swarm.servers["a"].peer, answer)
        await driver.step(2)
        assert driver.session.line.num_recoveries == 0


async def test_a_client_that_is_gone_holds_no_places() -> None:
    async with served(PAIRS) as swarm:
        swarm.plan(("ab", 1, 1.0))
        gone, waiting = await swarm.client("gone"), await swarm.client("waiting")
        await session_of(gone, request(max_tokens=2048))
        for network in (gone, waiting):
            task = asyncio.create_task(session_of(network, request(max_tokens=2048)))
            places = swarm.servers["a"].sessions.places
            await until(lambda: places.num_waiting == (1 if network is gone else 2))  # noqa: B023
        await gone.links.close()
        session = await task
        assert session.chain == swarm.chain("a", "b")
        assert places.num_waiting == 0


async def test_heads_that_know_no_such_plan_are_asked_again_and_then_done_without() -> None:
    async with served(PAIRS) as swarm:
        swarm.plan(("ab", 1, 1.0))
        places = swarm.servers["a"].sessions.places
        places.follow(0, [], now_s=0.0)  # has yet to adopt it
        session = await session_of(await swarm.client(), request())
        assert session.chain.num_blocks == 8
        assert places.num_held == 0
        asked = [message for message in swarm.servers["a"].received if isinstance(message, Admit)]
        assert len(asked) == opening.MAX_STALE


async def test_a_plan_that_changes_sends_who_waits_to_its_new_chains() -> None:
    async with served(PAIRS) as swarm:
        swarm.plan(("ab", 1, 1.0))
        network = await swarm.client()
        await session_of(network, request(max_tokens=2048))
        waiting = asyncio.create_task(session_of(network, request(max_tokens=2048)))
        await until(lambda: swarm.servers["a"].sessions.places.num_waiting == 1)
        swarm.plan(("cd", 1, 1.0), epoch=2)
        assert (await waiting).chain == swarm.chain("c", "d")
