"""What a server is told: checked once, at the edge."""

import re
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from chainserve.errors import AddressError, DeviceError, OutOfMemoryError, UsageError
from chainserve.types import Span

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
MIN_CACHE_TOKENS = 512
"""A server whose cache holds less than this serves nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Everything `chainserve-server` was asked for."""

    model: str
    blocks: Span | None = None  # None: the whole model
    join: str | None = None  # a token; None starts a swarm
    swarm: str = "chainserve"
    memory_bytes: int | None = None  # None: a share of what the device has free
    dtype: str | None = None  # None: as the device likes
    device: str = "cpu"
    host: str = "127.0.0.1"
    port: int = 0  # for links; 0: the system chooses. The DHT listens on the next one.
    identity: Path | None = None
    token_days: float = 30.0  # how long the join tokens we print are good for
    max_batch_tokens: int = 1024
    drain_s: float = 2.5

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65535:
            raise AddressError(
                f"not a port: {self.port} (want 1 to 65534, as the DHT takes the next one, or 0: the system chooses)"
            )
        if not self.token_days > 0:
            raise UsageError(f"a token cannot be good for {self.token_days:g} days: give more with --token-days")

    @property
    def dtype_name(self) -> str:
        """float32 on the CPU and bfloat16 on accelerators, if nothing was asked for."""
        return self.dtype or ("float32" if self.device == "cpu" else "bfloat16")


def parse_bytes(text: str) -> int:
    """Read '6GB', '512MiB', '6g' or a plain number of bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?|)b?", text.strip().lower())
    if not match:
        raise UsageError(f"not an amount of memory: {text!r} (want for example 6GB, 512MiB or a number of bytes)")
    return int(float(match[1]) * UNITS[match[2]])


def check_device(name: str) -> torch.device:
    """The device called `name`; DeviceError with the ones there are if this machine does not have it."""
    known = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        known.append("mps")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"no device is called {name!r}; this machine has {', '.join(known)}") from None
    index = device.index or 0
    if f"{device.type}:{index}" not in known and not (index == 0 and device.type in known):
        reason = " (torch sees no CUDA device)" if device.type == "cuda" and len(known) == 1 else ""
        raise DeviceError(f"no device {name}{reason}; this machine has {', '.join(known)}")
    return device


def default_memory(device: torch.device) -> int:
    """Bytes a server takes when it was told nothing: most of a free GPU, a quarter of what else is free."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * 0.9)
    return int(psutil.virtual_memory().available * 0.25)


def cache_budget(memory_bytes: int, *, block_bytes: list[int], token_bytes: int, num_tokens: int) -> int:
    """Tokens of cache that fit beside the weights, or OutOfMemoryError saying how many blocks would fit.

    `block_bytes`: weights of each block; `token_bytes`: cache per token and block; `num_tokens`: what is needed
    at least.
    """
    left = memory_bytes - sum(block_bytes)
    budget = left // (token_bytes * len(block_bytes))
    if budget >= num_tokens:
        return budget
    fitting, used = 0, 0
    for size in block_bytes:
        used += size + token_bytes * num_tokens
        if used > memory_bytes:
            break
        fitting += 1
    needed = sum(block_bytes) + token_bytes * num_tokens * len(block_bytes)
    raise OutOfMemoryError(
        f"{len(block_bytes)} blocks need {needed / 1e6:.0f} MB (weights, and cache for {num_tokens} tokens) and "
        f"{memory_bytes / 1e6:.0f} MB are given: {fitting} blocks would fit"
        + (", ask for fewer with --blocks" if fitting else ", give more with --memory")
    )
