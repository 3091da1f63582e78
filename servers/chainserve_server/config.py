"""What a server is told: checked once, at the edge."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

import psutil
import torch

from chainserve.errors import AddressError, DeviceError, OutOfMemoryError, UsageError
from chainserve.models.runner import MAX_BATCH_TOKENS
from chainserve.swarm.records import MAX_LEASE_S
from chainserve.types import Span

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
AUTO: Literal["auto"] = "auto"
ALL: Literal["all"] = "all"
MEMORY_FORMS = "give an amount as 6GB or 512MiB, a share of what the device has as 0.5 or 50%, or auto"
MIN_CACHE_TOKENS = 512
"""A server whose cache holds less than this serves nobody."""
FREE_GPU_SHARE = 0.9
"""Of a GPU's free memory, what `auto` takes: the rest is for the allocator's gaps and the driver."""
FREE_RAM_SHARE = 0.25
"""Of free RAM, what `auto` takes: others use this machine too, and so do the parts of a server that are no tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRequest:
    """How much memory a server may take: so many bytes, a share of what its device has, or part of what is free."""

    num_bytes: int | None = None
    share: float | None = None  # in (0, 1], of the device's memory in total

    def __post_init__(self) -> None:
        if self.num_bytes is not None and self.share is not None:
            raise ValueError(f"{self.num_bytes} bytes or a share of {self.share}, not both")
        if self.num_bytes is not None and self.num_bytes < 1:
            raise UsageError(f"a server cannot do with {self.num_bytes} bytes of memory; {MEMORY_FORMS}")
        if self.share is not None and not 0 < self.share <= 1:
            raise UsageError(f"a server cannot have {self.share:.4g} of the memory there is; {MEMORY_FORMS}")


AUTO_MEMORY = MemoryRequest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Everything `chainserve-server` was asked for."""

    model: str
    blocks: Span | Literal["all"] | None = None  # None: the swarm chooses
    join: str | None = None  # a token; None starts a swarm
    swarm: str = "chainserve"
    memory: MemoryRequest = AUTO_MEMORY
    dtype: str | None = None  # None: as the device likes
    device: str = "cpu"
    host: str = "127.0.0.1"
    port: int = 0  # for links; 0: the system chooses. The DHT listens on the next one.
    identity: Path | None = None
    token_days: float = 30.0  # how long the join tokens we print are good for
    max_batch_tokens: int = MAX_BATCH_TOKENS
    drain_s: float = 2.5  # for sessions to finish when we leave
    move_grace_s: float = 10.0  # and when we move to other blocks
    lease_s: float = 30.0  # how long our record counts

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65535:
            raise AddressError(
                f"not a port: {self.port} (want 1 to 65534, as the DHT takes the next one, or 0: the system chooses)"
            )
        if not 1 <= self.lease_s <= MAX_LEASE_S:
            raise UsageError(f"a record cannot count for {self.lease_s:g} s: give 1 to {MAX_LEASE_S:g} with --lease")
        if not self.token_days > 0:
            raise UsageError(f"a token cannot be good for {self.token_days:g} days: give more with --token-days")

    @property
    def dtype_name(self) -> str:
        """float32 on the CPU and bfloat16 on accelerators, if nothing was asked for."""
        return self.dtype or ("float32" if self.device == "cpu" else "bfloat16")


def parse_blocks(text: str) -> Span | Literal["all"] | None:
    """Read 'auto', 'all' or 'START:END'; SpanError if it is anything else."""
    if text == AUTO:
        return None
    return ALL if text == ALL else Span.parse(text)


def parse_memory(text: str) -> MemoryRequest:
    """Read '6GB', '512MiB', '6g' or a whole number of bytes, a share as '0.5' or '50%', or 'auto'.

    Without a unit, a number with a point is a share, so 1.0 is all, and one without is bytes. UsageError for anything
    else, for nothing, for more than all, and for a bare 1, which may be meant as either.
    """
    if (stripped := text.strip().lower()) == AUTO:
        return AUTO_MEMORY
    match = re.fullmatch(r"(-?)(\d+(?:\.\d*)?|\.\d+)\s*(%|(?:[kmg]i?)?b?)", stripped)
    if not match:
        raise UsageError(f"not an amount of memory: {text!r}; {MEMORY_FORMS}")
    sign, number, unit = match.groups()
    size = float(number)
    if sign or not size:
        raise UsageError(f"a server cannot do with {stripped} of memory; {MEMORY_FORMS}")
    if unit == "%" or (not unit and "." in number):
        share = size / 100 if unit else size
        if share > 1:
            raise UsageError(f"{stripped} is more than all of the memory there is; {MEMORY_FORMS}")
        return MemoryRequest(share=share)
    if not unit and size == 1:
        raise UsageError("1 may be one byte or all of the memory; give 1.0 or 100% for all, or an amount as 1GB")
    return MemoryRequest(num_bytes=int(size * UNITS[unit.removesuffix("b")]))


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


def resolve_memory(request: MemoryRequest, device: torch.device) -> int:
    """Bytes a server may take; OutOfMemoryError if the device has not that many, or not that many are free.

    To be called once, before anything is loaded: what a server has taken itself is no longer free.
    """
    free, total = device_memory(device)
    if request.num_bytes is not None:
        asked, share = request.num_bytes, ""
    elif request.share is not None:
        asked, share = int(total * request.share), f"{request.share:.4g} of what there is, "
    else:
        return default_memory(device)
    if asked > min(free, total):
        has = f"{megabytes(total)} altogether" if asked > total else f"{megabytes(free)} free of {megabytes(total)}"
        raise OutOfMemoryError(
            f"{share}{megabytes(asked)} are asked for, and {device} has {has}: give less with --memory, or auto"
        )
    return asked


def default_memory(device: torch.device) -> int:
    """Bytes a server takes when it was told nothing: most of a free GPU, a quarter of what else is free."""
    free, _ = device_memory(device)
    return int(free * (FREE_GPU_SHARE if device.type == "cuda" else FREE_RAM_SHARE))


def device_memory(device: torch.device) -> tuple[int, int]:
    """Bytes that are free on a device, and that it has in total."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    ram = psutil.virtual_memory()  # which MPS shares with the CPU
    return ram.available, ram.total


