"""What cannot be done is one line on stderr and exit status 2, without a traceback."""

import asyncio
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bundled import MODEL, MakeSwarm

from chainserve.errors import NoChainError, PromptTooLongError, RequestError, TokenError, UsageError
from chainserve.swarm.token import JoinToken
from chainserve_client import AsyncClient, Client
from chainserve_server.cli import build_parser, config_of
from chainserve_server.prepare import prepare

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

SLOW_IMPORTS = ("torch", "transformers", "hivemind")


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    """A folder where a command fails if it imports what takes seconds."""
    for name in SLOW_IMPORTS:
        (tmp_path / f"{name}.py").write_text("raise AssertionError(f'{__name__} is imported')\n")
    return tmp_path


def refused(module: str, *arguments: str, folder: Path) -> str:
    """Run a command that is expected to refuse; returns the line it prints."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=60, cwd=folder, check=False
    )
    assert done.returncode == 2, done
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def server(folder: Path, *arguments: str, model: str = MODEL) -> str:
    identity = ("--identity", str(folder / "key"))
    return refused("chainserve_server.cli", "--model", model, *identity, *arguments, folder=folder)


@pytest.mark.parametrize("module", ["chainserve_server.cli", "chainserve_client.cli"])
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_a_command_introduces_itself_at_once(module: str, option: str, quick: Path) -> None:
    command = [sys.executable, "-m", module, option]
    assert "chainserve" in subprocess.run(command, capture_output=True, text=True, cwd=quick, check=True).stdout


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["--blocks", "5:5"], "not a span"),
        (["--blocks", "9:3"], "not a span"),
        (["--blocks", "auto:3"], "not a span"),
        (["--lease", "0"], "--lease"),
        (["--memory", "lots"], "not an amount of memory"),
        (["--device", "abacus"], "no device is called 'abacus'"),
        (["--port", "70000"], "not a port"),
        (["--host", "192.0.2.1"], "192.0.2.1"),
        (["--token-days", "-1"], "token"),
        (["--swarm", ""], "not a name for a swarm"),
        (["--join", "hf_abcdefgh"], "not a join token"),
        (["--join", "chainserve1.AAAA"], "join token"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_server_says_at_once_what_it_cannot_do(arguments: list[str], fact: str, quick: Path) -> None:
    assert fact in server(quick, *arguments)


@pytest.mark.parametrize(
    ("model", "fact"), [("no-such-model", "no-such-model"), ("./nowhere", "nowhere"), ("missing.gguf", "missing.gguf")]
)
def test_a_server_says_at_once_what_is_wrong_with_a_model(model: str, fact: str, quick: Path) -> None:
    assert fact in server(quick, model=model)


@pytest.mark.parametrize("below", [0, 1], ids=["for links", "for the DHT"])
def test_a_server_says_at_once_that_its_port_is_taken(below: int, quick: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} of 127.0.0.1 is in use" in server(quick, "--port", str(port - below))


def test_a_server_says_at_once_that_a_token_has_expired(quick: Path) -> None:
    peer = "Qm" + "a" * 44
    token = JoinToken("s", bytes(32), (f"/ip4/127.0.0.1/tcp/1/p2p/{peer}",), time.time() - 60)
    assert "expired" in server(quick, "--join", token.encode())


def test_a_server_says_at_once_that_those_it_joins_would_not_reach_it(quick: Path) -> None:
    token = JoinToken("s", bytes(32), (f"/ip4/192.0.2.7/tcp/1/p2p/Qm{'a' * 44}",))
    assert "192.0.2.7" in server(quick, "--join", token.encode())


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["--blocks", "all", "--memory", "80MB"], "blocks would fit"),
        (["--blocks", "0:9", "--memory", "5MB"], "0 blocks would fit"),
        (["--memory", "30MB"], "and 30 MB are given"),
        (["--device", "cuda"], "no device cuda"),
        (["--quant", "fp8"], "8.9 or newer .*cpu would only emulate it: take int8 or nf4"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_this_model_and_machine_cannot_do_is_found_out_before_joining(arguments: list[str], fact: str) -> None:
    with pytest.raises(UsageError, match=fact):
        prepare(config_of(build_parser().parse_args(["--model", MODEL, *arguments])))


def test_a_server_says_what_its_model_has_not(tmp_path: Path) -> None:
    assert "has blocks 0:30" in server(tmp_path, "--blocks", "0:31")


def test_a_server_says_that_nobody_answers(tmp_path: Path) -> None:
    peer = "QmfFdxdN9ommd6kRHgQYXTKVNVFyuZacm2SbRKfAaMbs8s"
    token = JoinToken("s", bytes(32), (f"/ip4/127.0.0.1/tcp/1/p2p/{peer}",), None)
    assert "127.0.0.1" in server(tmp_path, "--join", token.encode())


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["chat", "nonsense", "Hello"], "not a join token"),
        (["status", "nonsense"], "not a join token"),
        (["generate", "nonsense", "Hello", "--max-new-tokens", "0"], "max_new_tokens"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_client_says_at_once_what_it_cannot_do(arguments: list[str], fact: str, quick: Path) -> None:
    assert fact in refused("chainserve_client.cli", *arguments, folder=quick)


def test_a_client_in_a_program_refuses_a_bad_token() -> None:
    with pytest.raises(TokenError):
        Client.connect("nonsense")


async def test_a_request_that_cannot_be_served_is_a_named_error(make_swarm: MakeSwarm) -> None:
    swarm = await asyncio.to_thread(make_swarm, "0:10", "14:30", arguments=("--memory", "450MB"))
    async with await AsyncClient.connect(swarm.token) as client:
        with pytest.raises(NoChainError, match="blocks 10:14 of 30") as missing:
            await client.generate("Hello")
        assert missing.value.missing == (10, 11, 12, 13)

        await asyncio.to_thread(swarm.start, "10:14")
        await client.network.swarm.wait_for(lambda view: len(view.servers) == 3, timeout_s=10)
        limit = min(server.cache_tokens for server in client.network.swarm.view.servers.values())
        with pytest.raises(PromptTooLongError, match=f"at most {limit}:") as too_long:
            await client.generate([1] * limit, max_new_tokens=2)
        assert too_long.value.limit == limit
        for prompt in ("", [], [-1], [49152]):
            with pytest.raises(RequestError):
                await client.generate(prompt)
        with pytest.raises(RequestError, match="max_new_tokens"):
            await client.generate("Hello", max_new_tokens=0)
        with pytest.raises(RequestError, match="unknown parameter 'max_tokens'"):
            await client.generate("Hello", max_tokens=3)  # type: ignore[call-arg]
        assert (await client.generate("Hello", max_new_tokens=2)).tokens
