"""What this machine has, found out without importing torch: that takes seconds, and memory as long as we run."""

import subprocess
import sys
from collections.abc import Sequence

import psutil

from chainserve.errors import DeviceError
from chainserve_server.config import FREE_GPU_SHARE, FREE_RAM_SHARE

CUDA_CONTEXT_BYTES = 500_000_000
"""GPU memory that each process takes besides what it allocates. One's is no longer free when it looks what is."""


def cuda_devices() -> list[str]:
    """Names of all CUDA devices that torch sees."""
    return _ask_torch("devices").split()


def auto_memory(device: str, num_servers: int) -> int:
    """Bytes that each of so many servers on `device` can take; DeviceError if there is no such GPU."""
    if device.startswith("cuda"):
        num_bytes = int(int(_ask_torch("free", device)) * FREE_GPU_SHARE)
        num_bytes -= CUDA_CONTEXT_BYTES * (num_servers - 1)
    else:
        num_bytes = int(psutil.virtual_memory().available * FREE_RAM_SHARE)
    return max(1, num_bytes // num_servers)  # where that is too little the servers say how little


def _ask_torch(*question: str) -> str:
    """Have another process answer with `answer`; DeviceError with what it says if it cannot."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "chainserve_server.hardware", *question],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,  # on Ctrl-C we kill it, and it says nothing
        check=False,
    )
    if done.returncode:
        raise DeviceError((done.stderr.strip().splitlines() or ["torch does not tell what devices there are"])[-1])
    return done.stdout


def answer(question: Sequence[str]) -> str:
    """The devices there are, one a line, or the bytes that are free on one."""
    import torch

    devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    match question:
        case ["devices"]:
            return "\n".join(devices)
        case ["free", name]:
            if name not in [*devices, *(["cuda"] if devices else [])]:
                sys.exit(f"no device {name}; torch sees {', '.join(devices) or 'no CUDA device'} on this machine")
            return str(torch.cuda.mem_get_info(name)[0])
    raise AssertionError(question)


if __name__ == "__main__":
    sys.stdout.write(answer(sys.argv[1:]) + "\n")
