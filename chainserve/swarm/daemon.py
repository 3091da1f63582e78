"""The libp2p daemon that comes with hivemind, as a child process that ends when we do.

hivemind can start it too, but in our process group, where a Ctrl-C at the terminal kills it before we have left
the swarm, and without saying why it did not start.
"""

import asyncio
import errno
import ipaddress
import logging
import os
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from chainserve.errors import AddressError, JoinError, SwarmError
from chainserve.swarm.identity import Identity

logger = logging.getLogger(__name__)

IDLE_TIMEOUT_S = 15  # it ends itself if nobody connects to it that long; at once when we die after that
STOP_TIMEOUT_S = 2.0
MAX_LINE_BYTES = 2**20


class Daemon:
    """A running daemon."""

    def __init__(self, process: asyncio.subprocess.Process, socket_path: Path, resources: AsyncExitStack) -> None:
        self._process = process
        self._resources = resources
        self.control_address = f"/unix{socket_path}"
        """Multiaddr on which the daemon takes commands."""

    @classmethod
    async def start(
        cls, identity: Identity, listen: str | None, *, bootstrap: Sequence[str] = (), announce: str | None = None
    ) -> Self:
        """Start a daemon that is `identity`, listens at the multiaddr `listen` and connects to `bootstrap`.

        Others are told to come to `announce`, if that is another: where a router passes it on.

        With `listen` None it takes no connections from others. AddressError if it cannot listen, JoinError if no
        bootstrap peer answers, SwarmError if it does not start for another reason.
        """
        async with AsyncExitStack() as resources:
            folder = Path(resources.enter_context(TemporaryDirectory(prefix="chainserve-")))
            control, key = folder / "control.sock", folder / "identity.key"
            _write_secret(key, identity.to_bytes())
            process = await asyncio.create_subprocess_exec(
                find_binary(),
                *_arguments(control, key, listen, bootstrap, announce),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,  # out of the reach of Ctrl-C
                limit=MAX_LINE_BYTES,
                env={"GOLOG_LOG_LEVEL": "error"} | os.environ,
            )
            started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            reader = asyncio.create_task(_read(process, started))
            resources.push_async_callback(_stop, process, reader)
            try:
                await started
            except _ExitedError as error:
                raise _not_started(str(error), bootstrap) from None
            key.unlink()
            return cls(process, control, resources.pop_all())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs. Calls through a dead daemon never come back."""
        return self._process.returncode is None

    def check(self) -> None:
        """SwarmError if the daemon has died."""
        if not self.alive:
            raise SwarmError(f"libp2p's daemon has ended with status {self._process.returncode}: start again")

    async def close(self) -> None:
        """End the daemon; it is gone when this returns, also when cancelled. Closing twice does nothing."""
        await self._resources.aclose()


def find_binary() -> Path:
    """The daemon's program in the installed hivemind, found without importing it."""
    spec = find_spec("hivemind")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (binary := Path(folder, "hivemind_cli", "p2pd")).is_file():
            return binary
    raise SwarmError("hivemind is not installed, or has no p2pd for this platform: pip install 'chainserve[network]'")


async def listen_address(host: str, port: int) -> str:
    """The TCP multiaddr of a free port (0: the system will choose) on this machine; AddressError if there is none.

    The daemon itself would share a port with another daemon without a word.
    """
    if not 0 <= port < 65536:
        raise AddressError(f"{port} is no port: choose a --port below 65536, or 0 to let the system choose")
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise AddressError(f"{host} is no address: give --host an address of this machine") from None
    family, _, _, _, address = found[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections do not count
        try:
            probe.bind(address)
        except OSError as error:
            raise AddressError(_why_not_bound(host, port, error)) from None
    ip = ipaddress.ip_address(str(address[0]).partition("%")[0])
    return f"/ip{ip.version}/{ip}/tcp/{port}"


def _why_not_bound(host: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} of {host} is in use: choose another --port, or 0 to let the system choose"
        case errno.EADDRNOTAVAIL:
            return f"{host} is not an address of this machine: choose another --host"
        case errno.EACCES:
            return f"port {port} of {host} is reserved for the system: choose a --port above 1023"
        case _:
            return f"cannot listen at {host}:{port}: {error.strerror}"


def announced(host: str, port: int) -> str:
    """The TCP multiaddr of a host by its name or address, which need not be one of this machine."""
    try:
        kind = f"ip{ipaddress.ip_address(host).version}"
    except ValueError:
        kind = "dns"
    return f"/{kind}/{host}/tcp/{port}"


def _arguments(
    control: Path, key: Path, listen: str | None, bootstrap: Sequence[str], announce: str | None
) -> list[str]:
    exposed = listen is not None and not listen.startswith(("/ip4/127.", "/ip6/::1/"))
    options: dict[str, object] = {
        "listen": f"/unix{control}",
        "id": key,
        "idleTimeout": f"{IDLE_TIMEOUT_S}s",
        "connManager": 1,
        "dhtClient" if listen is None else "dhtServer": 1,
        # Ways through home routers, of no use on one machine.
        "autonat": int(exposed),
        "natPortMap": int(exposed),
        "autoRelay": int(exposed),
    }
    options |= {"noListenAddrs": 1} if listen is None else {"hostAddrs": listen}
    if announce is not None:
        options["announceAddrs"] = announce
    if bootstrap:
        options |= {"b": 1, "bootstrapPeers": ",".join(bootstrap)}
    return [f"-{name}={value}" for name, value in options.items()]


def _write_secret(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)


class _ExitedError(Exception):
    """The daemon ended before it was ready; the text is the last it said."""


async def _read(process: asyncio.subprocess.Process, started: asyncio.Future[None]) -> None:
    """Log what the daemon says until it ends, and tell when it has started."""
    assert process.stdout is not None
    last = "it said nothing"
    async for line in process.stdout:
        text = line.decode(errors="replace").strip()
        logger.debug("p2pd: %s", text)
        last = text or last
        if text.startswith("Peer ID:") and not started.done():
            started.set_result(None)
    if not started.done():
        started.set_exception(_ExitedError(last))


def _not_started(reason: str, bootstrap: Sequence[str]) -> AddressError | JoinError | SwarmError:
    """The daemon's last words as an error of ours."""
    if "failed to listen" in reason:
        return AddressError(f"cannot listen: {reason}: choose another --host or --port")
    if bootstrap:
        return cannot_join(bootstrap, reason)
    return SwarmError(f"libp2p's daemon did not start: {reason}")


def cannot_join(bootstrap: Sequence[str], reason: str) -> JoinError:
    """The error for a swarm that cannot be entered through the addresses known."""
    return JoinError(
        f"cannot join through {', '.join(bootstrap)}: {reason}; check the network and that the server that gave the "
        f"token still runs, or ask for a new token"
    )


async def _stop(process: asyncio.subprocess.Process, reader: asyncio.Task[None]) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        logger.warning("libp2p's daemon does not end when asked to: killed it")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await reader
