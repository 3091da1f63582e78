"""What times of requests come to, and how it is written down."""

import csv
import io
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from chainserve.types import PeerId
from chainserve_client.bench import output
from chainserve_client.bench.figures import Run, figures_of
from chainserve_client.bench.plots import counts_at, plots_of, shares
from chainserve_client.bench.report import to_content, to_csv, to_markdown, to_text
from chainserve_client.bench.svg import ticks
from chainserve_client.bench.timing import Change, Timed, fairness, from_plain, percentile, summary, to_plain
from chainserve_client.token_session import HopTime

FAST, SLOW = (("QmFast", 0, 8),), (("QmSlow", 0, 5), ("QmLast", 5, 8))


def timed(index: int, *, total_s: float = 4.0, waited_s: float | None = 1.0, **more: object) -> Timed:
    usual: dict[str, object] = {"first_s": 2.0, "num_input_tokens": 6, "num_tokens": 4, "chain": FAST}
    given = usual | more
    return Timed(index=index, arrival_s=float(index), total_s=total_s, waited_s=waited_s, **given)  # type: ignore[arg-type]


RUN = Run(
    results=(
        timed(0),
        timed(1, total_s=6.0, waited_s=3.0, client=1, chain=SLOW, retries=1, between_s=(0.5, 1.5)),
        timed(2, total_s=9.0, waited_s=None, error="QmFast: lost", chain=()),
    ),
    num_due=3,
)


@pytest.mark.parametrize(("share", "expected"), [(0.95, 95), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_a_percentile_is_a_value_that_was_seen(share: float, expected: float) -> None:
    assert percentile([float(value) for value in range(1, 101)], share) == expected
    assert percentile([7.0], share) == 7.0


def test_of_no_values_there_is_no_summary_and_no_fairness() -> None:
    assert summary([]) is None
    assert fairness([]) is None
    assert fairness([0.0]) is None


def test_fairness_is_one_where_all_have_the_same_and_little_where_one_has_everything() -> None:
    assert fairness([3.0, 3.0, 3.0]) == pytest.approx(1.0)
    assert fairness([0.0, 0.0, 0.0, 5.0]) == pytest.approx(0.25)


def test_times_and_throughput_are_of_those_that_were_answered() -> None:
    figures = figures_of(RUN)
    response, service = figures.summary["total_s"], figures.summary["service_s"]
    assert response is not None
    assert service is not None
    assert (response.mean, response.max, service.mean) == (5.0, 6.0, 3.0)
    assert (figures.num_sent, figures.num_answered, figures.num_retried) == (3, 2, 1)
    assert figures.took_s == 11.0
    assert figures.tokens_per_s == pytest.approx(8 / 11)
    assert figures.errors == {"QmFast: lost": 1}
    assert {route: share.num_requests for route, share in figures.chains.items()} == {FAST: 1, SLOW: 1}
    assert figures.fairness_of_clients["slowdown"] == pytest.approx(fairness([4 / 3, 2.0]))
    assert figures_of(Run(results=RUN.results[:1], num_due=1)).fairness_of_clients["slowdown"] is None


def test_text_says_what_failed_and_what_was_interrupted() -> None:
    text = to_text(Run(results=RUN.results, num_due=10, is_interrupted=True))
    assert "2 of 3 requests were answered" in text
    assert "7 of 10 were not sent" in text
    assert "1 request went on over another chain" in text
    assert "failed: QmFast: lost" in text
    assert "QmSlow 0:5 > QmLast 5:8" in text


def test_a_run_of_which_nothing_came_is_told_too() -> None:
    empty = Run(results=(), num_due=2, is_interrupted=True)
    assert "0 of 0 requests" in to_text(empty)
    assert plots_of(empty) == {}
    failed = Run(results=(timed(0, total_s=0.0, waited_s=None, error="x", chain=()),), num_due=1)
    assert set(plots_of(failed)) == {"load.svg"}


def test_a_request_is_the_same_after_it_was_written_down() -> None:
    request = timed(
        3, hops=(HopTime(PeerId("QmFast"), 0.25, 0.5),), changes=(Change("QmSlow", "lost", 2.5),), between_s=(0.125,)
    )
    assert from_plain(json.loads(json.dumps(to_plain(request)))) == request
    assert to_plain(request)["service_s"] == 3.0


def test_the_folder_holds_everything(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    output.prepare(folder)
    output.write(folder, RUN, {"rate": 2.0, "model": None})
    assert {path.name for path in folder.iterdir()} == {
        "report.json",
        "report.md",
        "requests.csv",
        "response.svg",
        "load.svg",
        "chains.svg",
    }
    content = json.loads((folder / "report.json").read_text())
    assert content["settings"] == {"rate": 2.0, "model": None}
    assert content["requests"][1]["chain"] == [["QmSlow", 0, 5], ["QmLast", 5, 8]]
    assert content["chains"][0]["chain"] == [["QmFast", 0, 8]]
    page = (folder / "report.md").read_text()
    assert "| response | 5.0000 | 5.0000 | 6.0000 | 6.0000 | 6.0000 |" in page
    for name in ("response", "load", "chains"):
        assert f"({name}.svg)" in page
        root = ElementTree.parse(folder / f"{name}.svg").getroot()
        assert root.tag.endswith("svg")


def test_names_of_others_do_no_harm_in_plots_and_pages() -> None:
    nasty = Run(results=(timed(0, chain=(("<b>&|x", 0, 8),)), timed(1, error="a|b\x1b[2J")), num_due=2)
    for text in plots_of(nasty).values():
        ElementTree.fromstring(text)
    page = to_markdown(nasty, {}, plots=[])
    assert "a\\|b?[2J" in page
    assert "\x1b" not in to_text(nasty)


def test_there_is_a_line_of_csv_for_each_request() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(RUN))))
    assert [row["index"] for row in rows] == ["0", "1", "2"]
    assert (rows[1]["between_mean_s"], rows[1]["between_max_s"]) == ("1.0", "1.5")
    assert (rows[0]["service_s"], rows[2]["service_s"], rows[2]["error"]) == ("3.0", "", "QmFast: lost")


def test_json_holds_no_numbers_that_are_none() -> None:
    json.dumps(to_content(RUN, {}), allow_nan=False)


@pytest.mark.parametrize(("top", "expected"), [(1.0, 0.2), (16.0, 5.0), (0.0, None), (41.5, 10.0), (3.0, 0.5)])
def test_ticks_are_round(top: float, expected: float | None) -> None:
    found = ticks(top)
    assert found[0] == 0.0
    assert found[-1] <= top
    if expected is not None:
        assert found[1] == pytest.approx(expected)
        assert 4 <= len(found) <= 8


def test_the_share_within_a_time_grows_in_steps() -> None:
    points = shares([3.0, 1.0])
    assert points == [(0.0, 0.0), (1.0, 0.0), (1.0, 0.5), (3.0, 0.5), (3.0, 1.0)]
    many = shares([float(value) for value in range(10_000)])
    assert many[-1] == (9999.0, 1.0)
    assert len(many) < 2000


def test_intervals_count_from_their_begin_to_before_their_end() -> None:
    assert counts_at([0.0, 1.0, 2.0, 3.0], [(1.0, 3.0), (2.0, 3.0), (2.0, 2.0)]) == [0, 1, 2, 0]
