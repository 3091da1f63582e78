"""What this machine has, without importing torch."""

from types import SimpleNamespace

import psutil
import pytest

from chainserve.errors import DeviceError
from chainserve_server import hardware
from chainserve_server.hardware import auto_memory, cuda_devices


@pytest.mark.parametrize(
    ("device", "num_servers", "each"),
    [
        ("cuda:1", 1, 9_000_000_000),
        ("cuda:1", 4, 1_875_000_000),  # three more contexts than were there when it was measured
        ("cuda", 100, 1),
        ("cpu", 1, 10_000_000_000),
        ("cpu", 4, 2_500_000_000),
        ("mps", 4, 2_500_000_000),
        ("abacus", 4, 2_500_000_000),  # the servers refuse it
    ],
)
def test_servers_on_one_device_get_equal_parts(
    device: str, num_servers: int, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=40 * 10**9))
    monkeypatch.setattr(hardware, "_ask_torch", lambda *question: {("free", device): "10000000000\n"}[question])
    assert auto_memory(device, num_servers) == each


@pytest.mark.process
def test_cuda_devices_are_named_as_torch_names_them() -> None:
    devices = cuda_devices()
    assert devices == [f"cuda:{i}" for i in range(len(devices))]


@pytest.mark.process
def test_a_gpu_that_is_not_there_is_said_in_one_line() -> None:
    with pytest.raises(DeviceError, match=r"^no device cuda:99; torch sees [^\n]* on this machine$"):
        auto_memory("cuda:99", 2)
