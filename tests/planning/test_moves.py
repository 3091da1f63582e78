"""On the way to a goal nothing that is served goes unserved, and as many servers get there as in any order."""

import random
from collections.abc import Iterable, Iterator, Mapping
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainserve.planning import moves
from chainserve.planning.moves import awaiting, next_step, overlap, stuck
from chainserve.planning.values import Placement
from chainserve.types import PeerId, Span

A, B, C, D = (PeerId(name) for name in "abcd")

Serving = dict[PeerId, Span]


@st.composite
def ways(draw: st.DrawFn, *, max_servers: int, max_blocks: int, max_span: int) -> tuple[Serving, Placement]:
    """What servers serve, and where they are to go: often where others are now, so that they wait for each other."""
    num_blocks = draw(st.integers(1, max_blocks))

    def span() -> Span:
        start = draw(st.integers(0, num_blocks - 1))
        return Span(start, draw(st.integers(start + 1, min(num_blocks, start + max_span))))

    peers = [PeerId(f"s{number}") for number in range(draw(st.integers(1, max_servers)))]
    spans = [span() for _ in peers]
    places = draw(st.permutations(spans)) if draw(st.booleans()) else [span() for _ in peers]
    away = draw(st.sets(st.sampled_from(peers), max_size=2))  # not there yet
    unplaced = draw(st.sets(st.sampled_from(peers), max_size=1))
    return (
        {peer: spans[index] for index, peer in enumerate(peers) if peer not in away},
        Placement({peer: places[index] for index, peer in enumerate(peers) if peer not in unplaced}),
    )


tiny_ways = ways(max_servers=4, max_blocks=4, max_span=2)
small_ways = ways(max_servers=7, max_blocks=6, max_span=3)
large_ways = ways(max_servers=20, max_blocks=30, max_span=12)


def covered(spans: Iterable[Iterable[int] | None]) -> set[int]:
    return {block for span in spans for block in span or ()}


def walk(serving: Mapping[PeerId, Span], goal: Placement) -> Iterator[tuple[Serving, Placement]]:
    """What is served before every step, and the step, until nothing moves any more."""
    now = dict(serving)
    while True:
        step = next_step(now, goal)
        yield now, step
        moved = {**now, **step.spans}
        if moved == now:
            return
        now = moved


def fewest_left_behind(serving: Mapping[PeerId, Span], goal: Placement) -> int:
    """How many do not get to the goal in the best of all orders in which one server moves at a time."""
    reached = {frozenset(peer for peer in goal if serving.get(peer) == goal[peer])}
    unexplored = list(reached)
    while unexplored:
        there = unexplored.pop()
        now = {**serving, **{peer: goal[peer] for peer in there}}
        for peer in set(goal) - there:
            on_its_way = covered([overlap(now.get(peer), goal[peer]), *(now[other] for other in now if other != peer)])
            if on_its_way >= covered(now.values()) and (further := there | {peer}) not in reached:
                reached.add(further)
                unexplored.append(further)
    return len(goal) - max(map(len, reached))


@given(st.tuples(*[st.integers(0, 9)] * 2), st.tuples(*[st.integers(0, 9)] * 2))
def test_the_overlap_is_the_blocks_of_both(one: tuple[int, int], other: tuple[int, int]) -> None:
    spans = [None if start == end else Span(min(start, end), max(start, end)) for start, end in (one, other)]
    first, second = spans
    assert covered([overlap(first, second)]) == covered([first]) & covered([second])


@settings(deadline=None, max_examples=100)
@given(tiny_ways)
def test_no_block_goes_unserved_however_far_each_mover_is(way: tuple[Serving, Placement]) -> None:
    serving, goal = way
    served = covered(serving.values())
    for now, step in walk(serving, goal):
        stages = [
            {before, overlap(before, step.spans.get(peer, before)), step.spans.get(peer, before)}
            for peer, before in now.items()
        ]
        new = [step[peer] for peer in step if peer not in now]
        for spans in product(*stages):  # each where it was, under way, or there
            assert served <= covered(spans)
        assert covered([*now.values(), *new]) >= served
        served = covered({**now, **step.spans}.values())


@settings(deadline=None)
@given(st.one_of(small_ways, large_ways), st.randoms(use_true_random=False))
def test_no_block_goes_unserved_on_any_way(way: tuple[Serving, Placement], chance: random.Random) -> None:
    serving, goal = way
    served = covered(serving.values())
    for now, step in walk(serving, goal):
        assert set(step) == set(goal)
        under_way = {peer: overlap(before, step.spans.get(peer, before)) for peer, before in now.items()}
        assert covered(under_way.values()) >= served
        assert covered(under_way[peer] if chance.random() < 0.5 else now[peer] for peer in now) >= served
        for peer in step:
            assert step[peer] in (now.get(peer, goal[peer]), goal[peer])
        served |= covered({**now, **step.spans}.values())


