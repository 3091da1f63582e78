"""Memory and speed of well-known graphics cards, so that a servers file can name one."""

from collections.abc import Mapping
from dataclasses import dataclass

from chainserve.errors import UsageError


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card: memory, half-precision dense matrix products accumulated in float32, memory bandwidth."""

    memory_gb: float
    teraflops: float
    gb_per_s: float


# From NVIDIA's data sheets and, for GeForce, its architecture papers (GA102, Ada, RTX Blackwell): at boost clock, and
# without sparsity (half of a sparse rate where a sheet has no other). H100 and V100 are the SXM ones.
GPUS: Mapping[str, Gpu] = {
    "RTX 3060": Gpu(12, 25.5, 360),
    "RTX 3090": Gpu(24, 71, 936),
    "RTX 4070": Gpu(12, 58.3, 504),
    "RTX 4080": Gpu(16, 97.5, 717),
    "RTX 4090": Gpu(24, 165.2, 1008),
    "RTX 5090": Gpu(32, 209.5, 1792),
    "RTX A6000": Gpu(48, 154.8, 768),
    "A10": Gpu(24, 125, 600),
    "A40": Gpu(48, 149.7, 696),
    "A100 40GB": Gpu(40, 312, 1555),
    "A100 80GB": Gpu(80, 312, 1935),
    "H100": Gpu(80, 989, 3350),
    "H100 PCIe": Gpu(80, 756, 2000),
    "L4": Gpu(24, 121, 300),
    "L40S": Gpu(48, 362, 864),
    "T4": Gpu(16, 65, 320),
    "V100 16GB": Gpu(16, 125, 900),
    "V100 32GB": Gpu(32, 125, 900),
}


def find_gpu(name: str) -> Gpu:
    """The card called `name`, whatever its case and spaces; UsageError lists those that are known."""
    for known, gpu in GPUS.items():
        if _plain(known) == _plain(name):
            return gpu
    raise UsageError(f"no GPU {name!r} is known: give memory, flops and bandwidth, or one of {', '.join(GPUS)}")


def _plain(name: str) -> str:
    words = name.lower().replace("-", " ").split()
    return "".join(word for word in words if word not in ("nvidia", "geforce", "tesla"))
