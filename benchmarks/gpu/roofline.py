"""The device: its name, and how fast it reads its memory, which bounds how fast it decodes."""

import time

import torch


def read_bytes_per_s(device: torch.device) -> float:
    """What the device reads from its memory, by sums over a tensor that no cache holds."""
    data = torch.ones(2**30 if device.type == "cuda" else 2**27, dtype=torch.bfloat16, device=device)
    best = 0.0
    for _ in range(10):
        began = time.perf_counter()
        data.sum().item()
        best = max(best, data.nbytes / (time.perf_counter() - began))
    return best


def name_of(device: str) -> str:
    """What its maker calls it."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device
