"""One command for several servers of this machine: what each of them is told."""

import argparse
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chainserve.errors import AddressError, DeviceError, UsageError

CudaDevices = Callable[[], Sequence[str]]
AutoMemory = Callable[[str, int], int]
"""A device, and the number of servers that are to share it, to the bytes that each of them can take."""

PER_SERVER = (
    "--device",
    "--devices",
    "--num-servers",
    "--memory",
    "--port",
    "--metrics-port",
    "--identity",
    "--join",
    "--token-file",
    "--gateway",
)
PORTS_PER_SERVER = 2  # links and DHT
LAST_PORT = 65_535


@dataclass(frozen=True, slots=True)
class Child:
    """One server of a family: what its lines are marked with, and its command line after the program."""

    name: str
    arguments: tuple[str, ...]


def asks_for_family(options: argparse.Namespace) -> bool:
    """Whether the command starts servers as children of its own, instead of being one."""
    return options.devices is not None or options.num_servers != 1


def children_of(
    options: argparse.Namespace, arguments: Sequence[str], *, cuda_devices: CudaDevices, auto_memory: AutoMemory
) -> list[Child]:
    """What the servers are told that `arguments`, parsed as `options`, ask for; UsageError if that cannot be.

    What is not a matter of the single server is passed on as it was written. Children leave when their standard input
    ends; they read the join token from there, except for the first one where no token is given.
    """
    given, shared = _split(arguments)
    if options.devices is None:
        names = [str(number) for number in range(1, options.num_servers + 1)]
        devices = [given.device] * options.num_servers  # None: whatever the server itself takes
    else:
        names = devices = _devices(options, given, cuda_devices)
    num_servers = len(names)
    if num_servers < 1:
        raise UsageError(f"--num-servers {num_servers}: at least one is needed")
    if num_servers > 1 and options.blocks not in (None, "auto"):
        raise UsageError(f"--blocks {options.blocks} is for one server: leave it out, and the swarm chooses")
    amounts = _for_each(options.memory, num_servers)
    if options.devices is None:
        amounts = _divided(amounts, lambda: auto_memory(options.device, num_servers))
    ports = _ports(options.port, num_servers)
    children = []
    for i, (name, device, amount, port) in enumerate(zip(names, devices, amounts, ports, strict=True)):
        own = {
            "--device": device,
            "--memory": amount,
            "--port": port,
            "--metrics-port": options.metrics_port and options.metrics_port + i,
            "--identity": options.identity and str(_numbered(options.identity, i)),
            "--join": "-" if i or options.join else None,
            "--gateway": None if i else options.gateway,
        }
        told = [word for option, value in own.items() if value is not None for word in (option, str(value))]
        children.append(Child(name, (*shared, *told, "--leave-on-eof")))
    return children


def _split(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options that differ between servers as they were written (None: not given), and all other arguments."""
    parser = argparse.ArgumentParser(add_help=False)
    for option in PER_SERVER:
        parser.add_argument(option)
    return parser.parse_known_args(arguments)


def _devices(options: argparse.Namespace, given: argparse.Namespace, cuda_devices: CudaDevices) -> list[str]:
    if given.device is not None:
        raise UsageError(f"--device {given.device} and --devices {options.devices}: give one of the two")
    if given.num_servers is not None:
        raise UsageError("--devices starts one server on each device; --num-servers N is for N of them on one --device")
    if options.devices == "all":
        devices = list(cuda_devices())
        if not devices:
            raise DeviceError("--devices all: torch sees no CUDA device on this machine")
        return devices
    devices = [device.strip() for device in options.devices.split(",")]
    if not all(devices):
        raise UsageError(
            f"--devices {options.devices!r}: want names with commas between them, as cuda:0,cuda:1, or all"
        )
    [(device, times)] = Counter("cuda:0" if device == "cuda" else device for device in devices).most_common(1)
    if times > 1:
        raise UsageError(f"--devices names {device} {times} times: --device {device} --num-servers {times} does that")
    return devices


def _for_each(memory: str | None, num_servers: int) -> list[str | None]:
    """Each server's `--memory` as it was written (None: not given)."""
    amounts: list[str | None] = [None] if memory is None else [amount.strip() for amount in memory.split(",")]
    if len(amounts) not in (1, num_servers):
        raise UsageError(
            f"--memory {memory} has {len(amounts)} amounts for {num_servers} servers: give one for each, or one for all"
        )
    return amounts * (num_servers // len(amounts))


def _divided(amounts: Sequence[str | None], auto: Callable[[], int]) -> list[str | None]:
    """The amounts of servers on one device: what is a part of what the device has, they share.

    `auto` is measured once, before any of them starts: each by itself would find what the others have left.
    """
    num_servers = len(amounts)
    if num_servers == 1:
        return list(amounts)
    autos = {amount for amount in amounts if amount is None or amount.lower() == "auto"}
    each = f"{auto()}B" if autos else None
    return [each if amount in autos else amount and _divided_share(amount, num_servers) for amount in amounts]


def _divided_share(amount: str, num_servers: int) -> str:
    """A share of a device (0.5 or 50%) divided; any other amount as it is."""
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(%?)", amount)
    if match is None or not (match[2] or "." in match[1]):
        return amount
    percent = float(match[1]) * (1 if match[2] else 100)
    return f"{percent / num_servers:.4f}%" if percent <= 100 else amount  # which the server will refuse


def _ports(port: int, num_servers: int) -> list[int | None]:
    """Each server's `--port`, or None where the system chooses."""
    if not port:
        return [None] * num_servers
    ports: list[int | None] = [port + PORTS_PER_SERVER * i for i in range(num_servers)]
    if (last := port + PORTS_PER_SERVER * num_servers - 1) > LAST_PORT:
        raise AddressError(f"{num_servers} servers from --port {port} on take the ports up to {last}: start lower")
    return ports


def _numbered(identity: Path, i: int) -> Path:
    return identity.with_name(f"{identity.name}.{i}") if i else identity
