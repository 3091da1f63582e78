"""What happened between two moments of a swarm, and what is kept of a day."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from live_swarms import NOW, peer, plan_of, server, view_of

from chainserve.swarm.records import Announcement, ServerState
from chainserve.swarm.reports import Report
from chainserve.types import Span
from chainserve_client.health.events import Event, Kind, events_between
from chainserve_client.health.history import COARSE_S, FINE_S, History, Sample
from chainserve_client.health.snapshot import Snapshot

A, B = server("a", Span(0, 5)), server("b", Span(4, 8))


def moment(*servers: Announcement, silent: str = "", epoch: int | None = None) -> Snapshot:
    plans = [] if epoch is None else [plan_of(server("a"), server("b"), epoch=epoch)]
    return Snapshot(swarm="home", view=view_of(servers, *plans), silent=frozenset(map(peer, silent)))


def happened(before: Snapshot, after: Snapshot) -> list[tuple[Kind, str | None]]:
    return [(event.kind, event.peer and event.peer[-1]) for event in events_between(before, after)]


def test_nothing_happens_between_equal_moments() -> None:
    assert happened(moment(A, B, epoch=3), moment(A, B, epoch=3)) == []


def test_a_server_joins_loads_and_makes_the_model_whole() -> None:
    waits, loads = server("b"), replace(B, state=ServerState.LOADING)
    assert happened(moment(A), moment(A, waits)) == [(Kind.JOINED, "b")]
    assert happened(moment(A, waits), moment(A, loads)) == [(Kind.MOVED, "b")]
    assert happened(moment(A, loads), moment(A, B)) == [(Kind.ONLINE, "b"), (Kind.WHOLE, None)]


def test_a_server_that_leaves_takes_its_blocks_along() -> None:
    left, broken = events_between(moment(A, B), moment(A))
    assert (left.kind, left.peer, left.before) == (Kind.LEFT, peer("b"), Span(4, 8))
    assert (broken.kind, broken.missing) == (Kind.BROKEN, (Span(5, 8),))


def test_a_server_is_lost_once_and_recovers() -> None:
    quiet = moment(A, B, silent="b")
    assert happened(moment(A, B), quiet) == [(Kind.LOST, "b"), (Kind.BROKEN, None)]
    assert happened(quiet, quiet) == []
    assert happened(quiet, moment(A, B)) == [(Kind.RECOVERED, "b"), (Kind.WHOLE, None)]
    assert happened(quiet, moment(A)) == []  # its record has expired, of which it was told


def test_a_server_that_was_started_again_is_no_recovery() -> None:
    again = replace(B, started_at=NOW)
    assert happened(moment(A, B, silent="b"), moment(A, again)) == [(Kind.RESTARTED, "b"), (Kind.WHOLE, None)]


def test_moves_and_new_plans_are_told_with_what_is_new() -> None:
    moved = replace(B, span=Span(5, 8), report=Report(device="cpu", name="bob"))
    (move, plan) = events_between(moment(A, B, epoch=3), moment(A, moved, epoch=4))
    assert (move.kind, move.before, move.after, move.name) == (Kind.MOVED, Span(4, 8), Span(5, 8), "bob")
    assert (plan.kind, plan.epoch, plan.peer) == (Kind.EPOCH, 4, peer("a"))
    assert move.to_json()["to_blocks"] == [5, 8]


servers = st.lists(
    st.sampled_from([A, B, replace(B, span=Span(5, 8)), server("c"), server("d", Span(0, 8), started_at=NOW)]),
    max_size=4,
    unique_by=lambda one: one.peer,
)


@given(servers, servers, st.text("abcd", max_size=3), st.text("abcd", max_size=3))
def test_every_event_can_be_told_whatever_changes(
    first: list[Announcement], then: list[Announcement], quiet: str, later: str
) -> None:
    for event in events_between(moment(*first, silent=quiet), moment(*then, silent=later)):
        assert isinstance(event, Event)
        assert event.to_json()["kind"] == event.kind


def sample(at: float, load: float = 0.5) -> Sample:
    return Sample(at=at, load=load, tokens_per_s=3.0, num_waiting=0, num_online=2)


def test_a_day_of_samples_is_kept_in_means_and_its_last_hour_finely() -> None:
    history, at = History(), 1_800_000_000.0
    for step in range(int(2 * 86_400 / FINE_S)):
        at += FINE_S
        assert history.is_due(at)
        history.add(sample(at, load=step % 2))
    samples = history.samples()
    assert samples[-1].at == at
    assert not history.is_due(at + FINE_S / 2)
    assert [one.at for one in samples] == sorted({one.at for one in samples})
    assert 86_400 - COARSE_S <= at - samples[0].at <= 86_400
    assert 600 < len(samples) < 660
    assert samples[0].load == 0.5
    assert samples[0].tokens_per_s == 3.0


def test_a_history_of_nothing_has_no_samples() -> None:
    assert History().samples() == []
