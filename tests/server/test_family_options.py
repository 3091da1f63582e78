"""What each server of a family is told."""

import argparse
from collections.abc import Sequence

import pytest

from chainserve.errors import AddressError, DeviceError, UsageError
from chainserve_server.cli import build_parser
from chainserve_server.config import parse_memory
from chainserve_server.family_options import Child, asks_for_family, children_of

MODEL = ["--model", "m"]
GPUS = ("cuda:0", "cuda:1", "cuda:2")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    return build_parser().parse_args(arguments)


def children(text: str, *, gpus: Sequence[str] = GPUS, asked: list[tuple[str, int]] | None = None) -> list[Child]:
    """The children of a command, where each device has 12 GB to give."""

    def auto_memory(device: str, num_servers: int) -> int:
        (asked if asked is not None else []).append((device, num_servers))
        return 12 * 10**9 // num_servers

    arguments = MODEL + text.split()
    return children_of(parse(arguments), arguments, cuda_devices=lambda: gpus, auto_memory=auto_memory)


def told(text: str) -> list[tuple[str, str]]:
    """Names of the children, and of what they are told the part that is not the same for all commands."""
    start, end = MODEL, ["--leave-on-eof"]
    shown = []
    for child in children(text):
        words = list(child.arguments)
        assert words[: len(start)] == start
        assert words[-len(end) :] == end
        shown.append((child.name, " ".join(words[len(start) : -len(end)])))
    return shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", False),
        ("--device cuda:1", False),
        ("--gateway 8000", False),
        ("--num-servers 1", False),
        ("--num-servers 2", True),
        ("--num-servers 0", True),  # to be refused
        ("--devices all", True),
        ("--devices cuda:1", True),
    ],
)
def test_a_family_is_what_has_devices_or_several_servers(text: str, expected: bool) -> None:
    assert asks_for_family(parse(MODEL + text.split())) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--devices cuda:1", [("cuda:1", "--device cuda:1")]),
        ("--devices cuda:1 --blocks 0:10", [("cuda:1", "--blocks 0:10 --device cuda:1")]),
        ("--devices cuda:0,cuda:2", [("cuda:0", "--device cuda:0"), ("cuda:2", "--device cuda:2 --join -")]),
        (
            "--devices all",
            [
                ("cuda:0", "--device cuda:0"),
                ("cuda:1", "--device cuda:1 --join -"),
                ("cuda:2", "--device cuda:2 --join -"),
            ],
        ),
        (
            "--devices cuda:0,cpu --memory 6GB",
            [("cuda:0", "--device cuda:0 --memory 6GB"), ("cpu", "--device cpu --memory 6GB --join -")],
        ),
        (
            "--devices cuda:0,cuda:1 --memory auto",
            [("cuda:0", "--device cuda:0 --memory auto"), ("cuda:1", "--device cuda:1 --memory auto --join -")],
        ),
        (
            "--devices cuda:0,cuda:1 --memory 6GB,4GiB",
            [("cuda:0", "--device cuda:0 --memory 6GB"), ("cuda:1", "--device cuda:1 --memory 4GiB --join -")],
        ),
        (
            "--num-servers 2 --memory 300MB",
            [("1", "--memory 300MB"), ("2", "--memory 300MB --join -")],
        ),
        (
            "--num-servers 3 --memory=300MB,250MB,90MB",
            [("1", "--memory 300MB"), ("2", "--memory 250MB --join -"), ("3", "--memory 90MB --join -")],
        ),
        (
            "--num-servers 2 --device cuda:1 --memory 6GB",
            [("1", "--device cuda:1 --memory 6GB"), ("2", "--device cuda:1 --memory 6GB --join -")],
        ),
        (
            "--num-servers 2 --memory 6GB --port 8300",
            [("1", "--memory 6GB --port 8300"), ("2", "--memory 6GB --port 8302 --join -")],
        ),
        (
            "--num-servers 3 --memory 6GB --identity keys/me.key",
            [
                ("1", "--memory 6GB --identity keys/me.key"),
                ("2", "--memory 6GB --identity keys/me.key.1 --join -"),
                ("3", "--memory 6GB --identity keys/me.key.2 --join -"),
            ],
        ),
        (
            "--devices cuda:0,cuda:1 --join chainserve1.abc",
            [("cuda:0", "--device cuda:0 --join -"), ("cuda:1", "--device cuda:1 --join -")],
        ),
        (
            "--devices cuda:0,cuda:1 --join -",
            [("cuda:0", "--device cuda:0 --join -"), ("cuda:1", "--device cuda:1 --join -")],
        ),
        (
            "--verbose --num-s 2 --swarm=--port --memo 1GB --token-days 3 --blocks auto --host 10.0.0.5",
            [
                ("1", "--verbose --swarm=--port --token-days 3 --blocks auto --host 10.0.0.5 --memory 1GB"),
                ("2", "--verbose --swarm=--port --token-days 3 --blocks auto --host 10.0.0.5 --memory 1GB --join -"),
            ],
        ),
    ],
)
def test_each_server_gets_its_own_and_what_is_for_all(text: str, expected: list[tuple[str, str]]) -> None:
    assert told(text) == expected


