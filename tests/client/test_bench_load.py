"""What a benchmark sends when: drawn or from a trace, and the same by the same seed."""

from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from bench_asked import options

from chainserve.errors import UsageError
from chainserve_client.bench.load import Lengths, random_times
from chainserve_client.bench.options import check, load_of, settings_of
from chainserve_client.bench.prompts import token_prompt, word_prompt
from chainserve_client.bench.timing import summary

TRACE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:00:00.0000000,1000,10
2023-11-16 18:00:01.0000000,44,8
2023-11-16 18:00:01.5000000,3180,125
2023-11-16 18:00:05.0000000,7,300
"""


@pytest.fixture
def trace(tmp_path: Path) -> str:
    (tmp_path / "trace.csv").write_text(TRACE)
    return str(tmp_path / "trace.csv")


def deviation_of_gaps(times: list[float]) -> float:
    gaps = [after - before for before, after in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    squares = summary([(gap / mean - 1) ** 2 for gap in gaps])
    assert squares is not None
    return squares.mean**0.5


@pytest.mark.parametrize("shape", [0.25, 1.0, 4.0])
def test_requests_come_at_random_as_often_as_asked_in_bursts_or_not(shape: float) -> None:
    times = random_times(4000, rate=4.0, chance=Random(1), shape=shape)
    assert times == random_times(4000, rate=4.0, chance=Random(1), shape=shape)
    assert times[0] == 0
    assert times == sorted(times)
    assert 4000 / times[-1] == pytest.approx(4.0, rel=0.1)
    assert deviation_of_gaps(times) == pytest.approx(shape**-0.5, rel=0.15)


def test_a_trace_is_sent_as_it_was_recorded(trace: str) -> None:
    load = load_of(options("T", "--trace", trace, "--requests", "4"))
    assert [due.arrival_s for due in load] == [0.0, 1.0, 1.5, 5.0]
    assert [(due.num_input_tokens, due.num_output_tokens) for due in load] == [
        (1000, 10),
        (44, 8),
        (3180, 125),
        (7, 300),
    ]


def test_a_slice_of_a_trace_begins_at_once_and_comes_at_the_rate_asked(trace: str) -> None:
    load = load_of(options("T", "--trace", trace, "--requests", "3", "--first", "1", "--rate", "0.5"))
    assert [due.arrival_s for due in load] == pytest.approx([0.0, 0.5, 4.0])
    assert [due.index for due in load] == [0, 1, 2]
    assert load[0].num_input_tokens == 44


def test_lengths_may_come_from_a_trace_and_times_at_random(trace: str) -> None:
    words = ("T", "--trace", trace, "--requests", "4")
    load = load_of(options(*words, "--arrivals", "poisson", "--rate", "2"))
    drawn = load_of(options("T", "--requests", "4", "--rate", "2"))
    assert [due.arrival_s for due in load] == [due.arrival_s for due in drawn]
    assert load[2].num_input_tokens == 3180
    assert drawn[2].num_input_tokens == 32


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        (Lengths(), (3180, 125)),
        (Lengths(scale=0.1), (318, 13)),  # halves are rounded up
        (Lengths(scale=0.0001), (1, 1)),
        (Lengths(scale=0.01, min_output=8), (32, 8)),
        (Lengths(scale=2.0, max_input=4000, max_output=200), (4000, 200)),
        (Lengths(max_input=100, max_output=20), (100, 20)),
    ],
)
def test_lengths_are_scaled_and_kept_within_bounds(lengths: Lengths, expected: tuple[int, int]) -> None:
    assert lengths.of(3180, 125) == expected


@pytest.mark.parametrize(
    ("content", "words", "error"),
    [
        (TRACE, ("--requests", "5"), "the trace has 4 requests, 5 from 0 on"),
        (TRACE, ("--requests", "3", "--first", "2"), "3 from 2 on"),
        ("a,b\n1,2\n", (), "the first line has to be"),
        (TRACE + "2023-11-16 18:00:09,x,3\n", (), "line 6"),
        (TRACE + "2023-11-16 18:00:09+01:00,3,3\n", (), "line 6"),
    ],
)
def test_a_trace_that_cannot_be_sent_is_refused(
    tmp_path: Path, content: str, words: tuple[str, ...], error: str
) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(content)
    with pytest.raises(UsageError, match=error):
        load_of(options("T", "--trace", str(path), *words))


def test_a_trace_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.csv: No such file"):
        load_of(options("T", "--trace", str(tmp_path / "gone.csv")))


def test_prompts_have_the_length_asked_and_nothing_in_common() -> None:
    vocabulary = range(1000)
    prompts = [token_prompt(index, 40, seed=0, vocabulary=vocabulary) for index in range(50)]
    assert {len(prompt) for prompt in prompts} == {40}
    assert len({tuple(prompt[:3]) for prompt in prompts}) == 50
    assert prompts[7] == token_prompt(7, 40, seed=0, vocabulary=vocabulary)
    assert prompts[7] != token_prompt(7, 40, seed=1, vocabulary=vocabulary)


def test_prompts_may_share_their_beginning() -> None:
    first, second = (token_prompt(index, 40, seed=0, vocabulary=range(1000), num_shared=30) for index in (0, 1))
    assert first[:30] == second[:30]
    assert first[30:] != second[30:]
    assert len(first) == len(second) == 40
    assert len(token_prompt(0, 10, seed=0, vocabulary=range(1000), num_shared=30)) == 10


def test_words_are_as_many_as_asked_and_the_number_of_the_request() -> None:
    texts = [word_prompt(index, 4, seed=0) for index in range(20)]
    assert len(set(texts)) == 20
    assert {len(text.split()) for text in texts} == {5}
    assert texts[3].startswith("3. ")


def test_settings_name_no_paths_and_no_secrets(trace: str) -> None:
    given = options("secret-token", "--trace", trace, "--requests", "4", "--api-key", "secret-key")
    settings = settings_of(given, load_of(given))
    assert (settings["trace"], settings["rate"], settings["mean_input_tokens"]) == ("trace.csv", 0.6, 1057.75)
    assert "secret" not in str(settings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"token": None},
        {"url": "u", "model": "m"},
        {"token": None, "url": "u"},
        {"rate": 0.0},
        {"rate": float("nan")},
        {"requests": 0},
        {"output_tokens": 0},
        {"scale_tokens": -1.0},
        {"clients": 0},
        {"first": -1},
        {"timeout_s": 0.0},
        {"min_output": 5, "max_output": 4},
        {"arrivals": "trace"},
        {"arrivals": "gamma"},
        {"shape": 0.5},
        {"token": None, "url": "u", "model": "m", "dispatch": "petals"},
        {"token": None, "url": "u", "model": "m", "max_drafts": 0},
    ],
    ids=str,
)
def test_what_cannot_be_run_is_refused(wrong: dict[str, Any]) -> None:
    check(options("T"))
    with pytest.raises(UsageError):
        check(options("T", **wrong))
