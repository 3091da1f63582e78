"""Hosts with links between them, made for a while: by the kernel's netem, or by a router of our own. One interface.

What runs in one process needs neither: `wire_of` gives the same links to transports in memory.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from chainserve.errors import UsageError
from chainserve.transport.memory import Wire
from chainserve.types import PeerId
from network import netem, router
from network.namespaces import address, namespaces, why_not
from network.topology import Topology, to_toml

WAYS = ("auto", "netem", "router")
ROUTER_END_S = 10.0


class EmulationError(UsageError):
    """Links that cannot be made here."""


@dataclass(frozen=True, slots=True)
class Hosts:
    """Hosts that can be used: what runs in one's namespace sees the others as far away as the topology says."""

    topology: Topology
    names: tuple[str, ...]  # of the namespaces, in the order of the hosts
    way: str
    carried: dict[str, float] = field(default_factory=dict)  # what the router says of itself, after the end

    def namespace(self, host: str) -> str:
        return self.names[self.topology.hosts.index(host)]

    def address(self, host: str) -> str:
        return address(self.topology.hosts.index(host))

    def command(self, host: str, words: Sequence[str]) -> list[str]:
        """The same command on that host."""
        return ["ip", "netns", "exec", self.namespace(host), *words]


@contextmanager
def emulated(topology: Topology, way: str = "auto") -> Iterator[Hosts]:
    """Make the links; EmulationError if this machine or user cannot."""
    if (reason := why_not()) is not None:
        raise EmulationError(f"links cannot be made: {reason}; tests in memory need none of it")
    if way == "auto":
        way = "netem" if netem.is_there() else "router"
    if way == "netem" and not netem.is_there():
        raise EmulationError("this kernel has no netem: leave it to the router with --links router")
    with ExitStack() as made:
        names = made.enter_context(namespaces(len(topology.hosts)))
        hosts = Hosts(topology, names, way)
        made.enter_context(netem.joined(topology, names) if way == "netem" else _routed(hosts))
        yield hosts


@contextmanager
def _routed(hosts: Hosts) -> Iterator[None]:
    """Have a router run between the namespaces."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "topology.toml"
        file.write_text(to_toml(hosts.topology))
        process = subprocess.Popen(
            [sys.executable, router.__file__, str(file), *hosts.names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for us: the links are the last to go
        )
        try:
            assert process.stdout is not None
            if process.stdout.readline().strip() != router.READY:
                _, said = process.communicate(timeout=ROUTER_END_S)
                raise EmulationError(f"the router did not start: {said.strip()}")
            yield
        finally:
            with suppress(subprocess.TimeoutExpired):
                output, _ = process.communicate(timeout=ROUTER_END_S)  # its input ends, and so does it
                if process.returncode == 0:
                    hosts.carried.update(json.loads(output))
            if process.poll() is None:
                process.kill()
                process.wait()


def wire_of(topology: Topology, host_of: Mapping[PeerId, str]) -> Callable[[PeerId, PeerId], Wire]:
    """The links for a `MemoryNetwork`, of peers at these hosts; jitter and loss have no meaning there."""

    def wire(first: PeerId, second: PeerId) -> Wire:
        if host_of[first] == host_of[second]:
            return Wire()
        link = topology.link(host_of[first], host_of[second])
        return Wire(delay_s=link.one_way_s, bytes_per_s=link.bytes_per_s)

    return wire
