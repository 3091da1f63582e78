"""The commands themselves: help, completion, colours."""

import argparse
import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from hashlib import sha256

import pytest

from chainserve.types import Chain, Hop, PeerId, Span
from chainserve_client.cli import COMMANDS, answer_json, build_parser, main
from chainserve_client.colours import painted, wants_colours
from chainserve_client.completion import SHELLS
from chainserve_client.examples import EXAMPLES
from chainserve_client.generation import Generation
from chainserve_client.lifeline import Recovery


def commands() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


@pytest.mark.parametrize(
    ("name", "parser"), list(commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_has_examples_that_it_takes(name: str, parser: argparse.ArgumentParser) -> None:
    text = parser.format_help()
    assert "example" in text
    lines = re.findall(rf"^  chainserve {name}\b(.*)$", EXAMPLES.get(name, parser.epilog or ""), re.MULTILINE)
    assert lines
    for line in lines:
        words = re.split(r"\s{2,}|[|>#]", line)[0]
        parser.parse_args([word.strip("\"'") for word in re.findall(r"\"[^\"]*\"|'[^']*'|\S+", words)])


def test_every_command_is_carried_out_by_something() -> None:
    assert {name for name, _ in commands()} == COMMANDS.keys() | {"plan", "completion"}


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_is_a_script_of_the_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("gateway", "doctor", "max-new-tokens", "api-keys"):
        assert word in script
    if (program := shutil.which(shell)) is not None:
        checked = subprocess.run([program, "-n"], input=script, text=True, capture_output=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals_that_want_them() -> None:
    assert wants_colours(Terminal(), {"TERM": "xterm"})
    assert not wants_colours(Terminal(), {"NO_COLOR": "1"})
    assert not wants_colours(Terminal(), {"TERM": "dumb"})
    assert not wants_colours(io.StringIO(), {})
    assert painted("x", "red", with_colours=True) == "\x1b[31mx\x1b[0m"
    assert painted("x", "red", with_colours=False) == "x"


def test_a_key_as_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["api-key", "alice", "--json"]) == 0
    shown = capsys.readouterr()
    content = json.loads(shown.out)
    assert shown.err == ""
    assert content["name"] == "alice"
    assert sha256(content["key"].encode()).hexdigest() in content["toml"]


def test_an_answer_as_json_is_one_line_with_where_and_how_fast() -> None:
    answer = Generation(
        text="two\nlines",
        tokens=(1, 2, 3),
        finish_reason="stop",
        num_prompt_tokens=5,
        chain=Chain((Hop(PeerId("a"), Span(0, 4)),)),
        waited_s=0.25,
        first_token_s=1.0,
        total_s=2.0,
        recoveries=(Recovery(PeerId("b"), "gone", num_tokens=7, stall_s=0.5),),
    )
    line = answer_json(answer)
    assert "\n" not in line
    content = json.loads(line)
    assert content["text"] == "two\nlines"
    assert content["route"] == [{"peer": "a", "blocks": [0, 4]}]
    assert (content["tokens"], content["prompt_tokens"], content["tokens_per_s"]) == ([1, 2, 3], 5, 2.0)
    assert content["recoveries"][0]["peer"] == "b"


def test_a_token_is_read_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hf_secret\nmore"))
    assert main(["token", "-"]) == 2
    shown = capsys.readouterr()
    assert "this is a Hugging Face access token, not a join token" in shown.err
    assert "hf_secret" not in shown.err + shown.out