@st.composite
def changed_minds(draw: st.DrawFn) -> tuple[Serving, Placement, Placement]:
    """What servers serve, a step of theirs, and another goal."""
    num_blocks = draw(st.integers(1, 4))
    pairs = st.tuples(st.integers(0, num_blocks - 1), st.integers(1, 2))
    some = pairs.map(lambda pair: Span(pair[0], min(num_blocks, sum(pair))))
    peers = [PeerId(f"s{number}") for number in range(draw(st.integers(1, 4)))]
    serving = {peer: draw(some) for peer in peers if draw(st.integers(0, 4))}
    first, second = (Placement({peer: draw(some) for peer in peers if draw(st.integers(0, 6))}) for _ in range(2))
    return serving, next_step(serving, first), second


@settings(deadline=None, max_examples=300)
@given(changed_minds())
def test_another_goal_uncovers_nothing_however_far_servers_have_come(
    case: tuple[Serving, Placement, Placement],
) -> None:
    serving, sent, goal = case
    arriving = {peer: span for peer, span in sent.spans.items() if serving.get(peer) != span}
    step = awaiting(next_step(serving, goal), serving, arriving)
    assert set(step) == set(goal)
    served = covered(serving.values())
    where = {**serving, **arriving}
    stages = []
    for peer in where:  # where it was, under way, or there: and from there on, under way again
        stops = {serving.get(peer), overlap(serving.get(peer), where[peer]), where[peer]}
        stages.append({overlap(stop, step.spans.get(peer, where[peer])) for stop in stops})
    surely = covered(set.intersection(*({*(span or ())} for span in spans)) for spans in stages)
    assert surely >= served
    for spans in product(*stages):
        assert covered(spans) >= served
    for peer in arriving.keys() & set(step):  # what only they bring, they keep
        assert set(arriving[peer]) - set(step[peer]) <= surely


@settings(deadline=None)
@given(small_ways)
def test_when_nobody_is_under_way_nobody_is_awaited(way: tuple[Serving, Placement]) -> None:
    serving, goal = way
    step = next_step(serving, goal)
    assert awaiting(step, serving, {}) == step


@settings(deadline=None, max_examples=200)
@given(st.one_of(tiny_ways, small_ways))
def test_in_no_order_do_more_get_there_and_those_left_behind_are_named(way: tuple[Serving, Placement]) -> None:
    serving, goal = way
    *_, (arrived, _) = walk(serving, goal)
    waiting = stuck(serving, goal)
    assert len(waiting) == fewest_left_behind(serving, goal)
    left_behind = {peer for peer in goal if arrived.get(peer) != goal[peer]}
    assert len(left_behind) == len(waiting)
    assert stuck(arrived, goal) == left_behind


@settings(deadline=None)
@given(st.one_of(small_ways, large_ways))
def test_servers_that_only_grow_or_are_new_are_never_held_up(way: tuple[Serving, Placement]) -> None:
    serving, goal = way
    growing = [peer for peer in goal if peer not in serving or goal[peer].covers(serving[peer])]
    step = next_step(serving, goal)
    assert [step[peer] for peer in growing] == [goal[peer] for peer in growing]
    assert stuck(serving, goal).isdisjoint(growing)


@settings(deadline=None)
@given(st.one_of(small_ways, large_ways), st.randoms(use_true_random=False))
def test_equal_inputs_give_equal_steps(way: tuple[Serving, Placement], chance: random.Random) -> None:
    serving, goal = way
    shuffled, places = list(serving.items()), list(goal.spans.items())
    chance.shuffle(shuffled)
    chance.shuffle(places)
    same = dict(shuffled), Placement(dict(places))
    assert (next_step(*same), stuck(*same)) == (next_step(serving, goal), stuck(serving, goal))


def test_servers_that_are_there_stay_there() -> None:
    serving = {A: Span(0, 2), B: Span(2, 4)}
    assert next_step(serving, Placement(serving)).spans == serving
    assert stuck(serving, Placement(serving)) == frozenset()
    assert next_step(serving, Placement({})) == Placement({})
    assert stuck({}, Placement({})) == frozenset()


def test_the_last_of_a_block_waits_until_another_serves_it() -> None:
    serving, goal = {A: Span(0, 2)}, Placement({A: Span(2, 4), B: Span(0, 2)})
    steps = [step.spans for _, step in walk(serving, goal)]
    assert steps == [{A: Span(0, 2), B: Span(0, 2)}, goal.spans, goal.spans]


