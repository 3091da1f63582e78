"""Amounts as people write and read them: '24GB', '82 TFLOPS', '20 ms'."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from chainserve.errors import UsageError

_DECIMAL = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15}
_BINARY = {"ki": 2.0**10, "mi": 2.0**20, "gi": 2.0**30, "ti": 2.0**40}
_NUMBER = re.compile(r"(\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*(\D\S*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Quantity:
    """One kind of amount: what it is called, an example, and its units in small letters."""

    name: str
    example: str
    units: Mapping[str, float]

    def parse(self, text: str) -> float:
        """The amount in bytes, seconds or per second; UsageError if it has another unit, or none."""
        match = _NUMBER.fullmatch(text.strip().lower())
        factor = self.units.get(match[2]) if match else None
        if match is None or factor is None:
            raise UsageError(f"{text!r} is not {self.name} (want for example {self.example!r})")
        return float(match[1]) * factor


MEMORY = Quantity("an amount of memory", "24GB", {f"{p}b": f for p, f in (_DECIMAL | _BINARY).items()})
COMPUTING = Quantity("a speed of computing", "82 TFLOPS", {f"{p}flops": f for p, f in _DECIMAL.items()})
BANDWIDTH = Quantity("a memory bandwidth", "1008 GB/s", {f"{p}b/s": f for p, f in _DECIMAL.items()})
DURATION = Quantity("a duration", "20 ms", {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9})


def format_bytes(num_bytes: float) -> str:
    """'7.08 MB': three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{_three_digits(num_bytes)} {unit}"
        num_bytes /= 1000
    return f"{_three_digits(num_bytes)} TB"


def format_part(part_bytes: float, whole_bytes: float) -> str:
    """'212 of 300 MB', or '900 kB of 1.20 GB'."""
    part, whole = format_bytes(part_bytes), format_bytes(whole_bytes)
    number, unit = part.split()
    return f"{number if whole.endswith(' ' + unit) else part} of {whole}"


def format_seconds(seconds: float) -> str:
    """'12.3 ms' or '4.56 s': three digits."""
    return f"{_three_digits(seconds)} s" if seconds >= 0.9995 else f"{_three_digits(seconds * 1000)} ms"


def format_age(seconds: float) -> str:
    """'3 d 4 h', '2 h 5 min', '7 min', '12 s': what matters of a long time."""
    seconds = max(0.0, seconds)  # clocks of two machines differ
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{int(seconds)} s"


def _three_digits(value: float) -> str:
    decimals = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 2)}f}"
