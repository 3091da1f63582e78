"""Network namespaces, one a host: made, entered, and removed again whatever happens."""

import ctypes
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

FOLDER = Path("/var/run/netns")
PREFIX = "chainserve"
SUBNET = "10.77.0"
CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def why_not() -> str | None:
    """What keeps this process from making namespaces with TUN devices; None if it can."""
    if os.geteuid() != 0:
        return "network namespaces take root"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "there is no /dev/net/tun"
    return None


def address(number: int) -> str:
    """Of the host of this number, from 0 on."""
    return f"{SUBNET}.{number + 1}"


@contextmanager
def namespaces(count: int) -> Iterator[tuple[str, ...]]:
    """Names of new namespaces, each with its loopback up; all are gone at the end."""
    sweep()
    names = tuple(f"{PREFIX}-{os.getpid()}-{number}" for number in range(count))
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        remove(names)


def remove(names: Sequence[str]) -> None:
    """Those of them that there are, with what still runs there: daemons outlive servers that are killed."""
    for name in names:
        if (FOLDER / name).exists():
            end_processes(name)
            ip("netns", "delete", name)


def sweep() -> None:
    """Remove what a run that was killed has left behind."""
    if not FOLDER.exists():
        return
    for path in FOLDER.iterdir():
        match = re.fullmatch(rf"{PREFIX}-(\d+)-\d+", path.name)
        if match and not Path("/proc", match[1]).exists():
            remove([path.name])


def end_processes(name: str) -> None:
    """Kill all that runs in a namespace."""
    for process in ip("netns", "pids", name).split():
        with suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)


def enter(name: str) -> None:
    """Take this process, and what it starts from now on, into a namespace. OSError if that cannot be."""
    with open(FOLDER / name) as file:
        _set_namespace(file.fileno())


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Be in a namespace for a moment: what is opened there stays there."""
    with open("/proc/self/ns/net") as home:
        enter(name)
        try:
            yield
        finally:
            _set_namespace(home.fileno())


def _set_namespace(file: int) -> None:
    if _libc.setns(file, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"a network namespace cannot be entered: {os.strerror(number)}")


def ip(*arguments: str) -> str:
    """What `ip` prints; CalledProcessError, with what it said, if that fails."""
    done = subprocess.run(["ip", *arguments], check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.stdout