def cache_budget(
    memory_bytes: int, *, block_bytes: Sequence[int], activation_bytes: int, token_bytes: int, num_tokens: int
) -> int:
    """Tokens of cache that fit beside weights and activations, or OutOfMemoryError saying how many blocks would fit.

    `block_bytes`: weights of each block; `activation_bytes`: of the largest batch; `token_bytes`: cache per token and
    block; `num_tokens`: what is needed at least.
    """
    weight_bytes, slot_bytes = sum(block_bytes), token_bytes * num_tokens
    budget = (memory_bytes - activation_bytes - weight_bytes) // (token_bytes * len(block_bytes))
    if budget >= num_tokens:
        return budget
    used = accumulate((size + slot_bytes for size in block_bytes), initial=activation_bytes)
    fitting = max(sum(1 for num_bytes in used if num_bytes <= memory_bytes) - 1, 0)
    needs = _needs(weight_bytes, activation_bytes, slot_bytes * len(block_bytes), num_tokens=num_tokens)
    raise OutOfMemoryError(
        f"{len(block_bytes)} blocks need {needs}, and {megabytes(memory_bytes)} are given: {fitting} blocks would fit"
        + (", ask for fewer with --blocks" if fitting else ", give more with --memory")
    )


def check_one_block(
    memory_bytes: int, *, block_bytes: int, activation_bytes: int, token_bytes: int, slot_tokens: int
) -> None:
    """OutOfMemoryError unless one block fits with cache for one session of `slot_tokens` tokens.

    For a server whose blocks the swarm chooses. `block_bytes`: weights of a block; `activation_bytes`: of the largest
    batch; `token_bytes`: cache per token and block.
    """
    slot_bytes = token_bytes * slot_tokens
    if block_bytes + activation_bytes + slot_bytes > memory_bytes:
        needs = _needs(block_bytes, activation_bytes, slot_bytes, num_tokens=slot_tokens)
        raise OutOfMemoryError(
            f"one block needs {needs}, and {megabytes(memory_bytes)} are given: give more with --memory"
        )


def megabytes(num_bytes: int) -> str:
    """Bytes as people read them; exact below a megabyte, so that '--memory 16' shows as what it is."""
    return f"{num_bytes / 1e6:,.0f} MB" if num_bytes >= 10**6 else f"{num_bytes:,} bytes"


def _needs(weight_bytes: int, activation_bytes: int, cache_bytes: int, *, num_tokens: int) -> str:
    return (
        f"{megabytes(weight_bytes)} of weights, {megabytes(activation_bytes)} of activations and "
        f"{megabytes(cache_bytes)} of cache for {num_tokens:,} tokens, "
        f"{megabytes(weight_bytes + activation_bytes + cache_bytes)} together"
    )
