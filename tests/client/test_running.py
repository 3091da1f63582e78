"""How many sessions a client counts on each chain, and where it goes by that."""

from dataclasses import replace

from live_swarms import peer, plan_of, server
from served_in_memory import MODEL, served

from chainserve.planning.values import Placement, PlannedChain
from chainserve.swarm.records import Announcement
from chainserve.swarm.reports import ChainUse, Report
from chainserve.types import Chain, Hop, Span
from chainserve_client.opening import Request, open_line
from chainserve_client.policies.rules import JFFC, make_dispatch
from chainserve_client.running import LATE_S, RunningSessions

WHOLE = Span(0, 8)
A, B = (Chain((Hop(peer(name), WHOLE),)) for name in "ab")
SERVERS = [server(name, WHOLE, pinned=True) for name in "ab"]
PLAN = replace(
    plan_of(*SERVERS),
    chains=(PlannedChain(A, 4, 1.0), PlannedChain(B, 4, 1.0)),
    placement=Placement({peer(name): WHOLE for name in "ab"}),
)


def announced(*nums: int, epoch: int = PLAN.epoch) -> list[Announcement]:
    return [
        replace(
            SERVERS[index],
            epoch=epoch,
            report=Report(
                device="cpu",
                chains=(
                    ChainUse(chain=index, num_held=num, used_share=0.0, num_waiting=0, wait_s=0.0, service_s=None),
                ),
            ),
        )
        for index, num in enumerate(nums)
    ]


def test_own_sessions_count_at_once_and_others_as_heads_announce_them() -> None:
    running = RunningSessions()
    assert not running.counted(PLAN, SERVERS)
    running.began(A)
    assert running.counted(PLAN, announced(0, 3)) == {A.hops: 1, B.hops: 3}
    assert running.counted(PLAN, announced(1, 3)) == {A.hops: 1, B.hops: 3}  # the one announced is ours
    assert running.counted(PLAN, announced(3, 0))[A.hops] == 3


def test_what_is_announced_late_may_be_our_own_that_has_ended() -> None:
    now_s = [0.0]
    running = RunningSessions(clock=lambda: now_s[0])
    for _ in range(2):
        running.began(A)
    for _ in range(2):
        running.ended(A)
    assert running.counted(PLAN, announced(2, 0))[A.hops] == 0
    assert running.counted(PLAN, announced(3, 0))[A.hops] == 1
    now_s[0] = LATE_S + 1
    assert running.counted(PLAN, announced(2, 0))[A.hops] == 2


def test_what_heads_say_of_another_plan_is_of_other_chains() -> None:
    assert not RunningSessions().counted(PLAN, announced(2, 2, epoch=PLAN.epoch + 1))


async def test_a_request_goes_where_it_is_fastest_beside_those_that_run() -> None:
    async with served({"a": WHOLE, "b": WHOLE}) as swarm:
        plan = swarm.plan(("a", 4, 1.0), ("b", 4, 1.0))
        network = await swarm.client()
        dispatch = make_dispatch(JFFC, network, MODEL)
        lines = [
            await open_line(
                network,
                Request(model=MODEL, num_lanes=1, max_tokens=plan.inputs.slot_tokens, dispatch=dispatch),
            )
            for _ in range(4)
        ]
        used = [line.current.chain.head for line in lines]
        assert sorted(used) == sorted([peer("a"), peer("b")] * 2)  # and not four on the first
        for line in lines:
            await line.close()
