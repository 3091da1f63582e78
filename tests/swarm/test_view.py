"""A view shows who is there; the swarm in memory behaves as the real one does."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainserve.swarm.interface import PLAN_LEASES
from chainserve.swarm.memory import MemoryHub, MemorySwarm
from chainserve.swarm.plans import PlanRecord
from chainserve.swarm.records import Announcement, ServerState
from chainserve.swarm.view import View, make_view
from chainserve.types import PeerId

A, B, C = PeerId("A"), PeerId("B"), PeerId("C")


DIGEST = "0123456789abcdef"


def plan_of(planner: PeerId, *, epoch: int = 1, model_digest: str = DIGEST) -> PlanRecord:
    return PlanRecord(planner=planner, epoch=epoch, model_digest=model_digest, digest="d", body=b"plan")


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_view_is_the_same_whatever_the_order_of_records(announce: Callable[..., Announcement]) -> None:
    records = [announce(peer) for peer in (B, C, A)]
    view = make_view(records, taken_at=1.0)
    assert list(view.servers) == [A, B, C]
    assert view == make_view(reversed(records), taken_at=1.0)


def test_a_view_cannot_be_changed(announce: Callable[..., Announcement]) -> None:
    view = make_view([announce(A)], taken_at=1.0)
    with pytest.raises(TypeError):
        view.servers[B] = announce(B)  # type: ignore[index]


def test_servers_that_left_are_not_in_the_view(announce: Callable[..., Announcement]) -> None:
    view = make_view([announce(A), announce(B, state=ServerState.OFFLINE)], taken_at=1.0)
    assert list(view.servers) == [A]


def test_only_online_servers_of_the_model_take_sessions(announce: Callable[..., Announcement]) -> None:
    others = [state for state in ServerState if state is not ServerState.ONLINE]
    records = [announce(PeerId(f"peer-{state}"), state=state) for state in others]
    view = make_view([*records, announce(A), announce(B, model_digest="other")], taken_at=1.0)
    assert view.online("0123456789abcdef") == (announce(A),)
    assert view.online("unknown") == ()


def test_models_are_listed_with_their_servers(announce: Callable[..., Announcement]) -> None:
    other = announce(C, model_digest="other", state=ServerState.LOADING)
    view = make_view([announce(A), announce(B), other], taken_at=1.0)
    assert view.models() == {"0123456789abcdef": (announce(A), announce(B)), "other": (other,)}
    assert View().models() == {}


@given(st.permutations([plan_of(A), plan_of(B, epoch=2), plan_of(C, epoch=2), plan_of(PeerId("D"), epoch=1)]))
def test_the_plan_to_follow_is_of_the_highest_epoch_and_then_the_smallest_id(plans: list[PlanRecord]) -> None:
    view = make_view([], taken_at=1.0, plans=plans)
    assert view.plan(DIGEST) == plan_of(B, epoch=2)
    assert list(view.plans) == [A, B, C, "D"]


def test_each_model_has_a_plan_of_its_own() -> None:
    view = make_view([], taken_at=1.0, plans=[plan_of(A), plan_of(B, epoch=9, model_digest="other")])
    assert view.plan(DIGEST) == plan_of(A)
    assert view.plan("other") == plan_of(B, epoch=9, model_digest="other")
    assert view.plan("unknown") is None
    assert View().plan(DIGEST) is None


def test_a_plan_counts_when_its_planner_has_left(announce: Callable[..., Announcement]) -> None:
    view = make_view([announce(A, state=ServerState.OFFLINE)], taken_at=1.0, plans=[plan_of(A)])
    assert view.servers == {}
    assert view.plan(DIGEST) == plan_of(A)


def test_a_view_names_those_whose_records_were_refused() -> None:
    reasons = {B: "record is of another swarm", A: "record is not sealed"}
    view = make_view([], taken_at=1.0, refused=reasons)
    assert list(view.refused.items()) == [(A, "record is not sealed"), (B, "record is of another swarm")]
    reasons[C] = "later"
    assert C not in view.refused
    with pytest.raises(TypeError):
        view.refused[C] = "later"  # type: ignore[index]
    with pytest.raises(TypeError):
        view.plans[C] = plan_of(C)  # type: ignore[index]
    assert make_view([], taken_at=1.0) == View(taken_at=1.0)


async def test_a_published_plan_is_seen_by_others_and_replaces_the_one_before() -> None:
    hub = MemoryHub()
    one, other = MemorySwarm(hub, A), MemorySwarm(hub, B)
    await one.publish_plan(plan_of(A))
    assert (await other.refresh()).plans == {A: plan_of(A)}
    await one.publish_plan(plan_of(A, epoch=2))
    await other.publish_plan(plan_of(B))
    view = await other.refresh()
    assert view.plans == {A: plan_of(A, epoch=2), B: plan_of(B)}
    assert view.plan(DIGEST) == plan_of(A, epoch=2)


async def test_a_plan_outlives_the_announcement_of_its_planner(announce: Callable[..., Announcement]) -> None:
    clock = Clock()
    swarm = MemorySwarm(MemoryHub(clock), A, lease_s=30.0)
    await swarm.publish(announce(A))
    await swarm.publish_plan(plan_of(A))
    await swarm.withdraw()
    clock.now += 30.0 * PLAN_LEASES - 1
    view = await swarm.refresh()
    assert (view.servers, view.plans) == ({}, {A: plan_of(A)})
    clock.now += 1.0
    assert (await swarm.refresh()).plans == {}


async def test_nobody_publishes_a_plan_for_another_peer() -> None:
    with pytest.raises(ValueError, match="cannot publish a plan of B"):
        await MemorySwarm(MemoryHub(), A).publish_plan(plan_of(B))


async def test_reads_soon_after_each_other_see_the_same(announce: Callable[..., Announcement]) -> None:
    clock = Clock()
    hub = MemoryHub(clock, snapshot_s=2.0)
    one, other = MemorySwarm(hub, A), MemorySwarm(hub, B)
    before = await other.refresh()
    await one.publish(announce(A))
    clock.now += 1.9
    assert await other.refresh() is before
    clock.now += 0.1
    assert list((await other.refresh()).servers) == [A]
    assert one.now() == clock.now


async def test_a_published_server_is_seen_by_others_until_it_withdraws(announce: Callable[..., Announcement]) -> None:
    hub = MemoryHub()
    one, other = MemorySwarm(hub, A), MemorySwarm(hub, B)
    await one.publish(announce(A))
    assert other.view == View()
    assert (await other.refresh()).servers == {A: announce(A)}
    assert other.view.servers == {A: announce(A)}
    await one.withdraw()
    assert (await other.refresh()).servers == {}


async def test_a_record_expires_unless_it_is_published_again(announce: Callable[..., Announcement]) -> None:
    clock = Clock()
    swarm = MemorySwarm(MemoryHub(clock), A, lease_s=30.0)
    await swarm.publish(announce(A))
    clock.now += 29.0
    assert A in (await swarm.refresh()).servers
    await swarm.publish(announce(A))
    clock.now += 29.0
    assert A in (await swarm.refresh()).servers
    clock.now += 1.0
    view = await swarm.refresh()
    assert view.servers == {}
    assert view.taken_at == clock.now


async def test_nobody_publishes_for_another_peer(announce: Callable[..., Announcement]) -> None:
    with pytest.raises(ValueError, match="cannot publish a record of B"):
        await MemorySwarm(MemoryHub(), A).publish(announce(B))


async def test_waiting_ends_when_the_condition_holds_or_the_time_is_over(announce: Callable[..., Announcement]) -> None:
    hub = MemoryHub()
    swarm = MemorySwarm(hub, A)
    reads = 0

    def third_read(view: View) -> bool:
        nonlocal reads
        reads += 1
        return reads == 3

    await swarm.wait_for(third_read, timeout_s=5.0)
    assert reads == 3
    with pytest.raises(TimeoutError):
        await swarm.wait_for(lambda view: B in view.servers, timeout_s=0.05)
