"""Logs as lines of JSON, for those who collect them."""

import json
import logging
import time
from typing import TypedDict


class Entry(TypedDict, total=False):
    """What a line holds."""

    time: str
    level: str
    logger: str
    message: str
    error: str


def entry(message: str, *, level: str = "info", logger: str, at_s: float | None = None) -> Entry:
    """A line's content; `at_s` is in unix seconds, now if None."""
    at_s = time.time() if at_s is None else at_s
    when = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(at_s))}.{int(at_s % 1 * 1000):03d}Z"
    return Entry(time=when, level=level, logger=logger, message=message)


class JsonFormatter(logging.Formatter):
    """One line per record, whatever is in it."""

    def format(self, record: logging.LogRecord) -> str:
        line = entry(record.getMessage(), level=record.levelname.lower(), logger=record.name, at_s=record.created)
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(*, is_verbose: bool, as_json: bool) -> None:
    """Log to stderr: warnings, or with `is_verbose` everything that happens."""
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if as_json else plain)
    logging.basicConfig(level=logging.INFO if is_verbose else logging.WARNING, handlers=[handler])
