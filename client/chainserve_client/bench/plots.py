"""The plots of a run: how long requests took, how many there were at each moment, and on which chains."""

from bisect import bisect_right
from collections.abc import Sequence

from chainserve_client.bench.figures import KINDS, Run, chain_name, values_of
from chainserve_client.bench.svg import COLOURS, Axes, Series, lines, stacked
from chainserve_client.bench.timing import Route, Timed

NUM_POINTS = 600
"""About as many as a plot has pixels."""
SHOWN = ("response", "service", "first token", "waiting")
MAX_CHAINS = 7
GREY = "#bbbbbb"
HEADROOM = 1.05

Interval = tuple[float, float]


def plots_of(run: Run) -> dict[str, str]:
    """SVG by the name of its file; those of which nothing is known are left out."""
    drawn: dict[str, str] = {}
    if run.answered:
        drawn["response.svg"] = response_plot(run.answered)
    if run.results:
        drawn["load.svg"] = load_plot(run.results)
    if any(result.chain for result in run.results):
        drawn["chains.svg"] = chains_plot(run.results)
    return drawn


def response_plot(answered: Sequence[Timed]) -> str:
    """The share of requests that were within so many seconds."""
    series = [Series(name, shares(values)) for name in SHOWN if (values := values_of(answered, KINDS[name]))]
    longest_s = max(x for each in series for x, _ in each.points)
    return lines(
        series,
        Axes(title="Times of requests", x="seconds", y="share of requests within", max_x=longest_s, max_y=HEADROOM),
    )


def shares(values: Sequence[float]) -> list[tuple[float, float]]:
    """The steps of the share of the values that do not exceed x, from 0 on."""
    ordered = sorted(values)
    places = sorted({max(1, round(len(ordered) * part / NUM_POINTS)) for part in range(1, NUM_POINTS + 1)})
    steps = [(ordered[place - 1], place / len(ordered)) for place in places]
    before = [(0.0, 0.0), *steps]
    return [(0.0, 0.0), *(point for (_, y), step in zip(before, steps, strict=False) for point in ((step[0], y), step))]


def load_plot(results: Sequence[Timed]) -> str:
    """How many requests ran and waited at each moment."""
    ran, waited, unknown = [], [], []
    for result in results:
        place_s = _place_s(result)
        if place_s is None:
            unknown.append((result.arrival_s, _end_s(result)))
        else:
            waited.append((result.arrival_s, place_s))
            ran.append((place_s, _end_s(result)))
    kinds = [
        ("running on a chain", ran, None),
        ("waiting for a place", waited, COLOURS[1]),
        ("under way, of which no more is told", unknown, GREY),
    ]
    return _timeline("Requests at each moment", [kind for kind in kinds if kind[1]], results)


def chains_plot(results: Sequence[Timed]) -> str:
    """How many requests ran on each chain at each moment."""
    on: dict[Route, list[Interval]] = {}
    for result in results:
        if result.chain:
            begin_s = _place_s(result)
            on.setdefault(result.chain, []).append((result.arrival_s if begin_s is None else begin_s, _end_s(result)))
    ordered = sorted(on.items(), key=lambda item: -len(item[1]))
    kinds: list[tuple[str, list[Interval], str | None]] = [
        (chain_name(route), intervals, None) for route, intervals in ordered[:MAX_CHAINS]
    ]
    if others := [interval for _, intervals in ordered[MAX_CHAINS:] for interval in intervals]:
        kinds.append((f"{len(ordered) - MAX_CHAINS} other chains", others, GREY))
    return _timeline("Requests at each moment by their chain", kinds, results)


def _timeline(title: str, kinds: Sequence[tuple[str, list[Interval], str | None]], results: Sequence[Timed]) -> str:
    last_s = max(_end_s(result) for result in results)
    moments = [last_s * place / NUM_POINTS for place in range(NUM_POINTS + 1)]
    counts = [counts_at(moments, intervals) for _, intervals, _ in kinds]
    series = [
        Series(name, list(zip(moments, map(float, numbers), strict=True)), colour)
        for (name, _, colour), numbers in zip(kinds, counts, strict=True)
    ]
    most = max(map(sum, zip(*counts, strict=True)))
    return stacked(
        series, Axes(title=title, x="seconds from the first arrival", y="requests", max_x=last_s, max_y=HEADROOM * most)
    )


def counts_at(moments: Sequence[float], intervals: Sequence[Interval]) -> list[int]:
    """How many intervals [begin, end) hold each moment."""
    begins, ends = sorted(begin for begin, _ in intervals), sorted(end for _, end in intervals)
    return [bisect_right(begins, moment) - bisect_right(ends, moment) for moment in moments]


def _place_s(result: Timed) -> float | None:
    return None if result.waited_s is None else result.arrival_s + result.waited_s


def _end_s(result: Timed) -> float:
    return result.arrival_s + (result.total_s or 0.0)
