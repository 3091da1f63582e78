"""Who may use the gateway, and how much.

The file holds the SHA-256 of each key: who reads it, or a backup of it, has no key. Keys are random and long, so that a
hash that is quick to compute gives nothing away.
"""

import hashlib
import hmac
import secrets
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chainserve.errors import UsageError
from chainserve_client.gateway.errors import ApiError

LIMITS = ("requests_per_minute", "concurrent_requests")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key by its hash. Limits are None where there are none."""

    name: str
    sha256: str
    requests_per_minute: int | None = None
    concurrent_requests: int | None = None


def new_key(name: str) -> tuple[str, str]:
    """A new key, and the table for the file of keys."""
    key = f"sk-{secrets.token_urlsafe(32)}"
    return key, f'[{name}]\nsha256 = "{_hash(key)}"\n'


def read_keys(path: Path) -> list[ApiKey]:
    """The keys of a TOML file, one table for each; UsageError says what is wrong with it."""
    try:
        tables = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read keys from {path}: {error}") from None
    if not tables:
        raise UsageError(f"{path} holds no keys: make one with `chainserve api-key NAME`")
    return [_key(name, table, path) for name, table in tables.items()]


def _key(name: str, table: Any, path: Path) -> ApiKey:
    if not isinstance(table, dict) or not _is_hash(table.get("sha256")):
        raise UsageError(f'{path}: [{name}] needs sha256 = "..." (make one with `chainserve api-key {name}`)')
    for limit, value in table.items():
        if limit not in (*LIMITS, "sha256"):
            raise UsageError(f"{path}: [{name}] knows no {limit} (only sha256, {', '.join(LIMITS)})")
        if limit in LIMITS and (type(value) is not int or value < 1):
            raise UsageError(f"{path}: {limit} of [{name}] must be an integer of at least 1")
    return ApiKey(name, **table)


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


class Keys:
    """Checks keys, and counts what each of them is used for."""

    def __init__(self, keys: Sequence[ApiKey], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._uses = {key.sha256: _Use(key, clock) for key in keys}

    @contextmanager
    def admit(self, authorization: str | None) -> Iterator[str]:
        """Let one request of this header's key through, whose name is given; ApiError if it may not pass."""
        found = self._known(authorization)
        with found.request():
            yield found.key.name

    def check(self, authorization: str | None) -> None:
        """ApiError unless this header's key is known. It counts as no request."""
        self._known(authorization)

    def _known(self, authorization: str | None) -> "_Use":
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _unauthorized("no API key was given: send it as 'Authorization: Bearer KEY'")
        given, found = _hash(key.strip()), None
        for sha256, use in self._uses.items():  # all of them, in constant time: how long it takes tells nothing
            if hmac.compare_digest(sha256, given):
                found = use
        if found is None:
            raise _unauthorized("the API key is not known here")
        return found


class _Use:
    """What one key is used for. Each minute's requests may come at once, and come back evenly (a token bucket)."""

    def __init__(self, key: ApiKey, clock: Callable[[], float]) -> None:
        self.key = key
        self._clock = clock
        self._num_running = 0
        self._num_left = float(key.requests_per_minute or 0)
        self._counted_s = clock()

    @contextmanager
    def request(self) -> Iterator[None]:
        self._count_rate()
        most = self.key.concurrent_requests
        if most is not None and self._num_running >= most:
            raise _too_many(f"{most} requests at once", retry_s=1.0)
        self._num_running += 1
        try:
            yield
        finally:
            self._num_running -= 1

    def _count_rate(self) -> None:
        per_minute, now_s = self.key.requests_per_minute, self._clock()
        if per_minute is None:
            return
        self._num_left = min(per_minute, self._num_left + (now_s - self._counted_s) * per_minute / 60)
        self._counted_s = now_s
        if self._num_left < 1:
            raise _too_many(f"{per_minute} requests per minute", retry_s=(1 - self._num_left) * 60 / per_minute)
        self._num_left -= 1


def _unauthorized(message: str) -> ApiError:
    return ApiError(message, status=401, kind="authentication_error", code="invalid_api_key")


def _too_many(limit: str, *, retry_s: float) -> ApiError:
    message = f"the API key's limit is reached: {limit}"
    return ApiError(message, status=429, kind="rate_limit_error", code="rate_limit_exceeded", retry_s=retry_s)
