"""`chainserve plan` from its arguments to what it prints."""

import json
from pathlib import Path

import pytest

from chainserve_client.cli import main

MODEL = "smollm2-135m"
SERVERS = """
[servers.alice]
gpu = "RTX 3060"
memory = "250MB"
round_trip = "20 ms"

[servers.bob]
memory = "300MB"
prefill = "30 us"
decode = "900 us"
round_trip = "60 ms"
"""


@pytest.fixture
def servers(tmp_path: Path) -> str:
    path = tmp_path / "servers.toml"
    path.write_text(SERVERS)
    return str(path)


@pytest.mark.slow
def test_the_bundled_model_is_planned_without_reading_its_weights(
    servers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--model", MODEL, "--servers", servers, "--rate", "0.05"]) == 0
    shown = capsys.readouterr()
    weights = "weights: 30 blocks of 7.08 MB, embedding 56.6 MB, head 56.6 MB (the same weights)"
    assert shown.out.startswith(f"smollm2-135m in bfloat16\n{weights}\n")
    assert "requests: 0.05 per second, 1,000 tokens in and 200 out" in shown.out
    assert "alice" in shown.out
    assert "bob" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 100
    assert shown.err == ""


@pytest.mark.slow
def test_json_is_one_document(servers: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--input-tokens", "50", "--output-tokens", "20", "--max-length", "512", "--dtype", "float16"]
    assert main(["plan", "--model", MODEL, "--servers", servers, "--json", *arguments]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["model"]["dtype"] == "float16"
    assert content["model"]["block_bytes"] == 7_080_192
    assert content["model"]["cache_bytes_per_token_and_block"] == 768
    assert content["demand"]["max_length"] == 512
    assert content["chains"][0]["hops"][0][1] == 0
    assert content["chains"][-1]["hops"][-1][2] == 30


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["--rate", "0"], "not a rate of requests"),
        (["--max-length", "0"], "raise --max-length"),
        (["--output-tokens", "0"], "both have to be at least 1"),
        (["--dtype", "float32"], "half precision only"),
        (["--servers", "/nowhere/servers.toml"], "cannot be read"),
        (["--model", "no-such-model"], "no model 'no-such-model'"),
    ],
)
def test_what_cannot_be_planned_is_one_line_and_status_2(
    arguments: list[str], fact: str, servers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--model", MODEL, "--servers", servers, *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert fact in shown.err


@pytest.mark.slow
def test_servers_without_room_are_told_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.toml"
    path.write_text('[servers.a]\ngpu = "T4"\nmemory = "100MB"\nround_trip = "1 ms"\n')
    assert main(["plan", "--model", MODEL, "--servers", str(path)]) == 2
    assert "no room for blocks" in capsys.readouterr().err
