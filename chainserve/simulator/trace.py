"""Traces in the format of the Azure LLM inference traces, read without numpy: who replays them may not have it."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens"


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of a trace; the first one arrives at 0 s."""

    arrival_s: float
    input_tokens: int
    output_tokens: int


def read_rows(lines: Iterable[str]) -> list[TraceRow]:
    """Requests of a trace, in the order of its lines.

    Columns TIMESTAMP (ISO 8601), ContextTokens, GeneratedTokens, with a line of headings (Patel et al., Splitwise).
    ValueError names the line that is not like that.
    """
    rows = iter(lines)
    if next(rows, "").strip() != HEAD:
        raise ValueError(f"not a trace: the first line has to be {HEAD}")
    found: list[TraceRow] = []
    began: datetime | None = None
    for number, row in enumerate(rows, start=2):
        try:
            timestamp, input_tokens, output_tokens = row.strip().split(",")
            time = datetime.fromisoformat(timestamp)
            began = began or time
            found.append(TraceRow((time - began).total_seconds(), int(input_tokens), int(output_tokens)))
        except (ValueError, TypeError) as error:  # TypeError: only one of two times names its zone
            raise ValueError(f"line {number} of the trace is {row.strip()!r}") from error
    return found