def test_those_who_share_blocks_move_at_once_but_for_the_last() -> None:
    serving = {peer: Span(0, 2) for peer in (A, B, C)}
    goal = Placement({A: Span(2, 4), B: Span(2, 4), C: Span(2, 4)})
    assert next_step(serving, goal).spans == {A: Span(2, 4), B: Span(2, 4), C: Span(0, 2)}
    assert stuck(serving, goal) == {C}  # the goal has nobody for block 0


def test_who_gives_up_less_goes_first() -> None:
    serving, goal = {A: Span(0, 2), B: Span(0, 2)}, Placement({A: Span(2, 4), B: Span(1, 3)})
    assert next_step(serving, goal).spans == {A: Span(0, 2), B: Span(1, 3)}


def test_servers_that_are_not_in_the_goal_go_on_and_are_relied_on() -> None:
    serving, goal = {A: Span(0, 2), B: Span(0, 2)}, Placement({A: Span(2, 4)})
    assert next_step(serving, goal) == goal


def test_two_that_would_change_places_are_stuck_unless_a_third_helps() -> None:
    serving, goal = {A: Span(0, 2), B: Span(2, 4)}, Placement({A: Span(2, 4), B: Span(0, 2)})
    assert stuck(serving, goal) == {A, B}
    assert next_step(serving, goal).spans == serving
    third = Placement({**goal.spans, C: Span(0, 2)})
    assert stuck(serving, third) == frozenset()


def test_who_may_be_the_only_one_there_goes_on_until_that_is_known() -> None:
    serving, arriving = {A: Span(0, 2), B: Span(0, 2)}, {B: Span(2, 4)}
    back = Placement({A: Span(0, 2), B: Span(0, 2)})
    assert awaiting(next_step(serving, back), serving, arriving).spans == {A: Span(0, 2), B: Span(2, 4)}
    third = {**serving, C: Span(2, 4)}
    assert awaiting(next_step(third, back), third, arriving) == back


def test_nobody_relies_on_what_servers_under_way_have_given_up() -> None:
    serving, arriving = {A: Span(0, 2), B: Span(0, 2)}, {B: Span(2, 4)}
    swapped = Placement({A: Span(2, 4), B: Span(0, 2)})
    assert next_step(serving, swapped) == swapped  # as far as one knows, B never left
    assert awaiting(swapped, serving, arriving).spans == {A: Span(0, 2), B: Span(2, 4)}
    third = {**serving, C: Span(2, 4)}
    assert awaiting(swapped, third, arriving).spans == {A: Span(0, 2), B: Span(0, 2)}


def test_who_loads_its_first_blocks_may_load_others_if_those_are_served() -> None:
    serving, arriving = {A: Span(0, 2)}, {B: Span(0, 2), C: Span(2, 4)}
    goal = Placement({A: Span(0, 2), B: Span(2, 4), C: Span(0, 2)})
    assert awaiting(next_step(serving, goal), serving, arriving).spans == {**goal.spans, C: Span(2, 4)}


# Either of A and B can leave block 0, not both; only when B has come to block 1 can C come from there to block 0.
CONTESTED = {A: Span(0, 1), B: Span(0, 1), C: Span(1, 2)}
CONTESTED_GOAL = Placement({A: Span(2, 3), B: Span(1, 2), C: Span(0, 1)})


def test_what_can_be_spared_goes_to_whom_others_wait_for() -> None:
    steps = [step.spans for _, step in walk(CONTESTED, CONTESTED_GOAL)]
    assert steps[0] == {A: Span(0, 1), B: Span(1, 2), C: Span(1, 2)}
    assert steps[-1] == CONTESTED_GOAL.spans


def test_whom_others_wait_for_is_looked_for_among_those_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves, "SEARCH_EFFORT", len(CONTESTED_GOAL))  # enough for one other beginning
    assert stuck(CONTESTED, CONTESTED_GOAL) == frozenset()


def test_beyond_the_effort_it_is_the_most_that_can_move_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves, "SEARCH_EFFORT", 0)
    assert next_step(CONTESTED, CONTESTED_GOAL)[A] == Span(2, 3)
    assert stuck(CONTESTED, CONTESTED_GOAL) == {B, C}


def test_hundreds_of_servers_who_wait_for_each_other_are_soon_told() -> None:
    num = 200
    serving = {PeerId(f"s{number:03}"): Span(number, number + 1) for number in range(num)}
    goal = Placement({peer: Span((span.start + 1) % num, (span.start + 1) % num + 1) for peer, span in serving.items()})
    assert stuck(serving, goal) == serving.keys()
    helped = Placement({**goal.spans, D: Span(num - 1, num)})
    assert stuck(serving, helped) == frozenset()
