"""The devices of this machine, and what fits into their memory."""

from collections.abc import Sequence

import psutil
import torch

from chainserve.errors import DeviceError, OutOfMemoryError
from chainserve.models.profiles import default_folder
from chainserve.runtime.turns import Turns
from chainserve_server.config import FREE_GPU_SHARE, FREE_RAM_SHARE, MemoryRequest

MIN_CACHE_TOKENS = 512
"""A server whose cache holds less than this serves nobody."""


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


def turns_on(device: torch.device) -> Turns | None:
    """Turns with the other servers on this device; None where there are cores enough for another like this one."""
    if device.type == "cpu" and 2 * torch.get_num_threads() <= (psutil.cpu_count() or 1):
        return None
    name = device.type
    if device.type == "cuda":  # whose numbers are each process's own
        name = str(getattr(torch.cuda.get_device_properties(device), "uuid", device.index or 0))
    return Turns(default_folder().parent / f"computing-{name}")


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
    memory_bytes: int, *, weight_bytes: Sequence[int], activation_bytes: int, token_bytes: int, num_tokens: int
) -> int:
    """Tokens of cache that fit beside weights and activations, or OutOfMemoryError saying how many blocks would fit.

    `weight_bytes`: of the first block, of the first two, and so on up to all of them; `activation_bytes`: of the
    largest batch; `token_bytes`: cache per token and block; `num_tokens`: what is needed at least.
    """
    num_blocks, slot_bytes = len(weight_bytes), token_bytes * num_tokens
    budget = (memory_bytes - activation_bytes - weight_bytes[-1]) // (token_bytes * num_blocks)
    if budget >= num_tokens:
        return budget
    used = (activation_bytes + weights + slot_bytes * num for num, weights in enumerate(weight_bytes, start=1))
    fitting = sum(1 for num_bytes in used if num_bytes <= memory_bytes)
    needs = _needs(weight_bytes[-1], activation_bytes, slot_bytes * num_blocks, num_tokens=num_tokens)
    raise OutOfMemoryError(
        f"{num_blocks} blocks need {needs}, and {megabytes(memory_bytes)} are given: {fitting} blocks would fit"
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
