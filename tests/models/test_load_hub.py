"""Weights from the hub, by byte range: only what is needed, only once."""

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hub_server import COMMIT, FakeHub, serve
from huggingface_hub import constants, snapshot_download
from tiny_checkpoints import assert_same_weights, load, save, tiny_llama
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GenerationConfig, PreTrainedTokenizerFast

from chainserve.errors import ModelNotFoundError, WeightsError
from chainserve.models import hub, ranges
from chainserve.models.resolve import resolve
from chainserve.types import Span


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    folder = save(tiny_llama(), tmp_path / "repo", max_shard_size="2MB")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a")))
    tokenizer.save_pretrained(folder)
    GenerationConfig(temperature=0.5, do_sample=True).save_pretrained(folder)
    with serve(FakeHub(folder)) as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(ranges, "FIRST_DELAY_S", 0.01)
        yield fake


def test_downloads_little_more_than_the_blocks_asked_for(fake_hub: FakeHub) -> None:
    source = resolve("org/tiny")
    assert source.name == "org/tiny"
    part, report = load(source, Span(2, 4))
    assert_same_weights(part, tiny_llama())
    assert report.bytes_downloaded == fake_hub.weight_bytes
    assert report.bytes_of_blocks < report.bytes_downloaded <= 1.02 * report.bytes_of_blocks
    assert report.bytes_read == report.bytes_of_blocks


def test_asks_for_neighbouring_tensors_together(fake_hub: FakeHub) -> None:
    source = resolve("org/tiny")
    num_header_requests = len(fake_hub.weight_requests)
    _, report = load(source, Span(0, 1))
    assert report.num_tensors == 9
    assert len(fake_hub.weight_requests) - num_header_requests <= 2


def test_groups_neighbours_up_to_a_limit(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    infos = list(resolve("org/tiny").tensors.values())
    monkeypatch.setattr(hub, "RUN_BYTES", 300_000)
    runs = hub.neighbours(reversed(infos))
    assert sorted((info for run in runs for info in run), key=str) == sorted(infos, key=str)
    for run in runs:
        assert len(run) == 1 or run[-1].end - run[0].offset <= 300_000
        assert all(a.end == b.offset and a.file == b.file for a, b in pairwise(run))
    assert len(runs) < len(infos)


def test_a_restart_downloads_nothing(fake_hub: FakeHub) -> None:
    load(resolve("org/tiny"), Span(0, 2))
    before = fake_hub.weight_bytes
    part, report = load(resolve("org/tiny"), Span(0, 2))
    assert_same_weights(part, tiny_llama())
    assert (fake_hub.weight_bytes, report.bytes_downloaded) == (before, 0)
    assert report.bytes_of_blocks < report.bytes_read <= 1.02 * report.bytes_of_blocks


def test_a_restart_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_hub: FakeHub) -> None:
    load(resolve("org/tiny"), Span(0, 2), embed=True)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    part, _ = load(resolve("org/tiny"), Span(0, 2), embed=True)
    assert_same_weights(part, tiny_llama())


def test_downloads_only_what_an_interruption_left_out(fake_hub: FakeHub, tmp_path: Path) -> None:
    load(resolve("org/tiny"), Span(0, 1))
    kept = sorted((tmp_path / "home").rglob("*.bin"))
    kept[0].write_bytes(kept[0].read_bytes()[:-1])
    kept[1].unlink()
    part, report = load(resolve("org/tiny"), Span(0, 1))
    assert_same_weights(part, tiny_llama())
    lost = {kept[0].name.removesuffix(".bin"), kept[1].name.removesuffix(".bin")}
    assert report.bytes_downloaded == sum(tiny_llama().state_dict()[name].nbytes for name in lost)


def test_resumes_where_an_answer_broke_off(fake_hub: FakeHub) -> None:
    source = resolve("org/tiny")
    fake_hub.num_breaks = 3
    before = fake_hub.weight_bytes
    part, report = load(source, Span(0, 3))
    assert fake_hub.num_breaks == 0
    assert_same_weights(part, tiny_llama())
    assert fake_hub.weight_bytes - before == report.bytes_of_blocks


def test_gives_up_after_some_attempts(fake_hub: FakeHub, tmp_path: Path) -> None:
    source = resolve("org/tiny")
    fake_hub.num_breaks = 1000
    with pytest.raises(WeightsError, match="broke off 6 times"):
        load(source, Span(0, 3))
    assert not list((tmp_path / "home").rglob("tmp*"))
    fake_hub.num_breaks = 0
    load(source, Span(0, 3))


def test_refuses_a_server_that_would_send_everything(fake_hub: FakeHub) -> None:
    fake_hub.ignores_ranges = True
    with pytest.raises(WeightsError, match="ignores ranges: download the model"):
        resolve("org/tiny")


def test_reads_a_model_that_lies_in_the_hubs_cache(fake_hub: FakeHub, tmp_path: Path) -> None:
    snapshot_download("org/tiny", endpoint=fake_hub.address, cache_dir=tmp_path / "cache")
    before = fake_hub.weight_bytes
    part, report = load(resolve("org/tiny"), Span(0, 2))
    assert_same_weights(part, tiny_llama())
    assert (fake_hub.weight_bytes, report.bytes_downloaded) == (before, 0)


def test_has_the_tokenizer_and_defaults_of_the_repository(fake_hub: FakeHub) -> None:
    source = resolve("org/tiny")
    assert source.tokenizer().get_vocab() == {"a": 0, "b": 1}
    defaults = source.generation_config()
    assert defaults is not None
    assert defaults.temperature == 0.5


def test_digest_is_that_of_the_same_model_in_a_folder(fake_hub: FakeHub) -> None:
    assert resolve("org/tiny").digest == resolve(str(fake_hub.folder)).digest


@pytest.mark.parametrize("name", ["org/absent", "org/tiny@absent", "org/ti--ny"])
def test_says_that_there_is_no_such_model(fake_hub: FakeHub, name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=f"the hub has no model {name} for us: check the name"):
        resolve(name)


def test_takes_a_revision(fake_hub: FakeHub) -> None:
    assert resolve(f"org/tiny@{COMMIT}").num_blocks == 6
    assert resolve("org/tiny@main").name == "org/tiny@main"


def test_says_that_a_repository_has_no_safetensors(fake_hub: FakeHub) -> None:
    for file in fake_hub.folder.glob("*.safetensors*"):
        file.unlink()
    with pytest.raises(ModelNotFoundError, match=r"model\.safetensors is not there"):
        resolve("org/tiny")


def test_says_that_the_hub_does_not_answer(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelNotFoundError) as caught:
        resolve("org/tiny")
    assert "\n" not in str(caught.value)
    assert "try again, or give a local folder" in str(caught.value)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def be_interrupted() -> None:
        with hub.atomic_file(tmp_path / "x") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        be_interrupted()
    assert os.listdir(tmp_path) == []


def test_converts_while_reading(fake_hub: FakeHub) -> None:
    part, _ = load(resolve("org/tiny"), Span(0, 1), head=True, dtype=torch.bfloat16)
    assert_same_weights(part, tiny_llama())
