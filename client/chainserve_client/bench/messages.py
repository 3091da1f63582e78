"""What a benchmark and its client processes tell each other, as lines of JSON.

Down come one `task` and, when all are ready, one `begin`; up come `ready` or `refused`, and then what an observer is
told: `sent`, `first`, `came` and `ended`. When the way down ends the client interrupts what it still has.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, assert_never

from chainserve_client.bench.aim import Aim
from chainserve_client.bench.load import Due
from chainserve_client.bench.run import Observer
from chainserve_client.bench.timing import from_plain

Kind = Literal["sent", "first", "came", "ended"]


def line(kind: str, value: Any = None) -> bytes:
    """One message."""
    return json.dumps([kind, value], separators=(",", ":")).encode() + b"\n"


def read(text: bytes) -> tuple[str, Any]:
    """The kind and value of a message."""
    kind, value = json.loads(text)
    return kind, value


def task(aim: Aim, load: Sequence[Due], *, client: int) -> dict[str, Any]:
    """What a client is to do."""
    return {"aim": asdict(aim), "load": [asdict(due) for due in load], "client": client}


def read_task(content: Mapping[str, Any]) -> tuple[Aim, list[Due], int]:
    """What `task` has written."""
    return Aim(**content["aim"]), [Due(**due) for due in content["load"]], content["client"]


def tell(observer: Observer, kind: Kind, value: Any) -> None:
    """Pass on what a client has observed."""
    match kind:
        case "sent":
            observer.sent()
        case "first":
            observer.first(value)
        case "came":
            observer.came(value)
        case "ended":
            observer.ended(from_plain(value))
        case _:
            assert_never(kind)
