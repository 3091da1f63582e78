"""Byte ranges of files over HTTP, through the hub library's own session (its proxies, certificates and tokens)."""

import re
import time
from collections.abc import Iterator
from typing import Any

from huggingface_hub import get_session
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers

from chainserve.errors import ModelNotFoundError, WeightsError

MAX_ATTEMPTS = 6
FIRST_DELAY_S = 1.0
"""Doubles with each attempt."""
QUIET_S = 120.0
"""A range is given up when no byte of it came for this long."""
TIMEOUT_S = 30.0


def read_range(url: str, start: int, end: int) -> Iterator[bytes]:
    """Yield the bytes [start, end) of `url` as they come, resuming after a network error where it broke off.

    ModelNotFoundError if the file is not there for us; WeightsError if the server does not do ranges, or
    after MAX_ATTEMPTS network errors, or QUIET_S without a byte.
    """
    last_byte_s = time.monotonic()
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            for piece in _request(url, start, end):
                start += len(piece)
                last_byte_s = time.monotonic()
                yield piece
            return
        except OfflineModeIsEnabled as error:
            raise WeightsError(f"{url} is not on this disk, and HF_HUB_OFFLINE forbids to fetch it") from error
        except HTTPError as error:
            if attempt == MAX_ATTEMPTS or time.monotonic() - last_byte_s > QUIET_S:
                raise WeightsError(
                    f"{url} broke off {attempt} times ({error!r}): start again, what has come so far is kept"
                ) from error
        time.sleep(FIRST_DELAY_S * 2 ** (attempt - 1))


def _request(url: str, start: int, end: int) -> Iterator[bytes]:
    """One request for a range that is not empty; the library's HTTPError if the network or the server fails."""
    if start == end:
        return
    # Bytes as they are in the file: with a compressed answer, ranges would mean something else.
    headers = {**build_hf_headers(), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S) as response:
        _check(response, url, start, end)
        yield from response.iter_bytes()


def _check(response: Any, url: str, start: int, end: int) -> None:
    """Whether the answer brings exactly this range."""
    status = response.status_code
    if status in (408, 429) or status >= 500:
        response.raise_for_status()
    if status in (401, 403, 404):
        raise ModelNotFoundError(f"{url} is not there for us (HTTP {status}): check the name, or set HF_TOKEN")
    if status == 200:
        raise WeightsError(f"{url} comes only whole, its server ignores ranges: download the model and give its folder")
    wanted = re.fullmatch(rf"bytes {start}-{end - 1}/(\d+|\*)", response.headers.get("content-range", ""))
    if status != 206 or not wanted or response.headers.get("content-length") != str(end - start):
        raise WeightsError(f"{url} does not have bytes {start} to {end} (HTTP {status}): its header or server is wrong")