@pytest.mark.parametrize(
    ("text", "amounts", "asked"),
    [
        ("--num-servers 3", ["4000000000B"] * 3, [("cpu", 3)]),
        ("--num-servers 4 --device cuda:1 --memory auto", ["3000000000B"] * 4, [("cuda:1", 4)]),
        ("--num-servers 3 --memory auto,1GB,AUTO", ["4000000000B", "1GB", "4000000000B"], [("cpu", 3)]),
        ("--num-servers 2 --memory 0.5", ["25.0000%"] * 2, []),
        ("--num-servers 3 --memory 50%", ["16.6667%"] * 3, []),
        ("--num-servers 2 --memory 1.0,.4", ["50.0000%", "20.0000%"], []),
        ("--num-servers 2 --memory 1000000", ["1000000"] * 2, []),
        ("--num-servers 2 --memory 150%,1.5", ["150%", "1.5"], []),  # to be refused by the server
        ("--num-servers 2 --memory 1.5GB,lots", ["1.5GB", "lots"], []),
        ("--devices cuda:0", [None], []),
        ("--devices cuda:0,cuda:1", [None, None], []),
        ("--devices cuda:0,cuda:1 --memory 50%,auto", ["50%", "auto"], []),
    ],
)
def test_on_one_device_what_is_no_fixed_amount_is_divided(
    text: str, amounts: list[str | None], asked: list[tuple[str, int]]
) -> None:
    questions: list[tuple[str, int]] = []
    options = [parse(child.arguments) for child in children(text, asked=questions)]
    assert [option.memory for option in options] == amounts
    assert questions == asked


def test_the_amounts_of_a_family_are_amounts() -> None:
    for child in children("--num-servers 3 --memory auto,0.5,50%"):
        parse_memory(parse(child.arguments).memory)


@pytest.mark.parametrize(
    ("text", "error", "fact"),
    [
        ("--num-servers 0", UsageError, "at least one"),
        ("--num-servers -2", UsageError, "at least one"),
        ("--num-servers 2 --blocks 0:10", UsageError, "--blocks 0:10 is for one server"),
        ("--devices all --blocks all", UsageError, "--blocks all is for one server"),
        ("--devices cuda:0 --num-servers 2", UsageError, "N of them on one --device"),
        ("--devices cuda:0 --device cpu", UsageError, "one of the two"),
        ("--devices cuda:0,,cuda:1", UsageError, "commas"),
        ("--devices=", UsageError, "commas"),
        ("--devices cuda:0,cuda:1,cuda:0", UsageError, "names cuda:0 2 times: --device cuda:0 --num-servers 2"),
        ("--devices cuda,cuda:0", UsageError, "names cuda:0 2 times"),
        ("--num-servers 3 --memory 1GB,2GB", UsageError, "2 amounts for 3 servers"),
        ("--devices cuda:0,cuda:1 --memory 1GB,2GB,3GB", UsageError, "3 amounts for 2 servers"),
        ("--num-servers 3 --memory 1GB --port 65531", AddressError, "up to 65536"),
    ],
)
def test_what_makes_no_sense_for_several_servers_is_refused(text: str, error: type[UsageError], fact: str) -> None:
    with pytest.raises(error, match=fact):
        children(text)


def test_the_last_ports_can_be_used() -> None:
    assert children("--num-servers 3 --memory 1GB --port 65530")


def test_all_devices_of_a_machine_without_any_are_refused() -> None:
    with pytest.raises(DeviceError, match="no CUDA device"):
        children("--devices all", gpus=())


def test_what_children_are_told_can_be_parsed_and_makes_no_family() -> None:
    for child in children("--devices all --memory 1GB --port 8300 --identity k --join -"):
        options = parse(child.arguments)
        assert not asks_for_family(options)
        assert options.leave_on_eof


def test_each_server_shows_its_metrics_at_a_port_of_its_own_and_the_token_is_the_parents_to_keep() -> None:
    shown = dict(told("--num-servers 2 --metrics-port 9400 --token-file here"))
    assert [words.split("--metrics-port ")[1].split()[0] for words in shown.values()] == ["9400", "9401"]
    assert not any("--token-file" in words for words in shown.values())
    assert all("--metrics-port 0" in words for _, words in told("--num-servers 2 --metrics-port 0"))
