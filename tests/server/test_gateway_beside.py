"""A gateway beside a server: what it is told, and that both know when the other is gone."""

import asyncio
import sys
from pathlib import Path

import pytest
from test_family_options import children

from chainserve.errors import UsageError
from chainserve_server.cli import build_parser, main
from chainserve_server.gateway_beside import GatewayBeside, arguments_of

ECHO = "import sys; line = sys.stdin.readline(); open(sys.argv[1], 'w').write(line); sys.stdin.read()"


def test_a_gateway_is_told_where_it_listens_and_whom_it_lets_in() -> None:
    def told(text: str) -> str:
        return " ".join(arguments_of(build_parser().parse_args(["--model", "m", *text.split()])))

    assert told("--gateway 8000") == "gateway - --leave-on-eof --host 127.0.0.1 --port 8000"
    open_ = told("--gateway 0 --gateway-host 0.0.0.0 --api-keys keys.toml --no-auth")
    assert open_.endswith("--host 0.0.0.0 --port 0 --api-keys keys.toml --no-auth")


def test_of_several_servers_the_first_one_has_the_gateway() -> None:
    told = [child.arguments for child in children("--num-servers 3 --gateway 8000 --no-auth")]
    assert ["--gateway" in arguments for arguments in told] == [True, False, False]


def test_it_is_told_the_token_and_leaves_with_the_server(tmp_path: Path) -> None:
    gateway = GatewayBeside([str(tmp_path / "token")], program=(sys.executable, "-c", ECHO))
    gateway.join("chainserve1.token")
    gateway.close()
    assert gateway._process.returncode is not None


async def test_its_end_is_said_and_before_it_has_joined_it_is_an_error() -> None:
    gateway = GatewayBeside([], program=(sys.executable, "-c", "raise SystemExit(3)"))
    said: list[str] = []
    await asyncio.wait_for(gateway.watch(said.append), 20)
    assert "status 3" in said[0]
    with pytest.raises(UsageError, match="status 3"):
        gateway.join("token")
    gateway.close()


@pytest.mark.slow
def test_a_gateway_that_may_not_be_keeps_the_server_from_starting(capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "smollm2-135m", "--gateway", "0", "--gateway-host", "0.0.0.0"]
    assert main([*options, "--memory", "400MB"]) == 2
    error = capfd.readouterr().err
    assert "--api-keys FILE" in error
    assert "the gateway did not start" in error
