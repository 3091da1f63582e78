"""The devices of this machine, and what fits into their memory."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from chainserve.errors import DeviceError, OutOfMemoryError
from chainserve_server import devices
from chainserve_server.config import parse_memory
from chainserve_server.devices import (
    cache_budget,
    check_device,
    check_one_block,
    default_memory,
    device_memory,
    resolve_memory,
    turns_on,
)

CPU = torch.device("cpu")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device with 8 GB, 6 of them free."""
    monkeypatch.setattr(devices, "device_memory", lambda _device: (6 * 10**9, 8 * 10**9))
    return CPU


def test_a_share_is_of_all_and_an_amount_is_what_it_says(device: torch.device) -> None:
    for text, num_bytes in (("0.5", 4 * 10**9), ("75%", 6 * 10**9), ("1GB", 10**9), ("6GB", 6 * 10**9)):
        assert resolve_memory(parse_memory(text), device) == num_bytes


def test_left_to_us_memory_is_part_of_what_is_free(device: torch.device) -> None:
    assert resolve_memory(parse_memory("auto"), device) == 1_500_000_000
    assert resolve_memory(parse_memory("auto"), torch.device("mps")) == 1_500_000_000
    assert resolve_memory(parse_memory("auto"), torch.device("cuda")) == 5_400_000_000


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("8.1GB", "8,100 MB are asked for, and cpu has 8,000 MB altogether: give less"),
        ("7GB", "7,000 MB are asked for, and cpu has 6,000 MB free of 8,000 MB: give less"),
        ("1.0", "1 of what there is, 8,000 MB are asked for, and cpu has 6,000 MB free of 8,000 MB"),
        ("76%", "0.76 of what there is, 6,080 MB are asked for, and cpu has 6,000 MB free"),
    ],
)
def test_more_memory_than_there_is_is_refused_with_the_numbers(text: str, fact: str, device: torch.device) -> None:
    with pytest.raises(OutOfMemoryError, match=re.escape(fact)):
        resolve_memory(parse_memory(text), device)


def test_a_real_device_says_what_it_has() -> None:
    free, total = device_memory(CPU)
    assert 0 < free <= total
    assert 0 < default_memory(CPU) < total


def test_the_cache_takes_what_weights_and_activations_leave() -> None:
    assert cache_budget(1000, weight_bytes=[100, 200], activation_bytes=0, token_bytes=2, num_tokens=10) == 200
    assert cache_budget(1000, weight_bytes=[100, 200], activation_bytes=41, token_bytes=2, num_tokens=10) == 189
    assert cache_budget(1000, weight_bytes=[150, 250], activation_bytes=41, token_bytes=2, num_tokens=10) == 177


@pytest.mark.parametrize(("memory", "fitting"), [(29, 0), (129, 0), (149, 0), (150, 1), (269, 1), (270, 2), (389, 2)])
def test_too_little_memory_says_how_many_blocks_would_fit(memory: int, fitting: int) -> None:
    way_out = "ask for fewer with --blocks" if fitting else "give more with --memory"
    with pytest.raises(OutOfMemoryError, match=f"3 blocks need .* {fitting} blocks would fit, {way_out}"):
        cache_budget(memory, weight_bytes=[100, 200, 300], activation_bytes=30, token_bytes=2, num_tokens=10)


@pytest.mark.parametrize(("memory", "fitting"), [(199, 0), (200, 1), (319, 1), (320, 2), (439, 2), (499, 2)])
def test_what_would_fit_is_without_the_head_that_comes_with_the_last_block(memory: int, fitting: int) -> None:
    with pytest.raises(OutOfMemoryError, match=f"3 blocks need 410 bytes of weights.* {fitting} blocks would fit"):
        cache_budget(memory, weight_bytes=[150, 250, 410], activation_bytes=30, token_bytes=2, num_tokens=10)


def test_too_little_memory_says_what_takes_it() -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        cache_budget(
            10**8,
            weight_bytes=[14 * 10**6 * num for num in range(1, 7)],
            activation_bytes=20 * 10**6,
            token_bytes=1500,
            num_tokens=2048,
        )
    assert str(caught.value) == (
        "6 blocks need 84 MB of weights, 20 MB of activations and 18 MB of cache for 2,048 tokens, 122 MB together, "
        "and 100 MB are given: 4 blocks would fit, ask for fewer with --blocks"
    )


def test_exactly_enough_memory_is_enough() -> None:
    assert cache_budget(390, weight_bytes=[100, 200, 300], activation_bytes=30, token_bytes=2, num_tokens=10) == 10
    check_one_block(140, block_bytes=100, activation_bytes=20, token_bytes=2, slot_tokens=10)


def test_a_server_without_room_for_one_block_is_told_what_it_takes() -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        check_one_block(
            30 * 10**6, block_bytes=14 * 10**6, activation_bytes=20 * 10**6, token_bytes=1536, slot_tokens=2048
        )
    assert str(caught.value) == (
        "one block needs 14 MB of weights, 20 MB of activations and 3 MB of cache for 2,048 tokens, 37 MB together, "
        "and 30 MB are given: give more with --memory"
    )
    with pytest.raises(OutOfMemoryError, match="139 bytes are given"):
        check_one_block(139, block_bytes=100, activation_bytes=20, token_bytes=2, slot_tokens=10)


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    assert str(check_device("cpu")) == "cpu"
    for name in ("cuda:99", "abacus"):
        with pytest.raises(DeviceError, match="this machine has cpu"):
            check_device(name)


@pytest.mark.parametrize(("num_threads", "takes_turns"), [(1, False), (2, False), (3, True), (4, True)])
def test_servers_that_use_most_cores_take_turns(
    monkeypatch: pytest.MonkeyPatch, num_threads: int, *, takes_turns: bool
) -> None:
    monkeypatch.setattr("psutil.cpu_count", lambda: 4)
    monkeypatch.setattr("torch.get_num_threads", lambda: num_threads)
    assert (turns_on(torch.device("cpu")) is not None) == takes_turns
    assert turns_on(torch.device("meta")) is not None, "of a GPU there is one"


@pytest.mark.parametrize(("properties", "name"), [({"uuid": "GPU-4f"}, "computing-GPU-4f"), ({}, "computing-1")])
def test_servers_on_the_same_gpu_take_turns_whatever_number_it_has_for_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, properties: dict[str, str], name: str
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _device: SimpleNamespace(**properties))
    monkeypatch.setattr("chainserve_server.devices.default_folder", lambda: tmp_path / "profiles")
    assert turns_on(torch.device("cuda:1")) is not None
    assert [file.name for file in tmp_path.iterdir()] == [name]
