"""Profiles that were measured, kept on disk: a device is measured once per model, dtype, quantization and version."""

import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from transformers import PretrainedConfig

from chainserve.models.hub import atomic_file
from chainserve.models.measure import measure
from chainserve.models.names import INT8, NF4
from chainserve.models.quantize import quantization_of
from chainserve.models.source import digest_of
from chainserve.planning.profile import BlockProfile
from chainserve.runtime.turns import try_lock

logger = logging.getLogger(__name__)

MEASURING = 9
"""Another number for every change of what is measured or kept: profiles of an earlier one are measured again."""
WAIT_S = 60.0
"""For other processes of this machine that measure; then we measure beside them."""
POLL_S = 0.05


def profile_of(
    config: PretrainedConfig, *, dtype: torch.dtype, device: torch.device, folder: Path | None = None
) -> BlockProfile:
    """The profile of a model's blocks on a device: the one kept in `folder`, or measured now and kept.

    `folder` is `default_folder()` if None. Where nothing can be kept, that is logged, and each start measures.
    """
    folder = folder or default_folder()
    key = _key(config, dtype, device)
    path = folder / _file_name(key)
    if profile := _read(path, key):
        return profile
    with _alone(folder):
        if profile := _read(path, key):  # measured while we waited
            return profile
        profile = measure(config, dtype=dtype, device=device)
        try:
            with atomic_file(path) as file:
                file.write(json.dumps({"key": key, "profile": asdict(profile)}, indent=2).encode() + b"\n")
        except OSError as error:
            logger.warning("the profile is not kept at %s: %s", path, error.strerror)
    return profile


def forget_profile(
    config: PretrainedConfig, *, dtype: torch.dtype, device: torch.device, folder: Path | None = None
) -> None:
    """Keep what `profile_of` gives no longer: the next start measures again."""
    with suppress(OSError):
        ((folder or default_folder()) / _file_name(_key(config, dtype, device))).unlink(missing_ok=True)


def _key(config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> dict[str, str]:
    """All that a profile depends on."""
    key = {
        "model": digest_of(json.loads(config.to_json_string(use_diff=False)), ()),
        "dtype": str(dtype).removeprefix("torch."),
        "device": device_name(device),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "measuring": str(MEASURING),
    }
    if quantization_of(config) in (INT8, NF4):
        key["bitsandbytes"] = version("bitsandbytes")
    return key


def _file_name(key: dict[str, str]) -> str:
    return f"{sha256(json.dumps(key).encode()).hexdigest()[:16]}.json"


def default_folder() -> Path:
    """Where this user's profiles are."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "chainserve" / "profiles"


def device_name(device: torch.device) -> str:
    """What a device is called by its maker; of a CPU also how many threads torch runs on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with suppress(OSError), open("/proc/cpuinfo") as file:
        name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), name)
    return f"{name}, {torch.get_num_threads()} threads" if device.type == "cpu" else f"{name}, {device.type}"


def _read(path: Path, key: dict[str, str]) -> BlockProfile | None:
    """The profile kept at `path`; None if there is none, or if it is damaged or of something else."""
    try:
        kept = json.loads(path.read_bytes())
        return BlockProfile.from_fields(kept["profile"]) if kept["key"] == key else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("the profile %s cannot be read and is measured again: %s", path, error)
        return None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes of this machine from measuring at the same time, as both would seem slow."""
    with ExitStack() as held:
        with suppress(OSError):  # where nothing can be kept or locked, nobody waits
            folder.mkdir(parents=True, exist_ok=True)
            file = held.enter_context(open(folder / "lock", "wb"))
            deadline = time.monotonic() + WAIT_S
            while not try_lock(file) and time.monotonic() < deadline:
                time.sleep(POLL_S)
        yield
