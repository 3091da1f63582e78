"""Profiles on disk: measured once, again when damaged or of something else, and never by two at once."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES
from transformers import PretrainedConfig

from chainserve.models import profiles
from chainserve.models.profiles import default_folder, device_name, forget_profile, profile_of
from chainserve.planning.profile import BlockProfile, StepTimes

CPU = torch.device("cpu")
LLAMA, QWEN = FAMILIES["llama"], FAMILIES["qwen3"]
TIMES = StepTimes(
    forward_s=0.001, prefill=((8, 0.02), (32, 0.05)), decode=((1, 0.004), (2, 0.007)), head=((1, 0.003), (2, 0.004))
)
PROFILE = BlockProfile(
    times=TIMES, block_bytes=9, embedding_bytes=3, head_bytes=4, is_tied=False, token_bytes=2, activation_bytes=5
)


class Measure:
    """Stands for the measurement: every one finds a block one byte larger."""

    def __init__(self) -> None:
        self.num = 0
        self.meanwhile: Callable[[], object] = lambda: None

    def __call__(self, config: PretrainedConfig, **_: object) -> BlockProfile:
        self.num += 1
        self.meanwhile()
        return replace(PROFILE, block_bytes=self.num)


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> Measure:
    measured = Measure()
    monkeypatch.setattr(profiles, "measure", measured)
    return measured


def profile(folder: Path, config: PretrainedConfig = LLAMA, dtype: torch.dtype = torch.float32) -> BlockProfile:
    return profile_of(config, dtype=dtype, device=CPU, folder=folder)


def kept(folder: Path) -> Path:
    [path] = folder.glob("*.json")
    return path


def test_a_profile_is_measured_once(tmp_path: Path, measured: Measure) -> None:
    folder = tmp_path / "not" / "there"
    first = profile(folder)
    assert profile(folder) == first
    assert measured.num == 1
    assert sorted(path.name for path in folder.iterdir()) == sorted([kept(folder).name, "lock"])


def test_a_profile_that_was_forgotten_is_measured_again(tmp_path: Path, measured: Measure) -> None:
    forget_profile(LLAMA, dtype=torch.float32, device=CPU, folder=tmp_path)
    first, other = profile(tmp_path), profile(tmp_path, QWEN)
    forget_profile(LLAMA, dtype=torch.float32, device=CPU, folder=tmp_path)
    assert (profile(tmp_path), profile(tmp_path, QWEN)) == (replace(first, block_bytes=3), other)
    assert measured.num == 3


def test_each_model_dtype_device_and_version_has_its_own(
    tmp_path: Path, measured: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {profile(tmp_path), profile(tmp_path, QWEN), profile(tmp_path, dtype=torch.bfloat16)}
    with monkeypatch.context() as other:
        other.setattr(profiles, "device_name", lambda _device: "another CPU")
        found.add(profile(tmp_path))
    for library in (profiles.torch, profiles.transformers):
        with monkeypatch.context() as other:
            other.setattr(library, "__version__", "9.9")
            found.add(profile(tmp_path))
    with monkeypatch.context() as other:
        other.setattr(profiles, "MEASURING", profiles.MEASURING + 1)
        found.add(profile(tmp_path))
    assert measured.num == len(found) == 7
    assert profile(tmp_path) in found
    assert measured.num == 7


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "\x00\xff",
        lambda text: text.replace('"forward_s": 0.001', '"forward_s": -0.001'),
        lambda text: text.replace('"profile"', '"other"'),
        lambda text: text.replace(f'"measuring": "{profiles.MEASURING}"', '"measuring": "0"'),
    ],
)
def test_what_is_damaged_is_measured_again(tmp_path: Path, measured: Measure, damage: Callable[[str], str]) -> None:
    profile(tmp_path)
    text = kept(tmp_path).read_text()
    kept(tmp_path).write_text(damage(text), encoding="latin-1")
    assert profile(tmp_path).block_bytes == 2
    assert json.loads(kept(tmp_path).read_text())["profile"]["block_bytes"] == 2
    profile(tmp_path)
    assert measured.num == 2


def test_two_that_start_together_measure_once(tmp_path: Path, measured: Measure) -> None:
    started, found = threading.Event(), list[BlockProfile]()
    second = threading.Thread(target=lambda: (started.set(), found.append(profile(tmp_path))))

    def start_second() -> None:
        second.start()
        assert started.wait(10)

    measured.meanwhile = start_second
    found.append(profile(tmp_path))
    second.join(10)
    assert measured.num == 1
    assert found[0] == found[1]


def test_one_that_measures_for_too_long_is_not_waited_for(
    tmp_path: Path, measured: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "WAIT_S", 0.0)
    with profiles._alone(tmp_path):
        assert profile(tmp_path).block_bytes == 1


def test_where_nothing_can_be_kept_each_start_measures(
    tmp_path: Path, measured: Measure, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "file"
    folder.write_text("in the way")
    assert [profile(folder).block_bytes, profile(folder).block_bytes] == [1, 2]
    assert "is not kept at" in caplog.text


def test_profiles_are_kept_in_the_users_cache(tmp_path: Path, measured: Measure, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    profile_of(LLAMA, dtype=torch.float32, device=CPU)
    assert kept(tmp_path / "chainserve" / "profiles").parent == default_folder()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "chainserve" / "profiles"


def test_a_cpu_with_other_threads_is_another_device() -> None:
    before = torch.get_num_threads()
    names = set()
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        names.add(device_name(CPU))
    torch.set_num_threads(before)
    assert len(names) == 2
