"""One process that carries packets between namespaces, each pair with a delay, rate, jitter and loss of its own.

    python benchmarks/network/router.py TOPOLOGY.toml NAMESPACE ...    (root; ends when standard input does)

It owns a TUN device in each namespace and holds every packet until it is due. Timers are the kernel's, to the
microsecond. Devices have virtio headers: a large segment passes as one packet, and a core carries some hundred MB/s.
"""

import ctypes
import fcntl
import heapq
import json
import os
import select
import struct
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))

from network.namespaces import SUBNET, address, inside, ip
from network.shaping import Lane, wire_bytes
from network.topology import Topology, parse_topology

DEVICE = "wan0"
MTU = 1500
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
TUN_F_CSUM, TUN_F_TSO4 = 0x01, 0x02
VIRTIO_HEADER_BYTES = 10
SEGMENT_SIZE_AT = 4  # in the virtio header, 16 bits
DESTINATION_AT = VIRTIO_HEADER_BYTES + 16  # in the packet, 4 bytes
LARGEST_PACKET = 65_535 + VIRTIO_HEADER_BYTES
READS_AT_ONCE = 32
PRIORITY = 10
READY = "the links are up"


class ItimerSpec(ctypes.Structure):
    _fields_ = [
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("at_s", ctypes.c_long),
        ("at_ns", ctypes.c_long),
    ]


class Timer:
    """A file that can be read from a time of the monotonic clock on, which is finer than what epoll waits for."""

    CLOCK_MONOTONIC, NONBLOCK, ABSOLUTE = 1, 0o4000, 1

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.file = self._libc.timerfd_create(self.CLOCK_MONOTONIC, self.NONBLOCK)
        if self.file < 0:
            raise OSError(ctypes.get_errno(), "the kernel gives no timer")
        self._set_for = 0.0

    def set(self, at: float) -> None:
        if at != self._set_for:
            self._set_for = at
            spec = ItimerSpec(0, 0, int(at), max(1, int((at % 1) * 1e9)))
            self._libc.timerfd_settime(self.file, self.ABSOLUTE, ctypes.byref(spec), None)

    def clear(self) -> None:
        self._set_for = 0.0
        with suppress(BlockingIOError):
            os.read(self.file, 8)


def open_device(namespace: str, number: int) -> int:
    """The TUN device of a host, configured, as a file."""
    with inside(namespace):
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
        fcntl.ioctl(device, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    ip("-n", namespace, "address", "add", f"{address(number)}/24", "dev", DEVICE)
    ip("-n", namespace, "link", "set", DEVICE, "mtu", str(MTU), "txqueuelen", "10000", "up")
    return device


class Router:
    """Packets under way, by when they are due."""

    def __init__(self, devices: Sequence[int], topology: Topology, *, seed: int = 0) -> None:
        self._devices = devices
        chance = Random(seed)
        self._lanes = {
            (source, target): Lane(topology.link(first, second), chance=chance)
            for source, first in enumerate(topology.hosts)
            for target, second in enumerate(topology.hosts)
            if source != target
        }
        self._under_way: list[tuple[float, int, int, bytes]] = []  # due, number, to, packet
        self._network = bytes(map(int, SUBNET.split(".")))
        self.num_carried = 0
        self.num_unknown = 0
        self.late_s = 0.0
        self.latest_s = 0.0

    def take(self, source: int, packet: bytes, now: float) -> None:
        """A host has sent a packet."""
        to = packet[DESTINATION_AT : DESTINATION_AT + 4]
        lane = self._lanes.get((source, to[3] - 1)) if packet[VIRTIO_HEADER_BYTES] >> 4 == 4 else None
        if lane is None or to[:3] != self._network:
            self.num_unknown += 1
            return
        segment_bytes = int.from_bytes(packet[SEGMENT_SIZE_AT : SEGMENT_SIZE_AT + 2], "little")
        num_bytes = wire_bytes(len(packet) - VIRTIO_HEADER_BYTES, segment_bytes=segment_bytes)
        due = lane.due(now, num_bytes=num_bytes)
        if due is not None:
            self.num_carried += 1
            heapq.heappush(self._under_way, (due, self.num_carried, to[3] - 1, packet))

    def deliver(self) -> float | None:
        """Hand over what is due; returns when the next packet is."""
        while self._under_way:
            due, _, target, packet = self._under_way[0]
            late_s = time.monotonic() - due
            if late_s < 0:
                return due
            heapq.heappop(self._under_way)
            with suppress(OSError):  # a host whose buffer is full loses packets, as others do
                os.write(self._devices[target], packet)
            self.late_s += late_s
            self.latest_s = max(self.latest_s, late_s)
        return None

    def report(self) -> dict[str, float]:
        """What it carried, and by how much too late."""
        return {
            "packets": self.num_carried,
            "lost": sum(lane.num_lost for lane in self._lanes.values()),
            "dropped": sum(lane.num_dropped for lane in self._lanes.values()),
            "to_nobody": self.num_unknown,
            "mean_late_ms": 1000 * self.late_s / max(1, self.num_carried),
            "most_late_ms": 1000 * self.latest_s,
            "cpu_s": time.process_time(),
        }


def run(router: Router, devices: Sequence[int], *, until: int) -> None:
    """Carry packets until the file `until` ends."""
    timer, poll = Timer(), select.epoll()
    sources = {device: number for number, device in enumerate(devices)}
    for file in (*devices, timer.file, until):
        poll.register(file, select.EPOLLIN)
    while True:
        due = router.deliver()
        if due is not None:
            timer.set(due)
        for file, _ in poll.poll():
            if file == until:
                if not os.read(until, 4096):
                    return
            elif file == timer.file:
                timer.clear()
            else:
                now = time.monotonic()
                for _ in range(READS_AT_ONCE):
                    try:
                        packet = os.read(file, LARGEST_PACKET)
                    except BlockingIOError:
                        break
                    router.take(sources[file], packet, now)


def main() -> None:
    topology = parse_topology(Path(sys.argv[1]).read_text())
    devices = [open_device(namespace, number) for number, namespace in enumerate(sys.argv[2:])]
    with suppress(PermissionError):  # packets are to be in time however busy the machine is
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    router = Router(devices, topology)
    print(READY, flush=True)
    run(router, devices, until=sys.stdin.fileno())
    print(json.dumps(router.report()), flush=True)


if __name__ == "__main__":
    main()
