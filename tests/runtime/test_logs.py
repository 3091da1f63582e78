"""Logs as JSON."""

import json
import logging

from chainserve.runtime.logs import JsonFormatter, entry


def record(message: str, *values: object, error: BaseException | None = None) -> logging.LogRecord:
    info = None if error is None else (type(error), error, error.__traceback__)
    made = logging.LogRecord("some.where", logging.WARNING, __file__, 1, message, values, info)
    made.created = 1.5
    return made


def test_a_record_is_one_line_whatever_is_in_it() -> None:
    line = JsonFormatter().format(record('two\nlines, "%s"', "é"))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:01.500Z",
        "level": "warning",
        "logger": "some.where",
        "message": 'two\nlines, "é"',
    }


def test_an_error_is_told_with_its_trace() -> None:
    try:
        raise ValueError("why")
    except ValueError as error:
        line = JsonFormatter().format(record("failed", error=error))
    assert json.loads(line)["error"].endswith("ValueError: why")


def test_what_is_said_has_the_time_it_is_said() -> None:
    assert entry("hello", logger="here", at_s=0.0)["time"] == "1970-01-01T00:00:00.000Z"
    assert entry("hello", logger="here")["time"] > "2020"
