"""Links by the kernel: namespaces on a bridge, and a netem queue per pair on the way out of each."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

from network.namespaces import address, ip, namespaces
from network.topology import Link, Topology

DEVICE = "wan0"
QUEUE_PACKETS = 100_000
FASTEST = "100gbit"


@cache
def is_there() -> bool:
    """Whether this kernel has netem: tried where it does no harm."""
    with namespaces(1) as (name,):
        words = ["tc", "-n", name, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
        try:
            return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0
        except FileNotFoundError:
            return False


@contextmanager
def joined(topology: Topology, names: Sequence[str]) -> Iterator[None]:
    """Join the namespaces by a bridge in the first; the links are gone with the namespaces."""
    hub = names[0]
    ip("-n", hub, "link", "add", "hub", "type", "bridge")
    ip("-n", hub, "link", "set", "hub", "up")
    for number, name in enumerate(names):
        ip("-n", hub, "link", "add", f"port{number}", "type", "veth", "peer", "name", DEVICE, "netns", name)
        ip("-n", hub, "link", "set", f"port{number}", "master", "hub", "up")
        ip("-n", name, "address", "add", f"{address(number)}/24", "dev", DEVICE)
        ip("-n", name, "link", "set", DEVICE, "up")
        for words in commands(topology, number):
            subprocess.run(["tc", "-n", name, *words], check=True, stdin=subprocess.DEVNULL, capture_output=True)
    yield


def commands(topology: Topology, number: int) -> list[list[str]]:
    """What `tc` is told on a host: a class per other host, told apart by address, with a netem queue each."""
    told = [["qdisc", "add", "dev", DEVICE, "root", "handle", "1:", "htb"]]
    for other, name in enumerate(topology.hosts):
        if other == number:
            continue
        link, minor = topology.link(topology.hosts[number], name), f"{other + 1:x}"
        rate = FASTEST if link.rate_mbit is None else f"{link.rate_mbit:g}mbit"
        told += [
            ["class", "add", "dev", DEVICE, "parent", "1:", "classid", f"1:{minor}", "htb", "rate", rate],
            ["qdisc", "add", "dev", DEVICE, "parent", f"1:{minor}", "netem", *impairments(link)],
        ]
        match = ["match", "ip", "dst", f"{address(other)}/32", "flowid", f"1:{minor}"]
        told.append(["filter", "add", "dev", DEVICE, "protocol", "ip", "parent", "1:", "u32", *match])
    return told


def impairments(link: Link) -> list[str]:
    """A link in netem's words."""
    words = ["delay", f"{link.round_trip_ms / 2:g}ms", *([f"{link.jitter_ms:g}ms"] if link.jitter_ms else [])]
    words += ["loss", f"{100 * link.loss:g}%"] if link.loss else []
    return [*words, "limit", str(QUEUE_PACKETS)]
