"""What this machine has: packages, devices, memory, disk, ports. Needs torch only to look at devices."""

import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from chainserve import __version__
from chainserve_client.doctor.finding import Finding, failed, note, ok, warning
from chainserve_client.units import format_bytes

SERVER_PACKAGES = ("torch", "transformers", "hivemind")
LEAST_MEMORY_BYTES = 1e9
LEAST_DISK_BYTES = 5e9
SERVE = "to serve blocks as well: pip install 'chainserve[server]'"


def packages() -> Finding:
    """Which of our parts can run here."""
    found = {name: _version(name) for name in SERVER_PACKAGES}
    python = f"chainserve {__version__}, Python {sys.version.split()[0]}"
    missing = [name for name, found_version in found.items() if found_version is None]
    if missing:
        return note("versions", f"{python}; no {', '.join(missing)}: this machine can ask, and not serve", SERVE)
    return ok("versions", ", ".join([python, *(f"{name} {found_version}" for name, found_version in found.items())]))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def can_serve() -> bool:
    """Whether what a server takes is installed."""
    return all(find_spec(name) is not None for name in SERVER_PACKAGES)


def devices(wanted: str | None) -> Iterator[Finding]:
    """The GPUs that torch sees and can compute on, or the device that is `wanted`; a fact where there is none."""
    import torch

    match (wanted or "").partition(":")[0]:
        case "cpu":
            yield _cpu_only("blocks run")
        case "mps":
            has_mps = torch.backends.mps.is_available()
            yield ok("device", "mps") if has_mps else failed("device", "torch sees no MPS", "give another --device")
        case "cuda" | "" if torch.cuda.is_available():
            yield from _gpus(wanted)
        case "cuda":
            yield _no_cuda(f"torch {torch.__version__} sees no CUDA device")
        case "" if _has_nvidia():
            yield _no_cuda(f"there is an NVIDIA GPU, and torch {torch.__version__} does not see it")
        case "" if torch.backends.mps.is_available():
            yield ok("device", "mps: use it with --device mps")
        case "":
            yield _cpu_only("no GPU: blocks run")
        case _:
            yield failed("device", f"no device is called {wanted!r}", "give cpu, cuda, cuda:1 or mps")


def _cpu_only(fact: str) -> Finding:
    return note("device", f"{fact} on {os.cpu_count()} CPU cores, many times slower than on a GPU")


def _gpus(wanted: str | None) -> Iterator[Finding]:
    import torch

    names = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    wanted = "cuda:0" if wanted == "cuda" else wanted
    chosen = [name for name in names if wanted in (None, name)]
    if not chosen:
        yield failed("device", f"there is no {wanted}", f"give one of {', '.join(names)}")
    for name in chosen:
        yield _gpu(name)
    yield _compiler()


def _has_nvidia() -> bool:
    return shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()


def _no_cuda(fact: str) -> Finding:
    return failed(
        "device",
        fact,
        "install NVIDIA's driver, and the build of torch for it (pytorch.org says which); `nvidia-smi` shows whether "
        "the driver works",
    )


def _gpu(name: str) -> Finding:
    import torch

    title = f"{name}: {torch.cuda.get_device_name(name)}"
    try:
        free, total = torch.cuda.mem_get_info(name)
        ones = torch.ones(64, 64, device=name)
        if float((ones @ ones).sum()) != 64**3:
            return failed("device", f"{title} computes wrongly", "reboot, and test the card's memory")
    except RuntimeError as error:  # torch's own: out of memory, or no kernels for this card
        reason = str(error).splitlines()[0]
        return failed("device", f"{title} cannot be used: {reason}", "end what else uses the card, or update torch")
    fact = f"{title}, {format_bytes(free)} free of {format_bytes(total)}"
    if free < total / 2:
        return warning("device", fact, "other programs hold more than half of it: `nvidia-smi` shows which")
    return ok("device", fact)


def _compiler() -> Finding:
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("gcc", "clang", "cc")), None)
    if compiler is None:
        return warning(
            "compiler", "no C compiler: small batches will be slow on the GPU", "install one: apt install gcc"
        )
    return ok("compiler", compiler)


def memory(available: Callable[[], tuple[int, int]] | None = None) -> Finding:
    """RAM that is free."""
    free, total = (available or _ram)()
    fact = f"{format_bytes(free)} free of {format_bytes(total)}"
    if free < LEAST_MEMORY_BYTES:
        return failed("memory", fact, "end other programs: a server takes about 1 GB besides its blocks")
    return ok("memory", fact)


def _ram() -> tuple[int, int]:
    """Bytes free and in total."""
    if find_spec("psutil") is not None:
        import psutil

        ram = psutil.virtual_memory()
        return ram.available, ram.total
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page


def disk(folder: Path | None = None, *, needed_bytes: int = 0) -> Finding:
    """Room for weights where they are kept; `needed_bytes` are those of the whole model."""
    folder = folder or cache_folder()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    fact = f"{format_bytes(free)} free at {folder}"
    advice = "free some, or keep models elsewhere: set HF_HOME to a folder on another disk"
    if not os.access(there, os.W_OK):
        return failed("disk", f"{folder} cannot be written to", "set HF_HOME to a folder that can be")
    if free < needed_bytes:
        whole = f"{fact}; the whole model takes {format_bytes(needed_bytes)}, a server downloads its own blocks only"
        return warning("disk", whole, advice)
    if free < LEAST_DISK_BYTES:
        return warning("disk", fact, advice)
    return ok("disk", fact)


def cache_folder() -> Path:
    """Where the hub's library keeps models."""
    kept = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(kept).expanduser()


def ports(host: str, port: int) -> Finding:
    """Whether a server could listen here: one port for links, and for the DHT the next one."""
    for number in (port, port + 1):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
            if os.name != "nt":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, number))
            except PermissionError:
                return failed("ports", f"{host}:{number} is not ours to use", "give a --port above 1023")
            except OSError as error:
                advice = "give another --port, or a --host that this machine has; 0.0.0.0 stands for all of them"
                return failed("ports", f"cannot listen at {host}:{number}: {error.strerror}", advice)
    return ok("ports", f"{host}:{port} and {port + 1} are free")
